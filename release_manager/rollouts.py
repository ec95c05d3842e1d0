"""Rollouts: which cohort gets a release, in which shares, and how it goes."""

import time
from argparse import Namespace
from collections import deque
from collections.abc import Iterator
from typing import Any

from release_manager import show
from release_manager.client import Client, connect
from release_manager.config import Settings
from release_manager.errors import Refused, Usage
from release_manager.show import Reply

TERMINAL = ("completed", "halted", "canceled")
STATES = ("draft", "awaiting_approval", "scheduled", "running", "paused", *TERMINAL)
WAITABLE = ("running", "paused", "completed", "halted")
REACHED, ENDED_OTHERWISE, TIME_OVER = 0, 3, 4
# How long the server may hold one question, and the least pause between two.
WAIT_S_MAX = 2
PAUSE_S = 0.5
BAR_WIDTH = 10


def start(args: Namespace, settings: Settings) -> Reply:
    """Bring a release to a cohort, in stages.

    Example:
      fleetdiff rollout start asr-en-edge r2 --cohort kitchen --stages 5%:1h,25%,100%
      fleetdiff rollout start asr-en-edge r2 --cohort kitchen --gate margin_rel=0.02
      fleetdiff rollout start asr-en-edge r2 --cohort kitchen --charging --window 01:00-05:00
      fleetdiff rollout start asr-en-edge r2 --cohort kitchen --per-minute 200 --bytes 500GB
      fleetdiff rollout start asr-en-edge r2 --cohort kitchen --at 2026-12-01T03:00Z
      fleetdiff rollout start asr-en-edge r1 --cohort kitchen --rollback

    A rollout does not start while many of its devices would fetch the full file for want of a
    patch, unless that is accepted.
    """
    client = connect(settings)
    rollout = client.post("/v1/rollouts", _asked(args))
    try:
        return _act(client, rollout["id"], _accepting(args, "start"), "started")
    except Refused as error:
        start, drop = (f"fleetdiff rollout {verb} {rollout['id']}" for verb in ("resume", "halt"))
        error.advice = f"it is a draft now: {start} starts it, {drop} --reason TEXT drops it"
        raise


def simulate(args: Namespace, settings: Settings) -> Reply:
    """Rehearse a rollout: whom it reaches, what it fetches, how long it takes, what it detects.

    It takes what `rollout start` takes. A window stretches the time, which `seconds_anytime` tells
    without it; `budget` tells for how many devices the bytes last.

    Example:
      fleetdiff rollout simulate asr-en-edge r2 --cohort kitchen --stages 5%:1h,25%,100%
      fleetdiff rollout simulate asr-en-edge r2 --cohort kitchen --window 01:00-05:00 --bytes 5GB
    """
    found = connect(settings).post("/v1/rollouts/simulate", _asked(args))
    told = {name: value for name, value in found.items() if name not in ("stages", "budget")}
    return Reply(found, show.as_text(told | {"foretold": found["stages"]}))


def status(args: Namespace, settings: Settings) -> Reply:
    """Show how a rollout goes, and what it is waiting for.

    Example:
      fleetdiff rollout status ro_1 --watch
    """
    client = connect(settings)
    if not args.watch:
        rollout = client.get(f"/v1/rollouts/{args.id}")
        return Reply(rollout, text(rollout))
    with show.screen() as draw:
        for rollout in changes(client, args.id, "completed", None):
            if not args.json:
                draw(text(rollout))
    return Reply(rollout, _outcome(rollout))


def decisions(args: Namespace, settings: Settings) -> Reply:
    """List why a rollout moved or stopped, with all that each verdict follows from.

    Example:
      fleetdiff rollout decisions ro_1 --json
    """
    found = connect(settings).get(f"/v1/rollouts/{args.id}/decisions")
    return Reply(found, show.as_table(found["items"], "seq at stage decision actor reason"))


def explain(args: Namespace, settings: Settings) -> Reply:
    """Show why a rollout does not move, what is missing, and what holds its devices.

    Outcomes are counted; the reasons are those of a sample of the devices that have none.

    Example:
      fleetdiff rollout explain ro_1
    """
    return Reply(connect(settings).get(f"/v1/rollouts/{args.id}/explain"))


def pause(args: Namespace, settings: Settings) -> Reply:
    """Make no more offers until it is resumed.

    Example:
      fleetdiff rollout pause ro_1
    """
    return _act(connect(settings), args.id, "pause", args.reason)


def resume(args: Namespace, settings: Settings) -> Reply:
    """Let a paused rollout go on, or start one that is still a draft.

    Failures count from here on. A spent budget, signatures that run out and missing patches are
    named, and hold it until that is mended.

    Example:
      fleetdiff rollout resume ro_1
    """
    client = connect(settings)
    draft = client.get(f"/v1/rollouts/{args.id}")["state"] == "draft"
    verb = "start" if draft else "resume"
    return _act(client, args.id, _accepting(args, verb), args.reason)


