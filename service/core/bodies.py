"""What people may hand in, and what a field may hold: strict, bounded, nothing extra."""

from datetime import UTC, datetime
from ipaddress import ip_network
from typing import Annotated, Any, Literal

from pydantic import AfterValidator, BaseModel, BeforeValidator, ConfigDict, Field

ERRORS_MAX = 1_000_000
DAY_S = 24 * 60 * 60
YEAR_LEAST, YEAR_MOST = 1970, 9998  # what every database keeps, whatever its time zone


def no_guessing(value: Any) -> Any:
    """Refuse what JSON does not call a number: true, "1"."""
    if isinstance(value, bool | str):
        raise ValueError("a number is required")
    return value


def _moment(value: datetime) -> datetime:
    """Return a time in UTC; without a zone it is UTC already."""
    if not YEAR_LEAST <= value.year <= YEAR_MOST:
        raise ValueError(f"a year from {YEAR_LEAST} to {YEAR_MOST} is required")
    return value.astimezone(UTC) if value.tzinfo else value.replace(tzinfo=UTC)


def _text_only(value: Any) -> Any:
    if not isinstance(value, str):
        raise ValueError("a time is written as text, by ISO 8601")
    return value


Name = Annotated[str, Field(pattern=r"^[a-z0-9][a-z0-9._-]{0,63}$")]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
Signed = Annotated[str, Field(pattern=r"^([0-9a-f]{2}){1,1024}$")]
Text = Annotated[str, Field(max_length=500, pattern=r"^[^\x00]*$")]
Label = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f]+$")]
# No quotes and no backslashes: a key becomes part of a JSON path in a query.
Key = Annotated[str, Field(min_length=1, max_length=128, pattern=r"^[^\x00-\x1f\x7f\"\\]+$")]
Value = Annotated[str, Field(max_length=256, pattern=r"^[^\x00]*$")]
Network = Annotated[Label, AfterValidator(lambda text: str(ip_network(text)))]  # 10.0.0.0/8
Labels = Annotated[dict[Key, Value], Field(max_length=32)]
Moment = Annotated[datetime, AfterValidator(_moment), BeforeValidator(_text_only)]
Count = Annotated[int, Field(ge=0, le=ERRORS_MAX), BeforeValidator(no_guessing)]
Positive = Annotated[int, Field(ge=1, le=1 << 53), BeforeValidator(no_guessing)]
Size = Annotated[int, Field(ge=0, le=1 << 53), BeforeValidator(no_guessing)]
EventName = Annotated[
    str, Field(pattern=r"^(cohort|draft|metadata|release|rollout)\.([a-z_]{1,64}|\*)$")
]
Minute = Annotated[int, Field(ge=0, le=24 * 60 - 1), BeforeValidator(no_guessing)]
NetworkClass = Literal["fast", "slow", "metered"]


class Body(BaseModel):
    """What every request body shares: unknown fields are refused."""

    model_config = ConfigDict(extra="forbid")


class NewModel(Body):
    """A line of speech models."""

    name: Name


class NewToken(Body):
    """A token of the admin API."""

    name: Label
    scopes: Annotated[list[Label], Field(min_length=1, max_length=32)]
    ttl_s: Annotated[int, Field(ge=60, le=365 * 86400), BeforeValidator(no_guessing)] = 90 * 86400
    networks: Annotated[list[Network], Field(min_length=1, max_length=32)] | None = None


class NewWebhook(Body):
    """An address that wants to be told of some kinds of events."""

    url: Annotated[str, Field(max_length=2000, pattern=r"^https?://[\x21-\x7e]+$")]
    events: Annotated[list[EventName], Field(min_length=1, max_length=32)] = ["rollout.*"]


class NewSignature(Body):
    """A signature on a draft, and the digest of what was signed."""

    sha256: Sha256
    sig: Signed


class NewEnrollmentToken(Body):
    """A token that admits `uses` devices."""

    model: Name
    uses: Annotated[int, Field(ge=1, le=1_000_000), BeforeValidator(no_guessing)] = 1
    ttl_s: Annotated[int, Field(ge=60, le=365 * 86400), BeforeValidator(no_guessing)] = 86400
    cohort: Name | None = None


class DeviceFilter(Body):
    """All devices that match every given field."""

    hardware: Annotated[list[Label], Field(max_length=100)] = []
    attributes: Labels = {}
    tags: Labels = {}
    running: Annotated[list[Name], Field(max_length=100)] = []


class NewCohort(Body):
    """A cohort: static (devices) or by filter."""

    name: Name
    model: Name
    devices: Annotated[list[Label], Field(max_length=10_000)] | None = None
    filter: DeviceFilter | None = None


class DeviceChange(Body):
    """What an operator may change about a device."""

    tags: Labels | None = None
    status: Literal["active", "quarantined", "revoked"] | None = None


class NewStage(Body):
    """One stage of a rollout."""

    share_bp: Annotated[int, Field(ge=1, le=10_000), BeforeValidator(no_guessing)]
    soak_s: Annotated[int, Field(ge=0, le=30 * 86400), BeforeValidator(no_guessing)] = 0
    in_flight_max: Positive | None = None


GateValue = Annotated[
    Annotated[int, Field(ge=0, le=1 << 53)]
    | Annotated[float, Field(ge=0, le=1 << 53, allow_inf_nan=False)],
    BeforeValidator(no_guessing),
]


class Window(Body):
    """Minutes after midnight by a device's own clock; it may last over midnight."""

    start_min: Minute
    end_min: Minute


class Conditions(Body):
    """Under which a device may begin an update; it looks again before it downloads."""

    networks: Annotated[list[NetworkClass], Field(max_length=3)] = []
    idle: bool = False
    charging: bool = False
    window: Window | None = None


ANYTIME = Conditions()


class RolloutChange(Body):
    """What may be changed: costs until it ends, its time until it starts; null: no cap, now."""

    start_at: Moment | None = None
    per_minute_max: Positive | None = None
    bytes_max: Positive | None = None


class NewRollout(RolloutChange):
    """One release going to one cohort."""

    model: Name
    release: Name
    cohort: Name
    stages: Annotated[list[NewStage], Field(min_length=1, max_length=20)]
    gate: Annotated[dict[str, GateValue], Field(max_length=32)] = {}
    on_halt: Literal["keep", "revert"] = "revert"
    conditions: Conditions = ANYTIME
    priority: Annotated[int, Field(ge=0, le=9), BeforeValidator(no_guessing)] = 0
    include_new: bool = True
    rollback: bool = False


class Why(Body):
    """Why a person did this."""

    reason: Text = ""


class NewApproval(Body):
    """An approval: the digest of the plan that was seen and, where keys approve, a signature."""

    plan: Sha256
    keyid: Sha256 | None = None
    sig: Signed | None = None
