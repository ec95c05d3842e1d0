"""The tables for programs of people: what they were answered, what they bring and want to hear."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import Index
from sqlalchemy.orm import Mapped, mapped_column

from service.db.columns import Table, one_of


class Answer(Table):
    """What a POST with an `Idempotency-Key` was answered; kept for a day."""

    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int]
    body: Mapped[Any | None] = mapped_column(sa.JSON(none_as_null=True))  # None: it held a secret
    at: Mapped[datetime] = mapped_column(index=True)


class Webhook(Table):
    """An address that is told of entries of the audit log, one after the other."""

    id: Mapped[str] = mapped_column(primary_key=True)
    url: Mapped[str]
    events: Mapped[list[Any]]  # as `rollout.halt`, `release.*`
    state: Mapped[str] = mapped_column(default="active")
    cursor: Mapped[int]  # the last entry that it was told or that is none of its business
    attempts: Mapped[int] = mapped_column(default=0)  # to tell it the next one
    next_at: Mapped[datetime]
    failing_since: Mapped[datetime | None]
    last_error: Mapped[str] = mapped_column(default="")
    created_by: Mapped[str]
    created_at: Mapped[datetime]
    __table_args__ = (one_of("state", "active", "disabled"),)


class Upload(Table):
    """An artifact that a caller brought, or is bringing: what they may bring is limited."""

    id: Mapped[int] = mapped_column(primary_key=True)
    principal: Mapped[str]
    sha256: Mapped[str]
    bytes: Mapped[int]
    at: Mapped[datetime]
    used: Mapped[bool]  # by a release
    __table_args__ = (Index(None, "principal", "at"),)