def change(args: Namespace, settings: Settings) -> Reply:
    """Change what a rollout may cost, until it ends, or its time, until it starts.

    What was approved takes its approvals again, and cannot be changed once it started.

    Example:
      fleetdiff rollout change ro_1 --bytes 800GB
      fleetdiff rollout change ro_1 --at 2026-12-02T03:00+01:00
    """
    asked = {"per_minute_max": args.per_minute, "bytes_max": args.bytes, "start_at": args.at}
    given = {name: value for name, value in asked.items() if value is not None}
    if not given:
        raise Usage("nothing is said to change", "give --per-minute, --bytes or --at")
    rollout = connect(settings).patch(f"/v1/rollouts/{args.id}", given)
    return Reply(rollout, text(rollout))


def retry(args: Namespace, settings: Settings) -> Reply:
    """Let every device of a rollout try again now whose attempt failed or that refused.

    Example:
      fleetdiff rollout retry ro_1 --reason "the store was full"
    """
    body = {"reason": args.reason}
    return Reply(connect(settings).post(f"/v1/rollouts/{args.id}/retry", body))


def halt(args: Namespace, settings: Settings) -> Reply:
    """End a rollout for good.

    Example:
      fleetdiff rollout halt ro_1 --reason "wrong audio files"
    """
    return _act(connect(settings), args.id, "halt", args.reason)


def wait(args: Namespace, settings: Settings) -> Reply:
    """Wait until a rollout reaches a state; the exit code tells how it ended.

    Example:
      fleetdiff rollout wait ro_1 --until completed --timeout 2h
    """
    rollout = deque(changes(connect(settings), args.id, args.until, args.timeout), maxlen=1)[0]
    code = ENDED_OTHERWISE if rollout["state"] in TERMINAL else TIME_OVER
    return Reply(rollout, _outcome(rollout), REACHED if rollout["state"] == args.until else code)


def changes(
    client: Client, identity: str, until: str, timeout_s: int | None
) -> Iterator[dict[str, Any]]:
    """Give a rollout, at first and whenever it changed, until it reaches a state or ends.

    Args:
        client: the server.
        identity: of the rollout.
        until: the state.
        timeout_s: stop after so long, or None: never.
    """
    end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    seen: Any = None
    while True:
        # At first show what is there; then ask often, for a wait only ends at the state it is for.
        left = 0 if seen is None else max(0, min(WAIT_S_MAX, end - time.monotonic()))
        rollout = client.get(f"/v1/rollouts/{identity}/wait", until=until, timeout_s=int(left))
        if rollout != seen:
            yield rollout
        seen = rollout
        if rollout["state"] in (until, *TERMINAL) or time.monotonic() >= end:
            return
        time.sleep(PAUSE_S)


def _asked(args: Namespace) -> dict[str, Any]:
    """Return the rollout that somebody asks for, as the server takes it."""
    same = "model release cohort stages on_halt rollback".split()
    plan = {name: getattr(args, name) for name in same} | {"gate": dict(args.gate)}
    conditions = {name: getattr(args, name) for name in ("idle", "charging", "window")}
    plan |= {"conditions": conditions | {"networks": args.on_network}}
    plan |= {"priority": args.priority, "include_new": not args.no_new}
    return plan | {"per_minute_max": args.per_minute, "bytes_max": args.bytes, "start_at": args.at}


def _accepting(args: Namespace, verb: str) -> str:
    return verb + ("?accept_full_downloads=true" if args.accept_full_downloads else "")


def _act(client: Client, identity: str, verb: str, reason: str) -> Reply:
    rollout = client.post(f"/v1/rollouts/{identity}/{verb}", {"reason": reason})
    return Reply(rollout, text(rollout))


def _outcome(rollout: dict[str, Any]) -> str:
    reason = f": {rollout['halt_reason']}" if rollout.get("halt_reason") else ""
    return f"rollout {rollout['id']} is {rollout['state']}{reason}"


def text(rollout: dict[str, Any]) -> str:
    """Return a rollout as people read it, its stages with bars."""
    stages, done = [], 0
    for stage in rollout.get("stages", []):
        done += stage.get("confirmed", 0)  # a stage counts its own; its devices are all so far
        filled = BAR_WIDTH * done // max(stage["devices"], 1)
        bar = f"{'#' * filled}{'.' * (BAR_WIDTH - filled)} {done}/{stage['devices']}"
        stages.append({**stage, "progress": bar})
    first = {name: rollout.get(name) for name in ("id", "model", "state", "reasons")}
    health = {**rollout.get("health", {})}
    first["waiting_for"] = health.pop("waiting_for", None)
    return show.as_text({**first, **rollout, "health": health, "stages": stages})
