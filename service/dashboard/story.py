"""What the page says: the views of `health` as headline, bars and sentences, ready to print.

Plain values in, plain values and finished charts out; the template only sets them in place.
Sentences that depend on the time of day are left to the page's script, so that a fleet in which
nothing happens renders the same bytes again.
"""

from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session

from service.core.health import fleet_view
from service.dashboard import charts, rollout_card
from service.dashboard.charts import Part
from service.dashboard.words import NONE, count, devices, share, size
from service.db.rollout_queries import LIVE

EXPIRY_WARNING = timedelta(hours=24)
SHADES = 5  # releases shown one by one; older ones are added up
OPENED_MAX = 2  # rollouts whose body is open at first, besides the live ones


def tell(session: Session, now: datetime) -> dict[str, Any]:
    """Return everything that the page shows."""
    view = fleet_view(session, now)
    cards = []
    for place, rollout in enumerate(view["rollouts"]):
        opened = rollout["state"] in LIVE or place < OPENED_MAX
        cards.append(rollout_card.card(session, rollout) | {"opened": opened})
    return {
        "headline": headline(view),
        "models": [model_bar(model) for model in view["models"] if model["releases"]],
        "rollouts": cards,
        "publisher": publisher(view["publisher"], now),
        "next_step": next_step(view),
    }


def headline(view: dict[str, Any]) -> list[dict[str, str]]:
    """Return the four numbers at the top."""
    total = newest = 0
    for model in view["models"]:
        total += model["unknown"] + sum(r["devices"] for r in model["releases"])
        active = [r for r in model["releases"] if r["status"] == "active"]
        newest += active[-1]["devices"] if active else 0
    live = [r for r in view["rollouts"] if r["state"] in LIVE]
    paused = sum(r["state"] == "paused" for r in live)
    sent = sum(r["bytes_sent"] for r in view["rollouts"])
    full = sum(r["bytes_full"] for r in view["rollouts"])
    return [
        _tile("Devices", count(total), "in the fleet" if total else "none enrolled yet"),
        _tile("On the newest release", share(newest, total), f"{count(newest)} of {count(total)}"),
        _tile("Live rollouts", count(len(live)), f"{paused} paused" if paused else "none paused"),
        _tile("Bytes saved", *_saved(sent, full)),
    ]


def model_bar(model: dict[str, Any]) -> dict[str, Any]:
    """Return one model's devices by release, the newest first, as a bar with its legend."""
    newest_first = list(reversed(model["releases"]))
    total = model["unknown"] + sum(r["devices"] for r in newest_first)
    parts = [
        Part(_release_name(release), release["devices"], f"shade{place}")
        for place, release in enumerate(newest_first[:SHADES])
    ]
    older = newest_first[SHADES:]
    if older:
        held = sum(r["devices"] for r in older)
        parts.append(Part(f"{len(older)} older", held, f"shade{SHADES}"))
    if model["unknown"]:
        parts.append(Part("not a known release", model["unknown"], "unknown"))
    return {
        "name": model["name"],
        "total": devices(total),
        "bar": charts.stacked_bar(parts, f"{model['name']}: devices by release"),
        "legend": [(p.tone, p.name, count(p.count), share(p.count, total)) for p in parts],
    }


def publisher(view: dict[str, Any], now: datetime) -> dict[str, Any]:
    """Return how signing is: in order, soon out of date, out of date, or not begun."""
    expires, state = view["metadata_expires_at"], view["state"]
    if state == "nothing_published":
        missing = ", ".join(view["missing"])
        return {
            "tone": "wait",
            "icon": "warning",
            "text": f"Not published yet: there is no signed {missing}. Devices get no update.",
            "expires": None,
        }
    if state == "expired":
        text = "Signed metadata has expired: devices refuse every update. It ended"
        return {"tone": "halt", "icon": "halted", "text": text, "expires": expires}
    if expires is not None and expires - now < EXPIRY_WARNING:
        text = "Signed metadata is about to expire; is the publisher running? It ends"
        return {"tone": "wait", "icon": "warning", "text": text, "expires": expires}
    text = "Signed metadata is in order. The next expiry is on"
    return {"tone": "ok", "icon": "passed", "text": text, "expires": expires}


def next_step(view: dict[str, Any]) -> dict[str, Any] | None:
    """Return what a newcomer does next, None once there is a rollout."""
    models = view["models"]
    if view["rollouts"]:
        return None
    if not models:
        return {
            "title": "Nothing here yet",
            "text": "Make keys, introduce yourself to this server, and name your first model:",
            "commands": [
                "fleetdiff init --dev",
                "fleetdiff login --server URL --token -",
                "fleetdiff init --publish",
                "fleetdiff model create asr-en-edge",
            ],
        }
    name = models[0]["name"]
    with_release = [m for m in models if m["releases"]]
    if not with_release:
        return {
            "title": f"Model {name} has no release yet",
            "text": "Publish the full model file that your devices start from:",
            "commands": [f"fleetdiff release publish {name} r1 r1.safetensors"],
        }
    held = [m for m in with_release if m["unknown"] + sum(r["devices"] for r in m["releases"])]
    if not held:
        return {
            "title": "No device is enrolled yet",
            "text": "Make a token and give it to the agent on each device:",
            "commands": [f"fleetdiff device token --model {with_release[0]['name']} --uses 10"],
        }
    name, newest = held[0]["name"], held[0]["releases"][-1]["name"]
    return {
        "title": "No rollout yet",
        "text": "Publish a release with a patch, name a cohort, and start:",
        "commands": [
            f"fleetdiff release publish {name} r2 r2.safetensors --patch {newest}_r2.ndiff",
            f"fleetdiff cohort create everyone --model {name} --filter running={newest}",
            f"fleetdiff rollout start {name} r2 --cohort everyone --stages 5%,25%,100%",
        ],
    }


def _tile(label: str, value: str, note: str) -> dict[str, str]:
    return {"label": label, "value": value, "note": note}


def _saved(sent: int, full: int) -> tuple[str, str]:
    if not full:
        return NONE, f"{size(sent)} sent so far" if sent else "nothing was sent yet"
    if sent > full:
        return f"−{share(sent - full, full)}", f"{size(sent)} sent, more than {size(full)} in full"
    return share(full - sent, full), f"{size(sent)} sent instead of {size(full)}"


def _release_name(release: dict[str, Any]) -> str:
    name, status = str(release["name"]), str(release["status"])
    return name if status == "active" else f"{name} ({status})"
