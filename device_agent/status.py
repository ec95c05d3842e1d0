"""What a person at the device sees: what runs, what is under way, and why nothing is.

It reads the state folder and takes no lock, so it works beside a running agent, and with none.
"""

from datetime import datetime
from typing import Any

from device_agent.config import Config
from device_agent.credential import CREDENTIAL, UTC_NOW, read_credential
from device_agent.disk import Slots
from device_agent.journal import Journal, Memory
from device_agent.states import Attempt, State
from trust.order import read_time

DOING = {
    "Idle": "waits for its next poll",
    "Downloading": "downloads what leads to release {}",
    "Applying": "makes the files of release {}",
    "Trying": "hears the canary with release {}",
    "Switching": "is about to switch to release {}",
    "Committing": "reads release {} back, which runs on trial",
    "RollingBack": "goes back from release {}",
    "Reporting": "reports how its attempt ended",
}


def status(config: Config) -> dict[str, Any]:
    """Return what a state folder says."""
    if not (config.state_dir / CREDENTIAL).exists():
        return {"enrolled": False, "doing": "nothing", "because": "enroll it: --token TOKEN"}
    journal, slots = Journal(config.state_dir), Slots(config.state_dir)
    memory, known = journal.memory, read_credential(config.state_dir)
    found = {"running": slots.active_sha256(fresh=True), "spare": slots.spare_sha256()}
    models = {
        slot: {"sha256": sha256, "release": memory.good.get(sha256), "good": sha256 in memory.good}
        for slot, sha256 in found.items()
    }
    state = journal.state
    return {
        "enrolled": True,
        "device_id": known.device_id,
        "authentication": "signature" if known.credential.startswith("fs_") else "bearer",
        "state": type(state).__name__,
        "doing": DOING[type(state).__name__].format(
            state.plan.release if isinstance(state, Attempt) else ""
        ),
        "because": because(state, memory, found["running"], UTC_NOW()),
        **models,
        "order_seq": memory.floors.order_seq,
        "fresh_until": memory.fresh_until,
        "deployment": memory.deployment,
        "last_attempt": " ".join(filter(None, memory.ended)),
        "given_up": list(memory.given_up),
    }


def because(state: State, memory: Memory, running: str, now: datetime) -> str:
    """Return why it is not further than this; what somebody must mend comes first."""
    if memory.trouble:
        return memory.trouble
    if running and running not in memory.good:
        return "the model that runs is none that proved itself here: somebody changed it"
    if memory.fresh_until and now >= read_time(memory.fresh_until):
        return f"nothing newer than {memory.fresh_until} was heard, and this clock says {now:%F %R}"
    if isinstance(state, Attempt):
        return ""
    return f"the server says {memory.hold}" if memory.hold else ""
