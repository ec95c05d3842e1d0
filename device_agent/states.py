"""The cycle of a device: states as values, arrows as signatures.

Each state is a frozen dataclass that holds only what is valid there. Each has one function, whose
return annotation is the set of states that may follow; mypy checks the arrows, and the diagram in
docs/architecture.md is generated from them (`python -m device_agent.diagram`).

Two rules make a power cut harmless. A state is saved before it is entered, so a device resumes by
running the function of the state it finds. And every function is safe to run twice: the world
answers from what is on the disk, most of all from the digest of a file, not from what was done.

`Rejected` is caught here and becomes a report. `OSError` passes through: the loop tries the same
state again. Pure: the world is the protocol `Device`.
"""

from dataclasses import dataclass
from typing import Protocol, assert_never

from device_agent.errors import Rejected
from device_agent.plan import Plan


@dataclass(frozen=True)
class Idle:
    """A good model runs; nothing is under way."""


@dataclass(frozen=True)
class Downloading:
    """A verified plan; the blobs of one of its pipelines are fetched."""

    plan: Plan
    pipeline: int


@dataclass(frozen=True)
class Applying:
    """All blobs are here and have their digests; the spare slot is written."""

    plan: Plan
    pipeline: int


@dataclass(frozen=True)
class Trying:
    """The new model is in the spare slot; it is heard on the canary beside the old one."""

    plan: Plan


@dataclass(frozen=True)
class Switching:
    """The gate let it pass; if the order still stands, the slots change places."""

    plan: Plan


@dataclass(frozen=True)
class Committing:
    """The new slot is the active one, on trial until its bytes are confirmed."""

    plan: Plan


@dataclass(frozen=True)
class RollingBack:
    """The active slot is left for the one that holds the bytes `to`.

    `kind` and `reason` are those of the report that follows.
    """

    plan: Plan
    to: str
    kind: str
    reason: str


@dataclass(frozen=True)
class Reporting:
    """The attempt is over, for better or worse; its outcome waits to be queued.

    `about` tells two outcomes of one deployment apart: the order's number, or the answer refused.
    """

    deployment: str
    about: str
    kind: str
    reason: str
    detail: str


State = Idle | Downloading | Applying | Trying | Switching | Committing | RollingBack | Reporting

BEFORE_THE_SWITCH = (Downloading, Applying, Trying, Switching)


class Device(Protocol):
    """The world. Every method may raise OSError; those that judge may raise Rejected."""

    def check(self) -> Plan | None:
        """Ask the server; return a verified plan, or None if there is nothing to do."""

    def spare_holds(self, sha256: str) -> bool:
        """Whether the spare slot's bytes, read now, have this digest."""

    def fetch(self, plan: Plan, pipeline: int) -> None:
        """Bring every blob of the pipeline, and the canary, whole and verified."""

    def build(self, plan: Plan, pipeline: int) -> None:
        """Write the new model into the spare slot."""

    def evaluate(self, plan: Plan) -> None:
        """Hear both models on the canary; Rejected if the gate refuses."""

    def still_ordered(self, plan: Plan) -> bool:
        """Ask once more whether the order stands; true if the switch is already done."""

    def switch(self, plan: Plan) -> None:
        """Make the spare slot the active one; nothing if it is."""

    def commit(self, plan: Plan) -> bool:
        """Mark the active slot good if its bytes are the ordered ones."""

    def restore(self, sha256: str) -> None:
        """Make the slot with these bytes the active one; Rejected if there is none."""

    def report(self, outcome: Reporting) -> None:
        """Queue the outcome and clear away what the attempt left."""


def step(state: State, device: Device) -> State:
    """Do what a state is for and return the state that follows."""
    match state:
        case Idle():
            return check(state, device)
        case Downloading():
            return download(state, device)
        case Applying():
            return apply(state, device)
        case Trying():
            return evaluate(state, device)
        case Switching():
            return switch(state, device)
        case Committing():
            return commit(state, device)
        case RollingBack():
            return roll_back(state, device)
        case Reporting():
            return report(state, device)
        case _:
            assert_never(state)


