"""The world of the cycle: the disk, the network and the engine of one device.

    state_dir/  lock  credential.json (0600)  journal.0/.1
                current -> slots/a   slots/a  slots/b   downloads/  canary/  tuf/

Every method may be run again after a power cut: it looks at what is there, most of all at digests,
and does what is left. The running model is only ever read; what is new goes into the spare slot.
Nothing here is global: one process may run many devices, each in a folder of its own.
"""

import logging
import os
import shutil
import subprocess
from collections.abc import Callable, Collection
from contextlib import suppress
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL
from typing import Any

from device_agent import canary, surroundings
from device_agent.check_in import CheckIn
from device_agent.client import Client
from device_agent.config import Config
from device_agent.credential import Credential, Identity
from device_agent.disk import Slots, settle, sync
from device_agent.engine import Engine, Shard
from device_agent.errors import Busy, Rejected, Unavailable, one_line
from device_agent.journal import Journal
from device_agent.outbox import Event, Outbox
from device_agent.plan import Canary, Plan, Step, way_of
from device_agent.states import Reporting
from neural_diff.apply import apply as apply_patches
from neural_diff.errors import Corrupt, NeuralDiffError, WrongBase
from trust.order import write_time
from trust.roles import Component

logger = logging.getLogger(__name__)

DOWNLOADS = "downloads"
LEAVE_S_MAX = 30.0
TROUBLE_MAX = 300  # letters of it that are kept
AFRESH = 8  # one device in so many hears the old model again beside the new one
# What this device found out by itself: the same bytes would be found wanting again.
LOCAL_VERDICTS = frozenset({"E_GATE", "E_ENGINE", "E_SLOW", "E_STATE_LOOP"})


def room_told(free_bytes: int, told: int) -> int:
    """Return the room on the disk as the server is told of it: no more than there is, roundly.

    What was told stands while it is true and not four times too little: no poll brings news.
    """
    if told <= free_bytes < 4 * told:
        return told
    return 1 << (free_bytes.bit_length() - 1) if free_bytes > 0 else 0


