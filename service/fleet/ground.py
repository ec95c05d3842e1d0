"""The ground that answers to polls stand on: all of a model that is the same for every device.

It is kept in memory under the model's generation, which whatever changes it counts up in the same
transaction (`service.db.changes`). Whoever polls reads that number with its own rows, so what is
taken from here is what the database holds at that moment, whichever process wrote it.
"""

from collections.abc import Callable, Hashable, Mapping, Sequence
from dataclasses import dataclass, field
from datetime import datetime, timedelta
from typing import Any, NamedTuple, TypeVar

from sqlalchemy.orm import Session

from service.db import changes, documents, queries
from service.db.rollout_tables import Floor, Rollout
from service.db.tables import Artifact, CanarySet, MetadataFile, Model, Release
from trust.roles import family_role

Made = TypeVar("Made")
# Counts of patches that devices made or could not make change all the time, and no generation.
LASTS = timedelta(minutes=1)
MADE_MAX = 1000


class Canary(NamedTuple):
    """The canary set of a model, and what picks a device's shard of it."""

    set: CanarySet
    bytes: int
    salt: str


@dataclass(frozen=True)
class Ground:
    """What was read of a model; its rows belong to no session, and are never changed.

    Attributes:
        rollouts: by id: running and paused ones, and those that take their devices back.
        ends: role -> when its newest version expires, of what people sign.
        timestamp: the newest, if anything is published.
    """

    model: str
    generation: int
    read_at: datetime
    releases: Mapping[int, Release]
    rollouts: Mapping[str, Rollout]
    floors: Sequence[Floor]
    ends: Mapping[str, datetime]
    canary: Canary | None
    timestamp: MetadataFile | None
    _made: dict[Hashable, Any] = field(default_factory=dict)

    def once(self, key: Hashable, make: Callable[[], Made]) -> Made:
        """Return what was made of this ground under this key, or make it now."""
        if (made := self._made.get(key)) is None:
            if len(self._made) >= MADE_MAX:
                self._made.clear()
            made = self._made[key] = make()
        return made

    def forget(self, session: Session) -> None:
        """Do not take this from memory again."""
        session.info["grounds"].pop(self.model, None)

    def release(self, sha256: str) -> Release | None:
        """Return the release with these bytes."""
        return next((r for r in self.releases.values() if r.sha256 == sha256), None)


def ground_of(session: Session, model: str, generation: int, now: datetime) -> Ground:
    """Return the ground under a model's devices, from memory if it is still that of the database.

    Args:
        session: to read from; what it changed itself is never in memory.
        model: the name.
        generation: that this transaction read of it.
        now: the time.
    """
    known: dict[str, Ground] = session.info["grounds"]
    ground = known.get(model)
    if changes.touched_models(changes.touched(session)):
        return read(session, model, now)
    if ground is None or ground.generation != generation or abs(now - ground.read_at) >= LASTS:
        ground = known[model] = read(session, model, now)
    return ground


def read(session: Session, model: str, now: datetime) -> Ground:
    """Read the ground of a model as a session sees it."""
    # By a session of its own on the same transaction: what it reads outlives it, and is nobody's.
    with Session(session.connection(), join_transaction_mode="rollback_only") as apart:
        # First: whatever is committed after this has another generation.
        row = apart.get_one(Model, model)
        return Ground(
            model,
            row.generation,
            now,
            {release.id: release for release in queries.releases_of(apart, model)},
            {rollout.id: rollout for rollout in queries.steering_rollouts(apart, model)},
            queries.floors_of(apart, model),
            documents.newest_ends(apart, offline(model)),
            canary_of(apart, row),
            documents.newest_metadata(apart, "timestamp"),
        )


def offline(model: str) -> tuple[str, ...]:
    """Return the roles that people sign for a model."""
    return ("root", "targets", family_role(model))


def canary_of(session: Session, model: Model) -> Canary | None:
    """Return the canary set of a model, if it has one."""
    found = session.get(CanarySet, model.name)
    size = session.get_one(Artifact, found.sha256).bytes if found else 0
    return Canary(found, size, model.canary_salt) if found else None
