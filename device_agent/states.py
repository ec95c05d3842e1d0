"""The cycle of a device: states as values, arrows as signatures.

Each state is a frozen dataclass that holds only what is valid there. It has two methods whose
return annotations are the states that may follow: `step` does what the state is for, `refused`
says where it leads if that must not be done. mypy checks the arrows, and the diagram in
docs/architecture.md is generated from them (`python -m device_agent.diagram`).

Two rules make a power cut harmless. A state is saved before it is entered, so a device resumes by
taking the step of the state it finds. And every step is safe to take twice: the world answers
from what is on the disk, most of all from the digest of a file, not from what was done.

`Rejected` is caught here and becomes a report. `OSError` passes through: the loop tries the same
state again. Pure: the world is the protocol `Device`.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

from device_agent.errors import Rejected
from device_agent.plan import Plan


class Device(Protocol):
    """The world. Every method may raise OSError; those that judge may raise Rejected."""

    def check(self) -> Plan | None:
        """Ask the server; return a verified plan, or None if there is nothing to do."""

    def spare_holds(self, plan: Plan) -> bool:
        """Whether the spare slot, read now, holds the model and its components."""

    def fetch(self, plan: Plan, pipeline: int, failed: str) -> None:
        """Bring every blob of the pipeline, and the canary, whole and verified.

        `failed` says why the pipeline before could not be gone; mostly empty.
        """

    def build(self, plan: Plan, pipeline: int) -> None:
        """Write the new model into the spare slot."""

    def evaluate(self, plan: Plan) -> None:
        """Hear both models on the canary; Rejected if the gate refuses."""

    def switch(self, plan: Plan) -> bool:
        """Make the spare slot the active one, unless it is; false if the order stands no more."""

    def commit(self, plan: Plan) -> bool:
        """Mark the active slot good if its bytes are the ordered ones."""

    def restore(self, sha256: str) -> None:
        """Make the slot with these bytes the active one; Rejected if there is none."""

    def report(self, outcome: Reporting) -> None:
        """Queue the outcome and clear away what the attempt left."""


@dataclass(frozen=True)
class Idle:
    """A good model runs; nothing is under way."""

    def step(self, device: Device) -> Idle | Downloading:
        """Ask for news; only a verified plan starts an attempt."""
        plan = device.check()
        return self if plan is None else Downloading(plan, 0)

    def refused(self, error: Rejected) -> Reporting:
        """Report an answer that must not be acted on."""
        return Reporting(error.deployment, error.about, "refused", error.code, error.message)


@dataclass(frozen=True)
class Attempt:
    """What all states between an offer and its outcome have."""

    plan: Plan

    def over(self, kind: str, reason: str, detail: str) -> Reporting:
        """Return the end of the attempt."""
        return Reporting(self.plan.deployment, str(self.plan.order_seq), kind, reason, detail)


@dataclass(frozen=True)
class OnePipeline(Attempt):
    """One of the plan's pipelines is gone through; if it fails, the next one is."""

    pipeline: int

    def refused(self, error: Rejected) -> Downloading | Reporting:
        """Try the next pipeline; the last one's failure is the reason that is reported."""
        if self.pipeline + 1 < len(self.plan.pipelines):
            return Downloading(self.plan, self.pipeline + 1, error.code)
        return self.over("refused", error.code, error.message)


@dataclass(frozen=True)
class Downloading(OnePipeline):
    """A verified plan; the blobs of one of its pipelines are fetched."""

    failed: str = ""

    def step(self, device: Device) -> Applying | RollingBack:
        """Fetch a pipeline's blobs; an undo needs none, only what the spare slot still holds."""
        plan = self.plan
        if plan.pipelines[self.pipeline][0].op == "undo":
            if not device.spare_holds(plan):
                raise Rejected("E_NO_PIPELINE", "every pipeline of the plan failed")
            return RollingBack(plan, plan.sha256, "rolled_back", "ordered")
        device.fetch(plan, self.pipeline, self.failed)
        return Applying(plan, self.pipeline)


class Applying(OnePipeline):
    """All blobs are here and have their digests; the spare slot is written."""

    def step(self, device: Device) -> Trying:
        """Write the new model beside the running one."""
        device.build(self.plan, self.pipeline)
        return Trying(self.plan)


class Trying(Attempt):
    """The new model is in the spare slot; it is heard on the canary beside the old one."""

    def step(self, device: Device) -> Switching:
        """Let the canary decide whether this device takes the release."""
        device.evaluate(self.plan)
        return Switching(self.plan)

    def refused(self, error: Rejected) -> Reporting:
        """Keep the running model."""
        return self.over("refused", error.code, error.message)


class Switching(Attempt):
    """The gate let it pass; if the order still stands, the slots change places."""

    def step(self, device: Device) -> Committing | Idle:
        """Change slots, unless the server has thought better of it meanwhile."""
        return Committing(self.plan) if device.switch(self.plan) else Idle()

    def refused(self, error: Rejected) -> Reporting:
        """Keep the running model: the new one has changed since it was tried."""
        return self.over("failed", error.code, error.message)


class Committing(Attempt):
    """The new slot is the active one, on trial until its bytes are confirmed."""

    def step(self, device: Device) -> Reporting | RollingBack:
        """Keep the new model if its bytes are the ordered ones; otherwise go back."""
        if device.commit(self.plan):
            return self.over("committed", "", f"release {self.plan.release} runs")
        return RollingBack(self.plan, self.plan.base, "failed", "E_RESULT")

    def refused(self, error: Rejected) -> RollingBack:
        """Go back: the new model is not even a file any more."""
        return RollingBack(self.plan, self.plan.base, "failed", error.code)


@dataclass(frozen=True)
class RollingBack(Attempt):
    """The active slot is left for the one that holds the bytes `to`.

    `kind` and `reason` are those of the report that follows.
    """

    to: str
    kind: str
    reason: str

    def step(self, device: Device) -> Reporting:
        """Return to the bytes in the other slot."""
        device.restore(self.to)
        return self.over(self.kind, self.reason, f"model {self.to[:12]} runs")

    def refused(self, error: Rejected) -> Reporting:
        """Stay: there is nothing to return to."""
        return self.over("failed", error.code, error.message)


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

    def step(self, device: Device) -> Idle:
        """Queue the outcome; sending it is the loop's business and may take days."""
        device.report(self)
        return Idle()


State = Idle | Downloading | Applying | Trying | Switching | Committing | RollingBack | Reporting

BEFORE_THE_SWITCH = (Downloading, Applying, Trying, Switching)


def step(state: State, device: Device) -> State:
    """Do what a state is for and return the state that follows."""
    try:
        return state.step(device)
    except Rejected as error:
        if isinstance(state, Reporting):  # To queue an outcome judges nothing.
            raise
        return state.refused(error)


def give_up(state: State, reason: str) -> Idle | RollingBack | Reporting:
    """Return where a state leads whose attempt must end, because it was saved too often."""
    if isinstance(state, Idle | Reporting):
        return Idle()
    if isinstance(state, Switching | Committing):
        return RollingBack(state.plan, state.plan.base, "failed", reason)
    return state.over("failed", reason, f"gave up in {type(state).__name__}")
