"""What devices may hand in: strict, bounded, nothing extra."""

from datetime import datetime
from typing import Annotated, Literal

from pydantic import AfterValidator, BeforeValidator, Field

from service.core.bodies import (
    DAY_S,
    ERRORS_MAX,
    Body,
    Count,
    Label,
    Labels,
    Moment,
    Name,
    Positive,
    Sha256,
    Size,
    Text,
    no_guessing,
)

EventKind = Literal[
    "downloading", "applied", "refused", "activated", "committed", "rolled_back", "failed", "note"
]


def _hour(value: datetime) -> datetime:
    """Refuse what tells more than the hour."""
    if value.minute or value.second or value.microsecond:
        raise ValueError("a full hour is required")
    return value


class Enrollment(Body):
    """A device introduces itself."""

    enrollment_token: Label
    model: Name
    serial: Label
    hardware: Label
    attributes: Labels = Field(default={})
    agent_version: Label
    public_key: Annotated[
        Sha256 | None, Field(description="Ed25519, in hexadecimal: by which this request is signed")
    ] = None


class NewKey(Body):
    """The Ed25519 key, in hexadecimal, with which a device that signs will sign from now on."""

    public_key: Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]


class Surroundings(Body):
    """Where a device is, as conditions ask for it."""

    utc_offset_s: Annotated[int, Field(ge=-DAY_S, le=DAY_S), BeforeValidator(no_guessing)]
    network: Literal["", "fast", "slow", "metered"] = ""
    idle: bool = False
    charging: bool = False


class Capacity(Body):
    """What a device has for an update."""

    memory_bytes: Size
    room_bytes: Size
    goes_back: bool = False
    surroundings: Surroundings | None = None


class DeviceEvent(Body):
    """Something a device did."""

    seq: Positive
    kind: EventKind
    deployment_id: Annotated[str, Field(pattern=r"^[0-9a-f]{0,64}$", alias="deployment")] = ""
    at: Moment
    reason: Annotated[str, Field(max_length=64, pattern=r"^[\x20-\x7e]*$")] = ""
    detail: Text = ""
    bytes: Size = 0


class DeviceEvents(Body):
    """A batch of events."""

    events: Annotated[list[DeviceEvent], Field(min_length=1, max_length=100)]


class Counts(Body):
    """Word errors of one model on one shard."""

    sub: Count
    delete: Annotated[Count, Field(alias="del")]
    ins: Count

    @property
    def total(self) -> int:
        """All errors."""
        return self.sub + self.delete + self.ins


class NewCanaryReport(Body):
    """A device's counts of the old and the new model on its shard, and of the chain's base."""

    report_id: Annotated[str, Field(pattern=r"^[0-9a-f]{32}$")]
    attempt: Positive
    deployment: Annotated[str, Field(max_length=64, pattern=r"^[0-9a-f]+$")]
    old_model: Sha256
    new_model: Sha256
    canary_set: Sha256
    shard: Label
    scorer: Literal["wer/1"]
    runtime: Label
    utterances: Annotated[int, Field(ge=1, le=ERRORS_MAX), BeforeValidator(no_guessing)]
    ref_words: Annotated[int, Field(ge=1, le=ERRORS_MAX), BeforeValidator(no_guessing)]
    order: Literal["old_first", "new_first"]
    old: Counts
    new: Counts
    old_ms: Size
    new_ms: Size
    gate: Literal["activated", "refused"]
    base: Counts | None = None
    worse_utts: Count | None = None
    better_utts: Count | None = None
    differ_utts: Count | None = None
    old_empty: Count | None = None
    new_empty: Count | None = None
    together: Annotated[bool, Field(strict=True)] | None = None
    window_start: Annotated[Moment, AfterValidator(_hour)] | None = None