class LocalDevice:
    """A real device, whose folder the caller has locked; `states.Device` says what methods do."""

    def __init__(self, config: Config, known: Credential, clock: Callable[[], datetime]) -> None:
        folder = config.state_dir
        self._downloads, self._canary = folder / DOWNLOADS, folder / "canary"
        for path in (self._downloads, self._canary):
            path.mkdir(exist_ok=True)
        self.config, self.device_id, self._clock = config, known.device_id, clock
        self.journal, self.slots = Journal(folder), Slots(folder)
        self.outbox = Outbox(self.journal, lambda: write_time(clock()))
        self.client = Client(config, Identity(known, folder, clock))
        self.check_in = CheckIn(config, self.client, self.slots, self.journal, self.outbox, clock)

    def check(self) -> Plan | None:
        """Ask the server for news, and let it know what there is for an update."""
        free = shutil.disk_usage(self.config.state_dir).free + self._freed_bytes
        told = self.journal.memory.capacity
        room = room_told(free - self.config.limits.spare_bytes, told.get("room_bytes", 0))
        memory = os.sysconf("SC_PAGE_SIZE") * os.sysconf("SC_PHYS_PAGES")
        has: dict[str, Any] = {"memory_bytes": memory, "room_bytes": room, "goes_back": True}
        has["surroundings"] = surroundings.told(surroundings.probe(self.config), self._clock())
        if has != told:
            self.outbox.add_capacity(has)
        return self.check_in.ask()

    def spare_holds(self, plan: Plan) -> bool:
        """Read the spare slot and compare."""
        return self.slots.spare_holds(plan.sha256, plan.components)

    def fetch(self, plan: Plan, pipeline: int, failed: str) -> None:
        """Download what is missing of a pipeline, of the components and of the canary."""
        unmet = plan.conditions.unmet(surroundings.probe(self.config), self._clock())
        if unmet:
            raise Unavailable(f"an update may not begin now: {unmet}")
        steps = plan.pipelines[pipeline]
        blobs: tuple[Step | Component, ...] = (*steps, *plan.components)
        self._say(plan, "downloading")
        if failed:
            self._say(plan, "note", reason=failed, detail=way_of(plan.pipelines[pipeline - 1]))
        self.flush()  # A long download should be seen while it lasts.
        wanted = {step.sha256 for way in plan.pipelines for step in way}
        self._clear_downloads(wanted | {component.sha256 for component in plan.components})
        if not self.spare_holds(plan):
            held = self.slots.held() if plan.components else {}
            for component in plan.components:
                here = self._downloads / component.sha256
                if component.sha256 in held and not here.exists():
                    os.link(held[component.sha256], here)
            self._require_space(plan, blobs)
            for blob in blobs:
                self._fetch_blob(blob.sha256, blob.bytes, self._downloads / blob.sha256)
        if offered := self._canary_of(plan):
            self._fetch_canary(offered)

    def build(self, plan: Plan, pipeline: int) -> None:
        """Write the new model and its components into the spare slot and confirm their digests."""
        steps, fetched = plan.pipelines[pipeline], self._fetched()
        size = sum(step.bytes for step in steps)
        size += sum(fetched.get(component.sha256, 0) for component in plan.components)
        if not self.spare_holds(plan):
            self.slots.prepare(plan.components, self._downloads)
            self._write(steps)
        if not self.spare_holds(plan):
            raise Rejected("E_RESULT", f"the result is not release {plan.release}")
        self._say(plan, "applied", detail=way_of(steps), bytes=size)
        self._clear_downloads()

    def evaluate(self, plan: Plan) -> None:
        """Hear both models on this device's shard, queue the report, and judge."""
        if not self.spare_holds(plan):
            raise Rejected("E_RESULT", f"the spare slot no longer holds release {plan.release}")
        offered = self._canary_of(plan)
        if offered is None:
            logger.info("release %s is taken without a trial", plan.release)
            return
        self._require_leave()
        folder, shard = self._fetch_canary(offered)
        timeout_s = min(plan.gate.timeout_s, self.config.limits.recogniser_s_max)
        engine = Engine(self.config.recogniser, timeout_s)
        models = (plan.base, self.slots.active), (plan.sha256, self.slots.spare)
        known: canary.Known = self.journal.memory.counts
        draw = sha256(f"{self.device_id}|{plan.release}".encode()).digest()
        if draw[1] % AFRESH == 0:
            known = canary.without(known, plan.base, shard, timeout_s)
        order = {"old_first": draw[0] % 2 == 0}
        trial = canary.run_trial(engine, models, shard, folder, known, offered, **order)
        if trial is None:
            self._say(plan, "note", reason="E_ENGINE", detail="the old model is not heard")
            return
        attempt = self.journal.memory.attempt_at(plan.release, plan.deployment)
        self.journal.remember(counts=trial.kept, attempt=(plan.release, plan.deployment, attempt))
        old, new = trial.old.errors, trial.new.errors
        refused = canary.gate_refuses(old, new, shard.ref_words)
        report = canary.report_of(
            trial, shard, plan, self.device_id, attempt, self._clock(), refused=refused
        )
        self.outbox.add_report(report)
        if refused:
            found = f"{new} errors where the running model makes {old}"
            raise Rejected("E_GATE", f"{found}, on {shard.ref_words} words")

    def switch(self, plan: Plan) -> bool:
        """Make the spare slot the active one, if its bytes are still the right ones."""
        done = self.slots.active_sha256(fresh=True) == plan.sha256
        if not done and not self.check_in.still_ordered(plan):
            return False
        self.slots.activate(plan.sha256, "E_RESULT")
        self._say(plan, "activated")
        return True

    def commit(self, plan: Plan) -> bool:
        """Remember the active bytes, read now, as good if they are the ordered ones."""
        if self.slots.active_sha256(fresh=True) != plan.sha256:
            return False
        good = self.journal.memory.knowing_good(plan.sha256, plan.release)
        self.journal.remember(good=good)
        return True

    def restore(self, sha256: str) -> None:
        """Make the slot with these bytes the active one; empty means no model at all."""
        self.slots.activate(sha256, "E_BASE")

    def report(self, outcome: Reporting) -> None:
        """Queue an outcome, remember what follows from it, and clear the downloads away."""
        bad = outcome.kind in ("refused", "failed")
        fetched = sum(self._fetched().values()) if bad else 0
        log = logger.warning if bad else logger.info
        log("%s %s %s: %s", outcome.kind, outcome.deployment, outcome.reason, outcome.detail)
        said = Event(outcome.kind, outcome.deployment, outcome.reason, outcome.detail, fetched)
        self.outbox.add_event(outcome.about, said)
        memory = self.journal.memory
        final = outcome.reason in LOCAL_VERDICTS
        given_up = memory.giving_up(outcome.deployment) if final else memory.given_up
        refusals = memory.refusals + 1 if bad else 0
        ended = (outcome.kind, outcome.reason, outcome.detail, write_time(self._clock()))
        self.journal.remember(etag="", given_up=given_up, refusals=refusals, ended=ended)
        self._clear_downloads()

    def tell_trouble(self, error: OSError) -> None:
        """Keep trouble for `status`; queue a note of what looks like an attack, once a day."""
        with suppress(OSError):  # The trouble may be that nothing can be written.
            self.journal.remember(trouble=one_line(str(error))[:TROUBLE_MAX])
        if isinstance(error, Unavailable) and error.code:
            today = write_time(self._clock())[:10]
            self.outbox.add_event(today, Event("note", "", error.code, str(error)))

    def flush(self) -> None:
        """Send what is queued; what cannot be sent now stays for a later cycle."""
        try:
            self.outbox.flush(self.client)
        except OSError as error:
            logger.info("%d reports wait: %s", len(self.outbox), error)

    def _say(self, plan: Plan, kind: str, **more: Any) -> None:
        self.outbox.add_event(str(plan.order_seq), Event(kind, plan.deployment, **more))

    def _require_leave(self) -> None:
        """Wait until the owner's command lets a trial begin."""
        command = self.config.may_try
        try:
            run = command and subprocess.run(
                command, stdin=DEVNULL, stdout=DEVNULL, stderr=DEVNULL, timeout=LEAVE_S_MAX
            )
        except subprocess.TimeoutExpired as error:
            raise Busy(f"{command[0]} did not say within {LEAVE_S_MAX} s") from error
        if run and run.returncode:
            raise Busy(f"{command[0]} ended with {run.returncode}: no trial now")

    def _canary_of(self, plan: Plan) -> Canary | None:
        """A way back is not tried: the model it leaves may be the one that cannot be heard."""
        back = (plan.base, plan.sha256) in self.journal.memory.back_edges
        return plan.canary if self.config.recogniser and plan.base and not back else None

    @property
    def _freed_bytes(self) -> int:
        """The bytes of the spare slot, which an update writes anew."""
        return self.slots.spare.stat().st_size if self.slots.spare.exists() else 0

    def _require_space(self, plan: Plan, blobs: tuple[Step | Component, ...]) -> None:
        missing = sum(b.bytes for b in blobs if not (self._downloads / b.sha256).exists())
        largest = max(plan.bytes, *(blob.to_bytes for blob in blobs if isinstance(blob, Step)))
        needed = missing + max(0, largest - self._freed_bytes) + self.config.limits.spare_bytes
        free = shutil.disk_usage(self.config.state_dir).free
        if free < needed:
            raise Rejected("E_SPACE", f"{needed} bytes are needed and {free} are free")

    def _fetched(self) -> dict[str, int]:
        """Return what was downloaded, with its sizes; what a slot has, too, was not."""
        found = {path.name: path.stat() for path in self._downloads.iterdir()}
        return {name: file.st_size for name, file in found.items() if file.st_nlink == 1}

    def _fetch_blob(self, sha256: str, length: int, target: Path) -> None:
        if not target.exists():
            part = self._downloads / f"{sha256}.part"
            self.client.fetch(sha256, length, part)
            settle(part, target)

    def _fetch_canary(self, offered: Canary) -> tuple[Path, Shard]:
        """Bring what is missing of the canary, forget others, and return where and what it is."""
        folder = self._canary / f"{offered.set[:32]}-{offered.shard_sha256[:32]}"
        for other in self._canary.iterdir():
            if other != folder:
                shutil.rmtree(other)
        folder.mkdir(exist_ok=True)
        manifest = folder / canary.MANIFEST
        self._fetch_blob(offered.set, offered.set_bytes, manifest)
        shard = canary.read_manifest(manifest.read_bytes(), offered.shard_sha256, self._clock())
        if shard.bytes != offered.shard_bytes:
            raise Rejected("E_CANARY", f"{shard.file} has other sizes in plan and manifest")
        self._fetch_blob(offered.shard_sha256, offered.shard_bytes, folder / shard.file)
        return folder, shard

    def _write(self, steps: tuple[Step, ...]) -> None:
        files = [self._downloads / step.sha256 for step in steps]
        base = files.pop(0) if steps[0].op == "full" else self.slots.active
        if not files:  # It was flushed when it had come whole.
            base.replace(self.slots.spare)
            sync(self.slots.spare.parent)
            return
        try:
            back = steps[0].op == "back"  # what was applied last is undone first
            apply_patches(base, files[:: -1 if back else 1], self.slots.spare, back=back)
        except NeuralDiffError as error:
            codes = {WrongBase: "E_BASE", Corrupt: "E_RESULT"}
            raise Rejected(codes.get(type(error), "E_PATCH"), str(error)) from error

    def _clear_downloads(self, wanted: Collection[str] = ()) -> None:
        for path in self._downloads.iterdir():
            if path.name.removesuffix(".part") not in wanted:
                path.unlink()
