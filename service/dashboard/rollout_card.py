"""One rollout as a card: state, stages, word error rates, evidence, bytes, and what happened."""

from typing import Any

from markupsafe import Markup
from sqlalchemy.orm import Session

from service.core.canary import Gate
from service.core.policy import gate_of
from service.dashboard import charts
from service.dashboard.charts import Part
from service.dashboard.words import count, devices, percent, points, share, size
from service.db import rollout_queries
from service.db.rollout_tables import Decision, Rollout

TONES = {
    "draft": "idle",
    "running": "live",
    "paused": "wait",
    "completed": "ok",
    "halted": "halt",
    "canceled": "idle",
    "waiting": "idle",
    "passed": "ok",
}
PAUSED_BECAUSE = {
    "operator": "a person asked for it",
    "gate_undecided": "the canary reached no verdict in time",
}
OUTCOMES = (  # key of a stage's view, word, tone
    ("confirmed", "confirmed", "ok"),
    ("offered", "under way", "live"),
    ("refused", "refused", "wait"),
    ("failed", "failed", "halt"),
    ("rolled_back", "rolled back", "back"),
    ("canceled", "canceled", "idle"),
)


def card(session: Session, view: dict[str, Any]) -> dict[str, Any]:
    """Return what the page shows of one rollout."""
    gate = gate_of(session.get_one(Rollout, view["id"]).gate)
    decisions = list(rollout_queries.decisions_of(session, view["id"]))
    return {
        "id": view["id"],
        "state": view["state"],
        "tone": TONES[view["state"]],
        "release": view["release"],
        "model": view["model"],
        "cohort": view["cohort"],
        "times": [
            (word, view[key])
            for word, key in (
                ("created", "created_at"),
                ("started", "started_at"),
                ("ended", "finished_at"),
            )
            if view[key] is not None
        ],
        "why": why(view, decisions),
        "became": became(view),
        "stages": stages(view["stages"], ended=view["finished_at"] is not None),
        "wer": wer_rows(view),
        "change": change(view["health"], gate),
        "evidence": evidence_rows(view["health"], gate),
        "bytes": traffic(view["bytes_sent"], view["bytes_full"]),
        "decisions": [(d.at, d.decision, d.stage, d.reason, d.actor) for d in decisions],
    }


def why(view: dict[str, Any], decisions: list[Decision]) -> str:
    """Return why a rollout waits, or why it ended, as a sentence."""
    state, waiting = view["state"], view["health"]["waiting_for"]
    if state == "halted":
        by = next((d.actor for d in reversed(decisions) if d.decision == "halt"), "a person")
        kind, _, sentence = view["halt_reason"].partition(": ")
        if by == "tick" and kind in ("wer", "failures"):
            who = "The canary" if kind == "wer" else "The failure guard"
            return f"{who} halted it: {sentence}."
        return f"Halted by {by}: {view['halt_reason'] or 'no reason was given'}."
    if state == "paused":
        named = [PAUSED_BECAUSE.get(reason, reason) for reason in view["reasons"]]
        return f"Paused because {' and '.join(named)}. Waiting: {waiting}."
    if state == "running":
        return f"Waiting: {waiting}." if waiting else "Just started; the next look is due soon."
    if state == "draft":
        return "A draft: a person has yet to start it."
    if state == "canceled":
        return "Canceled before it started; no device was asked."
    return "Complete: every device of the cohort has an outcome."


def became(view: dict[str, Any]) -> str:
    """Return what became of the devices of a halted rollout."""
    if view["state"] != "halted":
        return ""
    held = sum(stage["confirmed"] for stage in view["stages"])
    back = sum(stage["rolled_back"] for stage in view["stages"])
    canceled = sum(stage["canceled"] for stage in view["stages"])
    called_off = f" {devices(canceled)} had not switched and did not." if canceled else ""
    if view["on_halt"] == "keep":
        return f"As planned, {devices(held)} keep the release.{called_off}"
    if not held:
        return f"No device had taken the release.{called_off}"
    left = max(0, held - back)
    done = f"{count(back)} of {devices(held)} are back on the release they came from."
    return done + (f" {devices(left)} on the way back." if left else "") + called_off


