"""The tables of a rollout: to whom, in which stages, how it went on each device, and why.

Counts of word errors are integers, so that a sum never depends on the order of reports.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.columns import Table, one_of
from service.db.tables import Release

OPEN = ("offered", "downloading", "applied", "activated")  # a deployment without an outcome
LIVE = ("running", "paused")
UNSTARTED = ("draft", "awaiting_approval", "scheduled")
ENDED = ("completed", "halted", "canceled")
COUNTED = {"forward": ("confirmed", "refused", "failed", "canceled"), "back": ("rolled_back",)}
STATES = (*UNSTARTED, *LIVE, *ENDED)


class Floor(Table):
    """A release that a device must have run before it gets a later one."""

    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"), primary_key=True)
    reason: Mapped[str]
    created_at: Mapped[datetime]
    release: Mapped[Release] = relationship()


class Cohort(Table):
    """A set of devices of one model: listed by hand, or all that match a filter."""

    id: Mapped[int] = mapped_column(primary_key=True)
    name: Mapped[str] = mapped_column(unique=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    filter: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    created_at: Mapped[datetime]


class CohortMember(Table):
    """One device of a static cohort."""

    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)


class Rollout(Table):
    """One release going to one cohort, in stages."""

    id: Mapped[str] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    cohort_id: Mapped[int] = mapped_column(ForeignKey("cohort.id"))
    state: Mapped[str] = mapped_column(default="draft")
    reasons: Mapped[list[Any]] = mapped_column(default=list)  # why it is paused
    paused_at: Mapped[datetime | None]
    # Outcomes and failures that a person had seen when he resumed it: the new zero.
    finished_before: Mapped[int] = mapped_column(default=0, server_default="0")
    failures_before: Mapped[int] = mapped_column(default=0, server_default="0")
    full_downloads: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    stage: Mapped[int] = mapped_column(default=1)
    generation: Mapped[int] = mapped_column(default=0)
    salt: Mapped[str]
    conditions: Mapped[dict[str, Any]] = mapped_column(default=dict, server_default="{}")
    priority: Mapped[int] = mapped_column(default=0, server_default="0")  # the highest goes first
    include_new: Mapped[bool] = mapped_column(default=True, server_default=sa.true())
    rollback: Mapped[bool] = mapped_column(default=False, server_default=sa.false())
    gate: Mapped[dict[str, Any]]
    gate_sha256: Mapped[str]
    base_sha256: Mapped[str | None]  # where the chain of patches to the release begins
    classes: Mapped[list[Any] | None] = mapped_column(sa.JSON(none_as_null=True))  # of hardware
    verified_at: Mapped[datetime | None]  # when the sums were last compared with the pairs
    reports_deleted_at: Mapped[datetime | None]  # from then on there is nothing to compare
    on_halt: Mapped[str]
    halt_reason: Mapped[str] = mapped_column(default="")
    waiting_for: Mapped[str]
    created_at: Mapped[datetime]
    start_at: Mapped[datetime | None]  # not before
    started_at: Mapped[datetime | None]
    finished_at: Mapped[datetime | None]
    created_by: Mapped[str | None]
    asked_by: Mapped[str | None]  # who started it where that takes an approval
    devices: Mapped[int | None]  # of its cohort, when that was asked for
    approvals: Mapped[list[Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    release: Mapped[Release] = relationship()
    cohort: Mapped[Cohort] = relationship()
    stages: Mapped[list["Stage"]] = relationship(order_by="Stage.number")
    budget: Mapped["Budget | None"] = relationship()

    @property
    def current_stage(self) -> "Stage":
        """The stage that runs, or ran last."""
        return self.stages[self.stage - 1]

    def takes(self, running: Release | None) -> bool:
        """Whether it moves who runs this; back only if it is a rollback, along a signed edge."""
        if running is None or running.seq < self.release.seq:
            return True
        return self.rollback and running.name in self.release.rollback_from

    __table_args__ = (
        Index(None, "model", "state"),
        CheckConstraint("(state = 'paused') = (paused_at IS NOT NULL)", name="paused"),
        one_of("state", *STATES),
        one_of("on_halt", "keep", "revert"),
    )


class Stage(Table):
    """One share of a rollout, with what became of its deployments: no view has to count them."""

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    number: Mapped[int] = mapped_column(primary_key=True)
    share_bp: Mapped[int]
    soak_s: Mapped[int]
    in_flight_max: Mapped[int | None]
    in_flight: Mapped[int] = mapped_column(default=0)  # and COUNTED, with their bytes, as they are
    confirmed: Mapped[int] = mapped_column(default=0, server_default="0")
    refused: Mapped[int] = mapped_column(default=0, server_default="0")
    failed: Mapped[int] = mapped_column(default=0, server_default="0")
    canceled: Mapped[int] = mapped_column(default=0, server_default="0")
    rolled_back: Mapped[int] = mapped_column(default=0, server_default="0")
    bytes_sent: Mapped[int] = mapped_column(default=0, server_default="0")
    finished: Mapped[int] = mapped_column(default=0, server_default="0")  # devices with an outcome
    failures: Mapped[int] = mapped_column(default=0, server_default="0")  # that refused or failed
    state: Mapped[str] = mapped_column(default="waiting")
    started_at: Mapped[datetime | None]
    __table_args__ = (
        CheckConstraint("share_bp BETWEEN 1 AND 10000", name="share"),
        CheckConstraint("in_flight >= 0", name="in_flight"),
        one_of("state", "waiting", "running", "passed", "halted"),
    )


class Budget(Table):
    """What a rollout may cost, if somebody said so, and what it did: see `deployments.grant`."""

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    per_minute_max: Mapped[int | None]
    bytes_max: Mapped[int | None]
    minute: Mapped[int] = mapped_column(default=0)  # of the clock, since 1970
    granted: Mapped[int] = mapped_column(default=0)  # within that minute
    # Spent, as devices tell, and what those on their way may spend at the worst.
    bytes_committed: Mapped[int] = mapped_column(default=0)
    __table_args__ = (CheckConstraint("bytes_committed >= 0", name="bytes_committed"),)


class Deployment(Table):
    """One device inside one rollout: forward, and back if the rollout is reverted.

    Each attempt has an id of its own: what comes late of an earlier one names nothing any more.
    """

    id: Mapped[str] = mapped_column(primary_key=True)
    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"))
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), index=True)
    direction: Mapped[str]
    stage: Mapped[int]
    from_sha256: Mapped[str]
    to_sha256: Mapped[str]
    release_id: Mapped[int] = mapped_column(ForeignKey("release.id"))
    state: Mapped[str] = mapped_column(default="offered")
    reason: Mapped[str] = mapped_column(default="")
    bytes_sent: Mapped[int] = mapped_column(default=0)
    bytes_reserved: Mapped[int] = mapped_column(default=0, server_default="0")  # sent at the worst
    failures: Mapped[int] = mapped_column(default=0, server_default="0")  # attempts that were none
    retry_at: Mapped[datetime | None]  # the next attempt; None: when somebody says so
    way: Mapped[str] = mapped_column(server_default="")  # it was done, as the device tells
    failed_way: Mapped[str] = mapped_column(server_default="")  # the first that could not be done
    created_at: Mapped[datetime]
    updated_at: Mapped[datetime]
    deadline_at: Mapped[datetime]
    rollout: Mapped[Rollout] = relationship()
    release: Mapped[Release] = relationship()
    __table_args__ = (
        UniqueConstraint("rollout_id", "device_id", "direction"),
        Index(None, "rollout_id", "state"),
        one_of("direction", "forward", "back"),
        one_of("state", *OPEN, "confirmed", "refused", "failed", "canceled", "rolled_back"),
    )


class Event(Table):
    """What a device said it did; numbered by the device, kept once."""

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

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    report_id: Mapped[str] = mapped_column(primary_key=True)
    stage: Mapped[int]
    counted: Mapped[bool]  # the first pair of a device counts, later ones are kept
    arm: Mapped[str] = mapped_column(server_default="canary")
    hardware: Mapped[str] = mapped_column(server_default="")
    batch: Mapped[str | None]
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
    base_sub: Mapped[int | None]
    base_del: Mapped[int | None]
    base_ins: Mapped[int | None]
    # What it adds to the sums, in units of 1e-5 WER: against the old model, and the chain's base.
    d: Mapped[int | None]
    b: Mapped[int | None]
    chain_d: Mapped[int | None]
    chain_b: Mapped[int | None]
    worse_utts: Mapped[int | None]
    better_utts: Mapped[int | None]
    differ_utts: Mapped[int | None]  # with another transcript
    old_empty: Mapped[int | None]  # utterances in which a model heard nothing
    new_empty: Mapped[int | None]
    together: Mapped[bool | None]  # both were heard in this trial: their times are of one load
    differ_d: Mapped[int | None]  # what it adds to each signal, in the same units
    empty_d: Mapped[int | None]
    latency_d: Mapped[int | None]
    window_start: Mapped[datetime | None]  # the hour of the trial, by the device's clock
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
    """Six integers are the whole state of the statistic, in units of 1e-5 WER.

    A scope is `all`, `stage:N`, `hw:CLASS`, `chain`, `signal:NAME` or `batch:TOKEN`; it lies in
    several rows where writers would wait for each other.
    """

    rollout_id: Mapped[str] = mapped_column(ForeignKey("rollout.id"), primary_key=True)
    arm: Mapped[str] = mapped_column(primary_key=True)
    scope: Mapped[str] = mapped_column(primary_key=True)
    slot: Mapped[int] = mapped_column(primary_key=True)
    n: Mapped[int]
    sd: Mapped[int]
    sdd: Mapped[int]
    sb: Mapped[int]
    sbb: Mapped[int]
    sdb: Mapped[int]
    old_errors: Mapped[int]
    new_errors: Mapped[int]
    ref_words: Mapped[int]
    __table_args__ = (one_of("arm", "canary", "control"),)


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
