"""When signed documents run out, and what keeps the publisher from signing.

Expiry is a state of health, a metric and an alert, never a surprise: nothing that expires stops a
device from running its model, but every update waits until somebody has signed again.
"""

import threading
from collections import Counter
from collections.abc import Iterator
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core.words import counted
from service.db import documents, queries
from service.db.artifacts import undeleted
from service.db.tables import PublisherState
from trust.roles import ONLINE_ROLES, TOP_LEVEL_ROLES, family_role

# Days before the end at which somebody should know, the calmest first; `deploy/alerts.yaml` has
# the same. What a process signs again by itself at half of its life is late long before that.
ALARM_DAYS = {
    "root": (60, 30, 7),
    "targets": (60, 30, 7),
    "family": (10, 3),
    "canary": (60, 30, 7),
    "snapshot": (4,),
    "timestamp": (1,),
}
SILENT = timedelta(minutes=15)  # of a publisher that makes a round every few seconds


def publisher_view(session: Session, now: datetime) -> dict[str, Any]:
    """Return how signing is: nothing_published, expired, degraded or ok, and why."""
    ends = _ends(session)
    missing = [role for role in TOP_LEVEL_ROLES if role not in ends]
    last = session.get(PublisherState, 1)
    reasons = sorted(_reasons(ends, last, now), key=lambda reason: reason["reason"] != "expired")
    state = "degraded" if reasons else "ok"
    if missing:
        state = "nothing_published"
    elif reasons and reasons[0]["reason"] == "expired":
        state = "expired"
    # People must sign these.
    offline = {role: end for role, end in ends.items() if role not in ONLINE_ROLES}
    return {
        "state": state,
        "reasons": reasons,
        "metadata_expires_at": min(ends.values(), default=None),
        "missing": missing,
        "round_at": last.round_at if last else None,
        "sign_again_before": min(offline.values(), default=None),
        "sign_again": any(_alarmed(role, end, now) for role, end in offline.items()),
    }


class Tally:
    """How often each outcome happened in this process; outcomes are words of the code, and few."""

    def __init__(self) -> None:
        self._lock, self._counts = threading.Lock(), Counter[str]()

    def add(self, outcome: str) -> None:
        """Count one."""
        with self._lock:
            self._counts[outcome] += 1

    def counts(self) -> dict[str, float]:
        """Return outcome -> how often."""
        with self._lock:
            return dict(sorted(self._counts.items()))


def metrics(session: Session, now: datetime, reports: Tally) -> str:
    """Return Prometheus' text format; labels are roles, as many as models, and words."""
    ends, last = _ends(session), session.get(PublisherState, 1)
    paused = queries.recent_rollouts(session, states=["paused"])
    why = Counter(reason for rollout in paused for reason in rollout.reasons)
    gauges: dict[str, tuple[str, dict[str, float]]] = {
        "fleetdiff_metadata_expiry_seconds": (
            "Until the newest signed document of a role expires.",
            {f'{{role="{role}"}}': (end - now).total_seconds() for role, end in ends.items()},
        ),
        "fleetdiff_publisher_round_age_seconds": (
            "Since the publisher last said that it made a round.",
            {"": (now - last.round_at).total_seconds()} if last else {},
        ),
        "fleetdiff_publisher_troubles": (
            "What the publisher could not sign in its last round.",
            {"": len(last.problems)} if last else {},
        ),
        "fleetdiff_rollouts_paused": (
            "Rollouts that are paused, by each reason for it.",
            {f'{{reason="{reason}"}}': n for reason, n in sorted(why.items())},
        ),
        "fleetdiff_sums_disagree": (
            "Rollouts that are paused since their sums are not what their reports add up to.",
            {"": why["sums_disagree"]},
        ),
        "fleetdiff_artifacts_undeleted": (
            "Artifacts that nothing needs, and that the store does not let go.",
            {"": undeleted(session, now)["artifacts"]},
        ),
        "fleetdiff_canary_reports_total": (
            "Canary reports that this process took or refused, by outcome.",
            {f'{{outcome="{outcome}"}}': n for outcome, n in reports.counts().items()},
        ),
    }
    lines = []
    for name, (told, values) in gauges.items():
        kind = "counter" if name.endswith("_total") else "gauge"
        lines += [f"# HELP {name} {told}", f"# TYPE {name} {kind}"]
        lines += [f"{name}{labels} {value:.0f}" for labels, value in values.items()]
    return "\n".join(lines) + "\n"


def _ends(session: Session) -> dict[str, datetime]:
    models = queries.model_names(session)
    families = [family_role(model) for model in models]
    ends = documents.newest_ends(session)
    found = {role: ends[role] for role in (*TOP_LEVEL_ROLES, *families) if role in ends}
    sets = documents.canary_ends(session, *models)
    return found | {f"canary-{model}": end for model, end in sets.items()}


def _alarmed(role: str, end: datetime, now: datetime) -> bool:
    return end - now < timedelta(days=ALARM_DAYS[role.partition("-")[0]][0])


def _reasons(
    ends: dict[str, datetime], last: PublisherState | None, now: datetime
) -> Iterator[dict[str, str]]:
    for role, end in ends.items():
        whose = "the publisher" if role in ONLINE_ROLES else "people"
        if end <= now:
            told = f"{role} has expired; devices refuse every update until {whose} signed it again"
            yield {"reason": "expired", "role": role, "detail": told}
        elif _alarmed(role, end, now):
            hours = round((end - now).total_seconds() / 3600)
            left = f"{hours // 24} days" if hours >= 48 else counted(hours, "hour")
            told = f"{role} expires in {left}; {whose} must sign it again"
            yield {"reason": "expires_soon", "role": role, "detail": told}
    if last is None or now - last.round_at > SILENT:
        told = f"no publisher has made a round {f'since {last.round_at:%F %R} UTC' if last else ''}"
        yield {
            "reason": "publisher_silent",
            "role": "",
            "detail": f"{told.strip()}: start one, or look why it stands",
        }
    for problem in last.problems if last else ():
        told = f"{problem['role']}: {problem['detail']}"
        yield {"reason": problem["trouble"], "role": problem["role"], "detail": told}