def stages(views: list[dict[str, Any]], *, ended: bool) -> list[dict[str, Any]]:
    """Return the stages in order; each counts the devices that it adds to the one before."""
    shown, before = [], 0
    for view in views:
        # A device that was confirmed and then sent back is shown once, as rolled back.
        counts = {key: view[key] for key, _, _ in OUTCOMES}
        counts["confirmed"] = max(0, counts["confirmed"] - counts["rolled_back"])
        asked = sum(counts.values())
        added = max(view["devices"] - before, asked)
        before = view["devices"]
        parts = [Part(word, counts[key], tone) for key, word, tone in OUTCOMES]
        title = f"Stage {view['number']}: " + ", ".join(
            f"{part.count} {part.name}" for part in parts if part.count
        )
        open_end = [Part("not asked" if ended else "not asked yet", added - asked, "rest")]
        shown.append(
            {
                "number": view["number"],
                "share": share(view["share_bp"], 10_000),
                "state": view["state"],
                "tone": "live" if view["state"] == "running" else TONES[view["state"]],
                "devices": devices(added),
                "bar": charts.stacked_bar([*parts, *open_end], title.rstrip(": ")),
                "counts": [
                    (p.tone, p.name, count(p.count)) for p in [*parts, *open_end] if p.count
                ],
            }
        )
    return shown


def wer_rows(view: dict[str, Any]) -> list[dict[str, Any]]:
    """Return the old and the new word error rate, over all and by stage, drawn to one scale."""
    health = view["health"]
    rows = [("All devices", health["old_wer_bp"], health["new_wer_bp"])]
    measured = [s for s in view["stages"] if s["old_wer_bp"] is not None]
    if len(measured) > 1:
        rows += [(f"Stage {s['number']}", s["old_wer_bp"], s["new_wer_bp"]) for s in measured]
    most = max((rate for _, *pair in rows for rate in pair if rate is not None), default=0) or 1
    return [
        {
            "name": name,
            "old": percent(old),
            "new": percent(new),
            "old_bar": _rate_bar(name, "old", old, most),
            "new_bar": _rate_bar(name, "new", new, most),
        }
        for name, old, new in rows
        if old is not None
    ]


def change(health: dict[str, Any], gate: Gate) -> dict[str, Any] | None:
    """Return the measured change with its band, None before the first pair."""
    measured, lower, upper = (health[f"{name}_bp"] for name in ("change", "lower", "upper"))
    if measured is None:
        return None
    old = health["old_wer_bp"]
    margin = None if old is None else round(gate.margin_rel * old)
    spoken = f"{points(measured)} points, band {points(lower)} to {points(upper)}"
    return {
        "value": points(measured),
        "lower": points(lower),
        "upper": points(upper),
        "pairs": count(health["pairs"]),
        "clip": f"{gate.clip * 100:g}",
        "chart": charts.band(measured, lower, upper, margin, f"Word error rate: {spoken}"),
    }


def evidence_rows(health: dict[str, Any], gate: Gate) -> list[dict[str, Any]]:
    """Return the three kinds of evidence as shares of what each needs to be believed."""
    failing = f"{count(health['failures'])} of {count(health['failure_devices'])} devices"
    rows = (
        ("Harm", "halt", "halt", "halts", gate.pairs_halt_least),
        ("Safe", "promote", "ok", "promotes", gate.pairs_promote_least),
        ("Failures", "failure", "wait", f"halts; {failing}", 0),
    )
    shown = []
    for name, key, tone, effect, least in rows:
        found, needed = health[f"evidence_{key}"], health[f"threshold_{key}"]
        part = max(0.0, found / needed) if found is not None else 0.0
        text = "enough" if part >= 1 else f"{part * 100:.0f} % of enough"
        if part >= 1 and health["pairs"] < least:
            text = f"enough, once {least} devices reported"
        bar = charts.meter(part, tone, f"{name}: {text}")
        shown.append({"name": name, "effect": effect, "text": text, "bar": bar})
    return shown


def traffic(sent: int, full: int) -> dict[str, Any]:
    """Return what was sent against what full downloads would have been."""
    text = "No update is confirmed yet."
    if full:
        less = share(abs(full - sent), full)
        text = f"{less} {'less' if sent <= full else 'more'} than {size(full)} in full"
    bar = charts.meter(sent / full if full else 0.0, "accent", f"{size(sent)} sent: {text}")
    return {"sent": size(sent), "full": size(full), "text": text, "bar": bar}


def _rate_bar(name: str, which: str, rate_bp: int, most_bp: int) -> Markup:
    tone = "old" if which == "old" else "accent"
    return charts.meter(rate_bp / most_bp, tone, f"{name}, {which} model: {percent(rate_bp)}")
