"""The agent: a loop around the cycle, and what a person at the device may ask of it.

`open_device` takes the lock of a state folder, `run` keeps its device up to date until it is told
to stop, `run_once` makes one round. Trouble that may pass is waited out with full jitter, so that
a fleet that lost its server does not come back all at once.
"""

import fcntl
import json
import logging
import os
import random
import threading
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agent.check_in import read_root
from device_agent.client import Client, backoff_s
from device_agent.config import Config, Limits
from device_agent.device import LocalDevice
from device_agent.errors import Busy, Misconfigured, Rejected, Unavailable
from device_agent.journal import Journal, sync_folder, write_durably
from device_agent.memory import Notebook
from device_agent.outbox import Event
from device_agent.slots import Mark, Slots, copy_durably
from device_agent.states import (
    Applying,
    Downloading,
    Idle,
    Reporting,
    State,
    Switching,
    Trying,
    step,
)

logger = logging.getLogger(__name__)

AGENT_VERSION = "0.1.0"
CREDENTIAL = "credential.json"
BEFORE_THE_SWITCH = (Downloading, Applying, Trying, Switching)


class NothingToDo(Exception):
    """There is no earlier release to go back to."""


def utc_now() -> datetime:
    """Return the system clock's time."""
    return datetime.now(UTC)


def open_device(config: Config, clock: Callable[[], datetime] = utc_now) -> LocalDevice:
    """Return the enrolled device of a state folder, locked for this agent; close it at the end.

    Raises:
        Misconfigured: not enrolled, or the root or the saved state cannot be used.
        Busy: another agent has it.
    """
    path = config.state_dir / CREDENTIAL
    try:
        credential = json.loads(path.read_bytes())
        device_id, secret = credential["device_id"], credential["credential"]
    except FileNotFoundError as error:
        raise Misconfigured(
            f"{config.state_dir} is not enrolled: run fleetdiff-agent enroll --token TOKEN"
        ) from error
    except (ValueError, KeyError, TypeError) as error:
        raise Misconfigured(f"{path} is damaged; revoke the device and enroll again") from error
    return LocalDevice(config, device_id, secret, lock_folder(config.state_dir), clock)


def run(device: LocalDevice, stop: threading.Event) -> None:
    """Keep a device up to date until `stop` is set; a state that is under way is left journaled."""
    limits = device.config.limits
    state = device.journal.resume()
    if isinstance(state, Idle):
        stop.wait(random.random() * limits.start_spread_s)
    failures = 0
    while not stop.is_set():
        before = state
        try:
            state = advance(device, state)
        except OSError as error:
            failures += 1
            if failures > limits.retries_max and isinstance(state, BEFORE_THE_SWITCH):
                state = device.journal.save(Idle())  # What was fetched is kept; ask afresh.
            delay = retry_delay_s(error, failures, limits)
            logger.warning("%s: %s; again in %.0f s", type(state).__name__, error, delay)
            stop.wait(delay)
            continue
        failures = 0
        if isinstance(state, Idle) and not has_news(before):
            stop.wait(poll_delay_s(device))


def has_news(before: State) -> bool:
    """Whether the server should hear at once what runs: only a poll proves a switch to it."""
    return isinstance(before, Reporting) and before.kind in ("committed", "rolled_back")


def run_once(device: LocalDevice) -> Reporting | None:
    """Make one round: finish what is under way, or check in and do what follows; then report.

    Returns:
        The outcome, or None if there was nothing to do.

    Raises:
        OSError: it cannot go on now; the state is saved.
    """
    state, outcome = device.journal.resume(), None
    while True:
        state = advance(device, state)
        if isinstance(state, Reporting):
            outcome = state
        if isinstance(state, Idle):
            return outcome


def advance(device: LocalDevice, state: State) -> State:
    """Take one step, save where it leads, and send what it had to say."""
    following = step(state, device)
    if following != state:
        following = device.journal.save(following)
    if len(device.outbox):
        device.flush()
    return following


def retry_delay_s(error: OSError, failures: int, limits: Limits) -> float:
    """Return how long to wait after trouble; a server that asks for time gets a whole period."""
    period = limits.retry_s
    if isinstance(error, Unavailable) and error.status in (429, 503):
        period = _period_s(error.poll_after_s, limits)
    return backoff_s(failures, period, max(period, limits.retry_s_max), random.random)


def poll_delay_s(device: LocalDevice) -> float:
    """Return how long to wait for the next poll; refusals in a row double it."""
    limits = device.config.limits
    period = _period_s(device.check_in.poll_after_s, limits)
    slower: float = period * 2 ** min(device.notebook.memory.refusals, 30)
    return min(slower, max(period, limits.poll_s_max)) * (0.9 + 0.1 * random.random())