def check(state: Idle, device: Device) -> Idle | Downloading | Reporting:
    """Ask for news; only a verified plan starts an attempt."""
    try:
        plan = device.check()
    except Rejected as error:
        return Reporting(error.deployment, error.about, "refused", error.code, error.message)
    return state if plan is None else Downloading(plan, 0)


def download(
    state: Downloading, device: Device
) -> Downloading | Applying | RollingBack | Reporting:
    """Fetch a pipeline's blobs; an undo needs none, and what fails is not tried again."""
    plan = state.plan
    if state.pipeline >= len(plan.pipelines):
        return _over(plan, "refused", "E_NO_PIPELINE", "every pipeline of the plan failed")
    if plan.pipelines[state.pipeline][0].op == "undo":
        if device.spare_holds(plan.sha256):
            return RollingBack(plan, plan.sha256, "rolled_back", "ordered")
        return Downloading(plan, state.pipeline + 1)
    try:
        device.fetch(plan, state.pipeline)
    except Rejected as error:
        return _next_or_over(state, error)
    return Applying(plan, state.pipeline)


def apply(state: Applying, device: Device) -> Trying | Downloading | Reporting:
    """Write the new model beside the running one."""
    try:
        device.build(state.plan, state.pipeline)
    except Rejected as error:
        return _next_or_over(state, error)
    return Trying(state.plan)


def evaluate(state: Trying, device: Device) -> Switching | Reporting:
    """Let the canary decide whether this device takes the release."""
    try:
        device.evaluate(state.plan)
    except Rejected as error:
        return _over(state.plan, "refused", error.code, error.message)
    return Switching(state.plan)


def switch(state: Switching, device: Device) -> Committing | Idle | Reporting:
    """Change slots, unless the server has thought better of it meanwhile."""
    try:
        if not device.still_ordered(state.plan):
            return Idle()
        device.switch(state.plan)
    except Rejected as error:
        return _over(state.plan, "failed", error.code, error.message)
    return Committing(state.plan)


def commit(state: Committing, device: Device) -> Reporting | RollingBack:
    """Keep the new model if its bytes are the ordered ones; otherwise go back."""
    plan = state.plan
    if device.commit(plan):
        return _over(plan, "committed", "", f"release {plan.release} runs")
    return RollingBack(plan, plan.base, "failed", "E_RESULT")


def roll_back(state: RollingBack, device: Device) -> Reporting:
    """Return to the bytes in the other slot."""
    try:
        device.restore(state.to)
    except Rejected as error:
        return _over(state.plan, "failed", error.code, error.message)
    return _over(state.plan, state.kind, state.reason, f"model {state.to[:12]} runs")


def report(state: Reporting, device: Device) -> Idle:
    """Queue the outcome; sending it is the loop's business and may take days."""
    device.report(state)
    return Idle()


def give_up(state: State, reason: str) -> Idle | RollingBack | Reporting:
    """Return where a state leads whose attempt must end, because it was saved too often."""
    match state:
        case Switching(plan) | Committing(plan):
            return RollingBack(plan, plan.base, "failed", reason)
        case Downloading(plan) | Applying(plan) | Trying(plan) | RollingBack(plan):
            return _over(plan, "failed", reason, f"gave up in {type(state).__name__}")
        case Idle() | Reporting():
            return Idle()
        case _:
            assert_never(state)


def _next_or_over(state: Downloading | Applying, error: Rejected) -> Downloading | Reporting:
    following = state.pipeline + 1
    if following < len(state.plan.pipelines):
        return Downloading(state.plan, following)
    return _over(state.plan, "refused", error.code, error.message)


def _over(plan: Plan, kind: str, reason: str, detail: str) -> Reporting:
    return Reporting(plan.deployment, str(plan.order_seq), kind, reason, detail)
