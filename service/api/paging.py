"""Lists come in pages: rows after a cursor, by a key in whose order nothing new gets in between.

`next` is the key of the last row, to be passed as `cursor`; null: this was the last page.
"""

from collections.abc import Sequence
from typing import Annotated, Any

from fastapi import Query

LIMIT = 100
Limit = Annotated[int, Query(ge=1, le=500)]


def page(items: Sequence[dict[str, Any]], key: str, limit: int) -> dict[str, Any]:
    """Return a page as a reply, of rows that have a key."""
    return {"items": items, "next": items[-1][key] if len(items) == limit else None}
