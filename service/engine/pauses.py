"""The end of a pause: a person lets go what takes a person, and nothing else."""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core import policy
from service.core.errors import StillHeld
from service.db.rollout_tables import Rollout
from service.engine import rollouts
from service.engine.tick import observe


def resume(
    session: Session,
    rollout_id: str,
    reason: str,
    actor: str,
    now: datetime,
    timeout: timedelta,
    full_downloads: bool,
) -> Rollout:
    """Go on, and count failures from here; what the gate left undecided passes on this word.

    Raises:
        StillHeld: a reason that ends with its cause alone still holds it; nothing changed.
    """
    rollout = rollouts.changing(session, rollout_id, "paused")
    rollout.full_downloads |= full_downloads
    seen = observe(session, rollout, now, timeout)
    asked = {*rollout.reasons, "metadata_expiring"}
    so = {name: why for name, why in policy.held_by(seen).items() if name in asked}
    if so:
        told = "; ".join(f"{name}: {why}" for name, why in so.items())
        detail = f"rollout {rollout.id} waits until {policy.waits_for(so)} ({told})"
        raise StillHeld(detail, reasons=sorted(so))
    decision = "override" if "gate_undecided" in rollout.reasons else "resume"
    zero: dict[str, Any] = {"finished_before": seen.finished, "failures_before": seen.failures}
    rollouts.go_on(session, rollout, decision, reason, actor, now, timeout, **zero)
    return rollout
