"""Why a device gets nothing, by name, and what one rule found about it."""

from dataclasses import dataclass
from datetime import datetime
from enum import StrEnum


class Hold(StrEnum):
    """Why a device gets no offer; not an error."""

    UP_TO_DATE = "up_to_date"
    NO_ROLLOUT = "no_rollout"
    ORDER_PENDING = "order_pending"
    NOT_IN_COHORT = "not_in_cohort"
    NOT_IN_STAGE = "not_in_stage"
    CONDITIONS = "conditions"
    OUTSIDE_WINDOW = "outside_window"
    STAGE_FULL = "stage_full"
    PER_MINUTE = "per_minute"
    BUDGET = "budget"
    PAUSED = "paused"
    BACKOFF = "backoff"
    NO_PIPELINE = "no_pipeline"
    AGENT_TOO_OLD = "agent_too_old"
    FLOOR = "floor"
    NOTHING_PUBLISHED = "nothing_published"
    METADATA_EXPIRED = "metadata_expired"
    QUARANTINED = "quarantined"
    # Told to people only: a device that is let in no more, and one for which another goes first.
    REVOKED = "revoked"
    OTHER_FIRST = "other_first"


@dataclass(frozen=True)
class Finding:
    """One rule, as it was applied to one device.

    Attributes:
        rule: its name.
        compared: what it compared, as a sentence.
        hold: why it stops the device; None: the device passes.
        rollout: the one that it was applied for; None: for none in particular.
        until: when time alone lets the device pass.
    """

    rule: str
    compared: str
    hold: Hold | None = None
    rollout: str | None = None
    until: datetime | None = None
