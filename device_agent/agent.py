"""The agent: a loop around the cycle, and what a person at the device may ask of it.

`open_device` takes the lock of a state folder, `run` keeps its device up to date until it is told
to stop, `run_once` makes one round. Trouble is waited out so that no outage echoes in a fleet.
"""

import errno
import fcntl
import logging
import random
import threading
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from device_agent.client import Client
from device_agent.config import AGENT_VERSION, Config, Limits, read_root
from device_agent.credential import (
    AFRESH,
    CREDENTIAL,
    UTC_NOW,
    Credential,
    Identity,
    keep,
    read_credential,
    signing,
)
from device_agent.deadline import backoff_s
from device_agent.device import LocalDevice
from device_agent.disk import Slots, tell_if_full
from device_agent.errors import Busy, Misconfigured, Rejected, Unavailable
from device_agent.factory import Files, install_factory_model
from device_agent.outbox import Event
from device_agent.states import BEFORE_THE_SWITCH, Idle, Reporting, State, step
from device_agent.strict import accept

logger = logging.getLogger(__name__)

HOLDS_NO_STATE = (errno.EACCES, errno.EPERM, errno.EROFS, errno.EOPNOTSUPP)
P256 = "ecdsa-sha2-nistp256"  # what only `cryptography` verifies; Ed25519 needs nothing


@dataclass(frozen=True)
class Enrolled:
    """The answer to enroll."""

    device_id: str
    credential: str
    root_sha256: str


@contextmanager
def open_device(config: Config, clock: Callable[[], datetime] = UTC_NOW) -> Iterator[LocalDevice]:
    """Yield the enrolled device of a state folder, locked for this agent.

    Raises:
        Misconfigured: not enrolled, or the root or the saved state cannot be used or is lost.
        Busy: another agent has it.
    """
    known = read_credential(config.state_dir)
    with locked(config.state_dir):
        device = LocalDevice(config, known, clock)
        if device.journal.newborn:  # With its floors it lost what protects it from old metadata.
            raise Misconfigured(f"{config.state_dir} lost its journal; {AFRESH}")
        tell_version(device)
        yield device


def tell_version(device: LocalDevice) -> None:
    """Let the server know which agent runs here, if it is another than it was told of."""
    memory = device.journal.memory
    if memory.agent != AGENT_VERSION:
        event = Event("note", "", "agent", AGENT_VERSION)
        device.outbox.add_event(f"{AGENT_VERSION} {memory.next_seq}", event)
        device.journal.remember(agent=AGENT_VERSION)


def run(device: LocalDevice, stop: threading.Event) -> None:
    """Keep a device up to date until `stop` is set; a state that is under way is left journaled."""
    limits, state, failures = device.config.limits, device.journal.resume(), 0
    delay = random.random() * limits.start_spread_s if isinstance(state, Idle) else 0.0
    while not stop.wait(delay):
        before = state
        try:
            state = advance(device, state)
        except OSError as error:
            failures += 1
            if failures > limits.retries_max and isinstance(state, BEFORE_THE_SWITCH):
                state = device.journal.save(Idle())  # What was fetched is kept; ask afresh.
            delay = trouble_delay_s(device, state, error, failures)
            logger.warning("%s: %s; again in %.0f s", type(state).__name__, error, delay)
        else:
            failures, delay = 0, poll_delay_s(device) if rests(before, state) else 0.0


def rests(before: State, state: State) -> bool:
    """Whether a round is over. What runs since a switch the server hears at once, by a poll."""
    news = isinstance(before, Reporting) and before.kind in ("committed", "rolled_back")
    return isinstance(state, Idle) and not news


def run_once(device: LocalDevice) -> Reporting | None:
    """Make one round: finish what is under way, or check in and do what follows; then report.

    Returns:
        The outcome, or None if there was nothing to do.

    Raises:
        OSError: it cannot go on now; the state is saved.
    """
    state, outcome = device.journal.resume(), None
    while True:
        before, state = state, advance(device, state)
        if isinstance(state, Reporting):
            outcome = state
        if rests(before, state):
            return outcome


def advance(device: LocalDevice, state: State) -> State:
    """Take one step, save where it leads, and send what it had to say."""
    try:
        following = step(state, device)
    except OSError as error:
        tell_if_full(error, device.config.state_dir)
        device.tell_trouble(error)
        raise
    device.journal.remember(trouble="")
    after = device.journal.save(following) if following != state else following
    device.flush()
    return after


