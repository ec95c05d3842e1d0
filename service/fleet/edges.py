"""Ways back as the family signed them: which a rollout may go, and which no floor allows."""

from collections.abc import Sequence
from datetime import datetime

from sqlalchemy.orm import Session

from service.core.errors import NoEdge
from service.db import queries
from service.db.rollout_tables import Floor, Rollout
from service.db.tables import Release
from service.fleet import sample


def check_edges(session: Session, rollout: Rollout, now: datetime) -> None:
    """See to it that a rollback leads back along edges that the family signed.

    Raises:
        NoEdge: none leads to its release, or none from what its devices run.
    """
    if not rollout.rollback:
        return
    target, running = rollout.release, sample.of_cohort(session, rollout).by_release
    later = [r for r in queries.releases_of(session, target.model) if r.seq > target.seq]
    left = [release for release in later if running.get(release.id)]
    signed = [release for release in later if target.takes_back(release, now)]
    if any(release in signed for release in left or later):
        return
    # Whom no sample shows is looked for, before anybody is refused.
    if not (signed and queries.any_runs(session, rollout.cohort, signed)):
        names = ", ".join(release.name for release in left or later) or "any later release"
        raise NoEdge(
            f"the family signs no way back from {names} to {target.name} that is open; publish "
            "the bytes as a new release, or sign the edge (fleetdiff release withdraw --fallback)",
            release=target.name,
        )


def ended(session: Session, rollout: Rollout, now: datetime) -> str:
    """Return, in words, that no way of a rollback is signed any more; nothing while one is."""
    if not rollout.rollback:
        return ""
    target = rollout.release
    releases = queries.releases_of(session, rollout.model)
    signed = any(target.takes_back(release, now) for release in releases)
    return "" if signed else f"the family signs no way back to {target.name} any more"


def undone_floor(floors: Sequence[Floor], target: Release, running: Release) -> Floor | None:
    """Return a floor that a way back would undo."""
    return next((f for f in floors if target.seq < f.release.seq <= running.seq), None)
