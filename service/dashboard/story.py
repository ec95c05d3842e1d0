"""What the page needs beyond the views of `health`: sums, parts of bars, and what comes next.

Plain values in, plain values out; the templates hold every sentence. Sentences that depend on the
time of day are left to the page's script, so that a fleet in which nothing happens renders the
same bytes again.
"""

from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from service.core.policy import gate_of
from service.dashboard.charts import Part
from service.db.queries import decisions_of
from service.db.rollout_tables import LIVE, Rollout
from service.engine.health import fleet_view

SHADES = 5  # releases shown one by one; older ones are added up
OPENED_MAX = 2  # rollouts whose body is open at first, besides the live ones
OUTCOMES = (  # key of a stage's view, tone, word
    ("confirmed", "ok", "confirmed"),
    ("offered", "live", "under way"),
    ("refused", "wait", "refused"),
    ("failed", "halt", "failed"),
    ("rolled_back", "back", "rolled back"),
    ("canceled", "idle", "canceled"),
)
REST = {"completed": "joined later", "halted": "not asked", "canceled": "not asked"}


def tell(session: Session, now: datetime) -> dict[str, Any]:
    """Return everything that the page shows."""
    view = fleet_view(session, now)
    halted = {(r["model"], r["release"]) for r in view["rollouts"] if r["state"] == "halted"}
    models = [_model(model, halted) for model in view["models"]]
    cards = []
    for place, rollout in enumerate(view["rollouts"]):
        more = {
            "gate": gate_of(session.get_one(Rollout, rollout["id"]).gate),
            "decisions": list(decisions_of(session, rollout["id"])),
            "opened": rollout["state"] in LIVE or place < OPENED_MAX,
            "bars": stage_bars(rollout["stages"], REST.get(rollout["state"], "not asked yet")),
            "rates": wer_rates(rollout),
        }
        cards.append(rollout | more)
    return {
        "models": models,
        "rollouts": cards,
        "total": sum(model["total"] for model in models),
        "newest": sum(model["newest"] for model in models),
        "live": [card["state"] for card in cards if card["state"] in LIVE],
        "sent": sum(card["bytes_sent"] for card in cards),
        "full": sum(card["bytes_full"] for card in cards),
        "publisher": view["publisher"],
    }


def stage_bars(stages: list[dict[str, Any]], rest: str) -> list[dict[str, Any]]:
    """Return the stages in order; each counts the devices that it adds to the one before."""
    bars, before = [], 0
    for stage in stages:
        # A device that was confirmed and then sent back is shown once, as rolled back.
        counts = stage | {"confirmed": max(0, stage["confirmed"] - stage["rolled_back"])}
        parts = [Part(tone, word, counts[key]) for key, tone, word in OUTCOMES]
        asked = sum(part.amount for part in parts)
        added = max(stage["devices"] - before, asked)
        before = stage["devices"]
        named = [part for part in [*parts, Part("rest", rest, added - asked)] if part.amount]
        bars.append(stage | {"added": added, "parts": named})
    return bars


def wer_rates(view: dict[str, Any]) -> list[tuple[str, int, int]]:
    """Return name, old and new word error rate in basis points: over all, then by stage."""
    stages = [(f"Stage {stage['number']}", stage) for stage in view["stages"]]
    measured = [(name, at) for name, at in stages if at["old_wer_bp"] is not None]
    rows = [("All devices", view["health"]), *(measured if len(measured) > 1 else [])]
    rates = [(name, at["old_wer_bp"], at["new_wer_bp"]) for name, at in rows]
    return [] if rates[0][1] is None else rates


def _model(model: dict[str, Any], halted: set[tuple[str, str]]) -> dict[str, Any]:
    """Return one model with its devices by release, the newest first.

    The newest release that counts is one that no rollout was halted for.
    """
    releases = list(reversed(model["releases"]))
    parts = [
        Part(f"shade{place}", _release_name(release), release["devices"])
        for place, release in enumerate(releases[:SHADES])
    ]
    if older := releases[SHADES:]:
        held = sum(release["devices"] for release in older)
        parts.append(Part(f"shade{SHADES}", f"{len(older)} older", held))
    if model["unknown"]:
        parts.append(Part("unknown", "not a known release", model["unknown"]))
    good = (r for r in releases if r["status"] == "active")
    counts = (r["devices"] for r in good if (model["name"], r["name"]) not in halted)
    total = sum(part.amount for part in parts)
    return model | {"parts": parts, "total": total, "newest": next(counts, 0)}


def _release_name(release: dict[str, Any]) -> str:
    name, status = str(release["name"]), str(release["status"])
    return name if status == "active" else f"{name} ({status})"
