"""The table of what was answered to a request that may come again."""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy.orm import Mapped, mapped_column

from service.db.tables import Table


class Answer(Table):
    """What a POST with an `Idempotency-Key` was answered; kept for a day."""

    actor: Mapped[str] = mapped_column(primary_key=True)
    key: Mapped[str] = mapped_column(primary_key=True)
    request_sha256: Mapped[str]
    status: Mapped[int]
    body: Mapped[Any | None] = mapped_column(sa.JSON(none_as_null=True))  # None: it held a secret
    at: Mapped[datetime] = mapped_column(index=True)
