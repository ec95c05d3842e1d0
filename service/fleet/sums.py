"""The sums of canary pairs: one upsert a scope adds, and whoever counts again finds the same.

They are integers, so a sum is exact and does not depend on the order of reports. The pairs are
kept beside it, and whoever adds them up again must find the very same numbers.
"""

from collections.abc import Mapping
from typing import NamedTuple

from sqlalchemy.orm import Session

from service.core import policy
from service.core.canary import Sums
from service.db import pairs as stored
from service.db.rollout_tables import CanarySums
from service.db.session import insert_into

SLOTS = 16  # on PostgreSQL, where writers of one row wait for each other; SQLite has one writer
COLUMNS = tuple("n sd sdd sb sbb sdb old_errors new_errors ref_words".split())
KEY = "rollout_id arm scope slot".split()
Key = tuple[str, str]  # arm, scope


class Errors(NamedTuple):
    """Word errors of both models and the words that they heard."""

    old: int
    new: int
    words: int


Scopes = Mapping[Key, tuple[Sums, Errors]]
NOTHING = Sums(), Errors(0, 0, 0)


class Pair(NamedTuple):
    """What one device adds to a scope."""

    d: int
    b: int
    errors: Errors

    def columns(self) -> dict[str, int]:
        """Return what to add to each column."""
        d, b = self.d, self.b
        return dict(zip(COLUMNS, (1, d, d * d, b, b * b, d * b, *self.errors), strict=True))


def add(
    session: Session, rollout_id: str, device_id: str, arm: str, pairs: Mapping[str, Pair]
) -> None:
    """Add a device's pair to each scope, whoever else adds at the same time.

    One row after the other and always in one order, so that nobody waits in a circle.
    """
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    slot = 0 if is_sqlite else policy.bucket(rollout_id, device_id) % SLOTS
    ours = {"rollout_id": rollout_id, "arm": arm, "slot": slot}
    rows = [ours | {"scope": scope} | pairs[scope].columns() for scope in sorted(pairs)]
    adding = insert_into(session, CanarySums)
    more = {name: getattr(CanarySums, name) + adding.excluded[name] for name in COLUMNS}
    if rows:
        # Past the ORM, which would make one statement of the rows.
        adding = adding.on_conflict_do_update(index_elements=KEY, set_=more)
        session.connection().execute(adding, rows)


def by_scope(session: Session, rollout_id: str) -> Scopes:
    """Return (arm, scope) -> its sums, of all scopes but batches, those with most pairs first."""
    return {
        (arm, scope): (Sums(*map(int, values[:6])), Errors(*map(int, values[6:])))
        for arm, scope, *values in session.execute(stored.summed(rollout_id, COLUMNS))
    }


def disagreements(session: Session, rollout_id: str) -> list[str]:
    """Add up the pairs that count once more; returns each scope whose sums are something else.

    One statement, so that both sides are of one moment, however many devices report meanwhile.
    """
    counted: dict[Key, tuple[int, ...]] = {}
    kept: dict[Key, tuple[int, ...]] = {}
    for side, arm, scope, *values in session.execute(stored.recounted(rollout_id, COLUMNS)):
        (counted if side == "pairs" else kept)[arm, scope] = tuple(map(int, values))
    differing = sorted(
        key for key in counted.keys() | kept.keys() if counted.get(key) != kept.get(key)
    )
    return [
        f"{arm} {scope}: the sums are {kept.get((arm, scope))}, the pairs add up to "
        f"{counted.get((arm, scope))} ({' '.join(COLUMNS)})"
        for arm, scope in differing
    ]