def trouble_delay_s(device: LocalDevice, state: State, error: OSError, failures: int) -> float:
    """Return how long to wait after trouble; who only asks for news soon keeps to its period."""
    limits, sent_away = device.config.limits, getattr(error, "status", 0) in (429, 503)
    # Retries of a whole fleet would crowd the moment at which an outage ends.
    if isinstance(state, Idle) and failures > limits.quick_retries_max and not sent_away:
        return poll_delay_s(device)
    return retry_delay_s(error, failures, limits)


def retry_delay_s(error: OSError, failures: int, limits: Limits) -> float:
    """Return how long to wait after trouble; a server that asks for time gets a whole period."""
    period, later = limits.retry_s, 0.0
    if isinstance(error, Unavailable) and error.status in (429, 503):
        period = _period_s(error.poll_after_s, limits)
        # On top of it the whole spread: who tells a fleet the same number shall not get an echo.
        later = min(error.later_s, limits.poll_s_max) if error.status == 503 else 0.0
    return later + backoff_s(failures, period, max(period, limits.retry_s_max), random.random)


def poll_delay_s(device: LocalDevice) -> float:
    """Return how long to wait for the next poll; refusals in a row double it."""
    limits = device.config.limits
    period = _period_s(device.check_in.poll_after_s, limits)
    slower: float = period * 2 ** min(device.journal.memory.refusals, 30)
    return min(slower, max(period, limits.poll_s_max)) * (0.9 + 0.1 * random.random())


def enroll(
    config: Config,
    token: str,
    model_file: Path | None,
    components: Files = (),
    *,
    signature: bool = False,
    clock: Callable[[], datetime] = UTC_NOW,
) -> dict[str, Any]:
    """Make this device known to its server, with FILE as the model it was born with.

    Args:
        config: who it is.
        token: admits it.
        model_file: that model; None: it has none yet.
        components: what goes with it, by name.
        signature: it signs with a key that it makes, and gets no secret to send.
        clock: to sign by.

    Raises:
        Misconfigured: it is enrolled already, the root cannot be used, or nothing here can sign.
        Rejected: the server refuses; E_BASE if FILE is no regular file.
        OSError: no answer; nothing is enrolled here.
    """
    pinned_sha256 = sha256(read_root(config)[0]).hexdigest()
    path = config.state_dir / CREDENTIAL
    with locked(config.state_dir):
        if path.exists():
            raise Misconfigured(f"{config.state_dir} is enrolled already")
        factory = install_factory_model(config, model_file, components)
        request = {
            "enrollment_token": token,
            "model": config.model,
            "serial": config.serial,
            "hardware": config.hardware,
            "attributes": config.attributes | {P256: "yes" if find_spec("cryptography") else "no"},
            "agent_version": AGENT_VERSION,
        }
        key = signing().new_key() if signature else ""
        request |= {"public_key": signing().public_of(key)} if key else {}
        client = Client(config, Identity(Credential("", key), config.state_dir, clock))
        answer = accept(Enrolled, client.post("enroll", request), "E_HTTP")
        if bool(answer.credential) == signature:
            raise Rejected("E_HTTP", "the server gives another kind of credential than was asked")
        mine = key or answer.credential
        keep(config.state_dir, Credential(answer.device_id, mine, proven=mine))
    return {
        "device_id": answer.device_id,
        "model_sha256": factory,
        "root_sha256": pinned_sha256,
        "root_is_the_servers": answer.root_sha256 == pinned_sha256,
    }


def roll_back(device: LocalDevice) -> dict[str, str]:
    """Go back to the release in the spare slot because a person at the device says so.

    Only along a way that the family signs; the deployment that is left is not tried again.

    Raises:
        NothingToDo: the spare slot holds no good release.
        Rejected: E_DOWNGRADE if no signed edge leads there.
    """
    went_to = device.check_in.go_back("by_hand")
    device.flush()
    return {"running_sha256": went_to, "release": device.journal.memory.good[went_to]}


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Hold the lock of a state folder.

    Raises:
        Busy: another agent holds it.
        Misconfigured: the folder cannot hold state.
    """
    with _able(folder):
        folder.mkdir(parents=True, exist_ok=True)
        file = (folder / "lock").open("w")
    with file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            raise Busy(f"another agent works in {folder}; stop it first") from error
        with _able(folder):
            Slots(folder).try_link()
        yield


@contextmanager
def _able(folder: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        if error.errno not in HOLDS_NO_STATE:
            raise
        why = f"{error.strerror}: it must be writable, and its file system know symbolic links"
        raise Misconfigured(f"{folder} cannot hold state: {why}") from error


def _period_s(asked: float | None, limits: Limits) -> float:
    asked = limits.poll_s if asked is None else asked
    return min(max(asked, limits.poll_s_min), limits.poll_s_max)