def enroll(config: Config, token: str, model_file: Path | None) -> dict[str, Any]:
    """Make this device known to its server, with FILE as the model it was born with.

    Raises:
        Misconfigured: it is enrolled already, or the root cannot be used.
        Rejected: the server refuses; E_BASE if FILE is no regular file.
        OSError: no answer; nothing is enrolled here.
    """
    root = read_root(config)
    config.state_dir.mkdir(parents=True, exist_ok=True)
    path = config.state_dir / CREDENTIAL
    lock = lock_folder(config.state_dir)
    try:
        if path.exists():
            raise Misconfigured(f"{config.state_dir} is enrolled already")
        factory = _install_factory_model(config, model_file)
        answer = Client(config).post(
            "enroll",
            {
                "enrollment_token": token,
                "model": config.model,
                "serial": config.serial,
                "hardware": config.hardware,
                "attributes": config.attributes,
                "agent_version": AGENT_VERSION,
            },
        )
        try:
            known = {name: str(answer[name]) for name in ("device_id", "credential")}
            offered = str(answer["root_sha256"])
        except (KeyError, TypeError) as error:
            raise Rejected("E_HTTP", f"the answer to enroll lacks {error}") from error
        write_durably(path, json.dumps(known).encode(), mode=0o600)
    finally:
        os.close(lock)
    return {
        "device_id": known["device_id"],
        "model_sha256": factory,
        "root_sha256": root.sha256,
        "root_is_the_servers": offered == root.sha256,
    }


def roll_back(device: LocalDevice) -> Mark:
    """Go back to the release in the spare slot because a person at the device says so.

    Only along a way that the family signs; the deployment that is left is not tried again.

    Raises:
        NothingToDo: the spare slot holds no good release.
        Rejected: E_DOWNGRADE if no signed edge leads there.
    """
    mark = device.slots.mark(device.slots.spare)
    if not mark.good or not device.slots.spare_holds(mark.sha256):
        raise NothingToDo("the spare slot holds no good earlier release")
    running = device.slots.active_sha256(fresh=True)
    name = mark.release or mark.sha256[:12]
    memory = device.notebook.memory
    if (running, mark.sha256) not in memory.back_edges:
        raise Rejected("E_DOWNGRADE", f"the family signs no way back from here to {name}")
    if memory.deployment:
        memory = memory.without(memory.deployment)
    device.notebook.write(replace(memory, etag=""))
    device.slots.switch()
    device.journal.save(Idle())
    event = Event("rolled_back", memory.deployment, "by_hand", f"a person went back to {name}")
    device.outbox.add_event(f"by hand {running} {memory.floors.order_seq}", event)
    device.flush()
    return mark


def status(config: Config) -> dict[str, Any]:
    """Return what a state folder says; takes no lock, so it works beside a running agent."""
    folder = config.state_dir
    if not (folder / CREDENTIAL).exists():
        return {"enrolled": False}
    memory, slots = Notebook(folder / "memory").memory, Slots(folder)
    active = slots.active
    marks = {name: slots.mark(name) for name in (active, slots.spare) if name}
    return {
        "enrolled": True,
        "device_id": json.loads((folder / CREDENTIAL).read_bytes())["device_id"],
        "state": type(Journal(folder / "cycle", config.limits.saves_max).peek()).__name__,
        "active_slot": active,
        "running": marks[active].__dict__ if active else None,
        "spare": marks[slots.spare].__dict__,
        "order_seq": memory.floors.order_seq,
        "fresh_until": memory.fresh_until,
        "deployment": memory.deployment,
        "given_up": list(memory.given_up),
    }


def lock_folder(folder: Path) -> int:
    """Return a descriptor that holds the lock of a state folder until it is closed.

    Raises:
        Busy: another agent holds it.
    """
    descriptor = os.open(folder / "lock", os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o600)
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        os.close(descriptor)
        raise Busy(f"another agent works in {folder}; stop it first") from error
    return descriptor


def _install_factory_model(config: Config, model_file: Path | None) -> str:
    slots = Slots(config.state_dir)
    if slots.active is not None:  # An enrollment that was cut short did this already.
        slots.empty()
    if model_file is None:
        return ""
    digest = copy_durably(model_file, slots.file("a"))
    slots.set_mark("a", Mark(digest, "", good=True))
    slots.switch()
    sync_folder(config.state_dir)
    return digest


def _period_s(asked: float | None, limits: Limits) -> float:
    period = limits.poll_s if asked is None else asked
    return min(max(period, limits.poll_s_min), limits.poll_s_max)
