"""The model that a device was born with, and what goes with it: put there when it enrolls."""

import shutil
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

from device_agent.config import AGENT_VERSION, Config
from device_agent.device import DOWNLOADS
from device_agent.disk import Slots, hash_file, open_file, settle
from device_agent.journal import Journal
from device_agent.states import Idle
from trust.roles import Component

Files = Sequence[tuple[str, Path]]


def install_factory_model(config: Config, model_file: Path | None, components: Files) -> str:
    """Make a model and what goes with it the active one, and return its digest; none: empty."""
    slots, journal = Slots(config.state_dir), Journal(config.state_dir)
    slots.activate("", "E_BASE")  # An enrollment that was cut short may have come this far.
    # Another device's orders count from their own beginning; what metadata was seen stays seen.
    floors = replace(journal.memory.floors, order_seq=0, order_sha256="")
    journal.remember(floors=floors, etag="", agent=AGENT_VERSION)
    journal.save(Idle())
    if model_file is None:
        return ""
    folder = config.state_dir / DOWNLOADS  # the next attempt clears it away
    folder.mkdir(exist_ok=True)
    copied = [_copy_into(folder, name, file) for name, file in components]
    slots.prepare(copied, folder)
    model = _copy_into(folder, "model", model_file)
    settle(folder / model.sha256, slots.spare)
    digest = slots.spare_sha256()
    journal.remember(good={digest: ""})
    slots.activate(digest, "E_BASE")
    return digest


def _copy_into(folder: Path, name: str, file: Path) -> Component:
    with open_file(file) as source, (folder / name).open("wb") as copy:
        shutil.copyfileobj(source, copy)
    found = Component(name, hash_file(folder / name), (folder / name).stat().st_size)
    settle(folder / name, folder / found.sha256)
    return found
