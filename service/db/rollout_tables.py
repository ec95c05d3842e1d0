"""The tables of a rollout: to whom, in which stages, how it went on each device, and why.

Counts of word errors are integers, so that a sum never depends on the order of reports.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Table


class Cohort(Table):
    """A set of devices of one model: listed by hand, or all that match a filter."""

    __tablename__ = "cohort"
    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    filter: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    created_at: Mapped[datetime]


class CohortMember(Table):
    """One device of a static cohort."""

    __tablename__ = "cohort_member"
    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)


class Rollout(Table):
    """One release going to one cohort, in stages."""

    __tablename__ = "rollout"
    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"))
    state: Mapped[str]
    reasons: Mapped[list[Any]]  # why it is paused
    stage: Mapped[int]
    generation: Mapped[int]
    salt: Mapped[str]
    gate: Mapped[dict[str, Any]]
    gate_sha256: Mapped[str]
    on_halt: Mapped[str]
    halt_reason: Mapped[str]
    waiting_for: Mapped[str]
    created_at: Mapped[datetime]
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    __table_args__ = (
        Index(None, "model", "state"),
        CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'completed', 'halted', 'canceled')",
            name="state",
        ),
        CheckConstraint("on_halt IN ('keep', 'revert')", name="on_halt"),
    )


class Stage(Table):
    """One share of a rollout."""

    __tablename__ = "stage"
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    share_bp: Mapped[int]
    soak_s: Mapped[int]
    in_flight_max: Mapped[int | None]
    in_flight: Mapped[int]
    state: Mapped[str]
    started_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("share_bp BETWEEN 1 AND 10000", name="share"),
        CheckConstraint("in_flight >= 0", name="in_flight"),
        CheckConstraint("state IN ('waiting', 'running', 'passed', 'halted')", name="state"),
    )


class Deployment(Table):
    """One device inside one rollout: forward once, and back if the rollout is reverted."""

    __tablename__ = "deployment"
    id: Mapped[str] = mapped_column(primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    direction: Mapped[str]
    stage: Mapped[int]
    from_sha256: Mapped[str]
    to_sha256: Mapped[str]
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    state: Mapped[str]
    reason: Mapped[str]
    bytes_sent: Mapped[int]
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    __table_args__ = (
        UniqueConstraint("rollout_id", "device_id", "direction"),
        Index(None, "rollout_id", "state"),
        CheckConstraint("direction IN ('forward', 'back')", name="direction"),
        CheckConstraint(
            "state IN ('offered', 'downloading', 'applied', 'activated', 'confirmed', "
            "'refused', 'failed', 'canceled', 'rolled_back')",
            name="state",
        ),
    )


class Event(Table):
    """What a device said it did; numbered by the device, kept once."""

    __tablename__ = "event"
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    kind: Mapped[str]
    deployment_id: Mapped[str]
    reason: Mapped[str]
    detail: Mapped[str]
    bytes: Mapped[int]
    at: Mapped[datetime]  # the device's clock
    received_at: Mapped[datetime]


class CanaryReport(Table):
    """One device's counts of the old and the new model on its shard; all are kept."""

    __tablename__ = "canary_report"
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    report_id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[int]
    counted: Mapped[bool]  # the first pair of a device counts, later ones are kept
    canary_set: Mapped[str]
    shard: Mapped[str]
    runtime: Mapped[str]
    gate: Mapped[str]
    ref_words: Mapped[int]
    old_sub: Mapped[int]
    old_del: Mapped[int]
    old_ins: Mapped[int]
    new_sub: Mapped[int]
    new_del: Mapped[int]
    new_ins: Mapped[int]
    old_ms: Mapped[int]
    new_ms: Mapped[int]
    received_at: Mapped[datetime]
    __table_args__ = (
        Index(
            "uq_canary_report_first_pair",
            "rollout_id",
            "device_id",
            unique=True,
            sqlite_where=sa.text("counted"),
            postgresql_where=sa.text("counted"),
        ),
    )


class CanarySums(Table):
    """Six integers are the whole state of the statistic, in units of 1e-5 WER."""

    __tablename__ = "canary_sums"
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    n: Mapped[int]
    sd: Mapped[int]
    sdd: Mapped[int]
    sb: Mapped[int]
    sbb: Mapped[int]
    sdb: Mapped[int]


class Decision(Table):
    """Why a rollout moved or stopped; append-only, recomputable from its row."""

    __tablename__ = "rollout_decision"
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    seq: Mapped[int] = mapped_column(primary_key=True)
    at: Mapped[datetime]
    stage: Mapped[int]
    decision: Mapped[str]
    reason: Mapped[str]
    actor: Mapped[str]
    evidence: Mapped[dict[str, Any]]
