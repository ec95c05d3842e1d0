"""Every SELECT over canary pairs and their sums."""

from collections.abc import Sequence
from typing import Any

from sqlalchemy import Select, String, case, cast, func, literal, select, true, union_all
from sqlalchemy.orm import Session

from service.db.rollout_tables import CanaryReport, CanarySums, Rollout
from service.db.tables import EnrollmentToken, Release


def summed(rollout_id: str, columns: Sequence[str]) -> Select[Any]:
    """Return the query for the canary sums of a rollout by arm and scope, without batches."""
    s = CanarySums
    rows = select(s.arm, s.scope, *(func.sum(getattr(s, name)) for name in columns))
    rows = rows.where(s.rollout_id == rollout_id, s.scope.not_like("batch:%"))
    return rows.group_by(s.arm, s.scope).order_by(func.sum(s.n).desc(), s.scope)


def pairs_in(session: Session, rollout_id: str, *scopes: str) -> list[int]:
    """Return how many pairs of both arms count in each scope."""
    s = CanarySums
    # By its key from the front: each batch of a fleet has a row here.
    key = (s.rollout_id == rollout_id, s.arm.in_(("canary", "control")), s.scope.in_(scopes))
    rows = select(s.scope, func.sum(s.n)).where(*key)
    found = {scope: int(n) for scope, n in session.execute(rows.group_by(s.scope))}
    return [found.get(scope, 0) for scope in scopes]


def recounted(rollout_id: str, columns: Sequence[str]) -> Any:
    """Return the query for the sums ("sums") and for the pairs added up again ("pairs")."""
    r, s = CanaryReport, CanarySums
    old, new = r.old_sub + r.old_del + r.old_ins, r.new_sub + r.new_del + r.new_ins
    base = r.base_sub + r.base_del + r.base_ins
    against_old, against_base = (r.d, r.b, old), (r.chain_d, r.chain_b, base)
    scopes: list[tuple[Any, Any, Any]] = [
        (literal("all"), against_old, true()),
        (literal("stage:").concat(cast(r.stage, String)), against_old, true()),
        (literal("hw:").concat(r.hardware), against_old, r.arm == "canary"),
        (literal("batch:").concat(r.batch), against_old, r.batch.is_not(None)),
        (literal("chain"), against_base, r.chain_d.is_not(None)),
    ]
    for name in ("differ", "empty", "latency"):
        d = getattr(r, f"{name}_d")
        scopes.append((literal(f"signal:{name}"), (d, literal(0), old), d.is_not(None)))
    sides = []
    for scope, (d, b, errors), which in scopes:
        added = (literal(1), d, d * d, b, b * b, d * b, errors, new, r.ref_words)
        rows = select(literal("pairs"), r.arm, scope, *map(func.sum, added))
        rows = rows.where(r.rollout_id == rollout_id, r.counted, which)
        sides.append(rows.group_by(r.arm, scope))
    kept = select(literal("sums"), s.arm, s.scope, *(func.sum(getattr(s, n)) for n in columns))
    sides.append(kept.where(s.rollout_id == rollout_id).group_by(s.arm, s.scope))
    return union_all(*sides)


def earlier_trial(
    session: Session, device_id: str, model_sha256: str, **same: str
) -> CanaryReport | None:
    """Return a device's newest report in whose trial this model was the new one."""
    brought_it = select(Rollout.id).join(Rollout.release).where(Release.sha256 == model_sha256)
    rows = (
        select(CanaryReport)
        .filter_by(device_id=device_id, arm="canary", **same)
        .where(CanaryReport.rollout_id.in_(brought_it))
        .order_by(CanaryReport.received_at.desc())
    )
    return session.scalars(rows.limit(1)).first()


def admitted_by(session: Session, token_id: str) -> tuple[int, int]:
    """Return how many devices an enrollment token admitted, and how many all of its model did."""
    t = EnrollmentToken
    model = select(t.model).where(t.id == token_id).scalar_subquery()
    ours = func.sum(case((t.id == token_id, t.admitted), else_=0))
    mine, every = session.execute(select(ours, func.sum(t.admitted)).where(t.model == model)).one()
    return int(mine or 0), int(every or 0)
