"""Rollouts: which cohort gets a release, in which shares, and how it goes."""

import time
from argparse import Namespace
from collections.abc import Callable
from typing import Any

from release_manager import arguments, show
from release_manager.client import Client, connect
from release_manager.command import MODEL, ONLY_MODEL, RELEASE, arg, command, many
from release_manager.config import Settings
from release_manager.errors import Stop
from release_manager.show import Reply

STATES = ("draft", "running", "paused", "completed", "halted", "canceled")
WAITABLE = ("running", "paused", "completed", "halted")
TERMINAL = frozenset({"completed", "halted", "canceled"})
REACHED, ENDED_OTHERWISE, TIME_OVER = 0, 3, 4
# How long the server may hold one question, and the least pause between two.
WAIT_S_MAX = 20
PAUSE_S = 0.5
_FACTS = """id model release cohort state generation on_halt halt_reason reasons created_at
 started_at finished_at bytes_sent bytes_full""".split()
_STAGES = """number share_bp state devices offered confirmed refused failed rolled_back bytes_sent
 old_wer_bp new_wer_bp"""
_ID = arg("id", type=arguments.identity, help="id of the rollout (fleetdiff rollout list)")
_REASON = arg("--reason", default="", help="why; kept with the rollout")


@command(
    "rollout start",
    "asr-en-edge r2 --cohort kitchen --stages 5%:1h,25%,100% --gate margin_rel=0.02",
    MODEL,
    RELEASE,
    arg("--cohort", required=True, type=arguments.name, help="who gets it"),
    arg(
        "--stages",
        type=arguments.stages,
        default="5%,25%,100%",
        help="growing shares, each with an optional least duration, as 5%%:24h "
        "(default: %(default)s)",
    ),
    many("--gate", "KEY=VALUE", arguments.gate_entry, "a field of the gate"),
    arg(
        "--on-halt",
        choices=("revert", "keep"),
        default="revert",
        help="what devices do if it is halted (default: %(default)s)",
    ),
)
def start(args: Namespace, settings: Settings) -> Reply:
    """Bring a release to a cohort, in stages."""
    client = connect(settings)
    plan = {name: getattr(args, name) for name in "model release cohort stages on_halt".split()}
    rollout = client.post("/v1/rollouts", plan | {"gate": dict(args.gate)})
    try:
        return _act(client, rollout["id"], "start", "started")
    except Stop as error:
        error.advice = f"it is a draft now; start it: fleetdiff rollout resume {rollout['id']}"
        raise


@command(
    "rollout list",
    "--state running",
    ONLY_MODEL,
    arg("--state", choices=STATES, help="only in this state"),
)
def rollout_list(args: Namespace, settings: Settings) -> Reply:
    """List rollouts."""
    answer = connect(settings).get("/v1/rollouts", model=args.model, state=args.state)
    return show.listed(answer, "id model release cohort state stage created_at halt_reason")


@command(
    "rollout status",
    "ro_1 --watch",
    _ID,
    arg("--watch", action="store_true", help="show every change until it ends"),
)
def status(args: Namespace, settings: Settings) -> Reply:
    """Show how a rollout goes, and what it is waiting for."""
    client = connect(settings)
    if not args.watch:
        return _shown(client.get(f"/v1/rollouts/{args.id}"))

    def watch(rollout: dict[str, Any]) -> None:
        if not args.json:
            show.reply(Reply(rollout, [*_shown(rollout).lines, ""]), as_json=False)

    rollout, _ = wait(client, args.id, "completed", None, watch)
    return _ended(rollout, REACHED)


@command("rollout pause", "ro_1", _ID, _REASON)
def pause(args: Namespace, settings: Settings) -> Reply:
    """Make no more offers until it is resumed."""
    return _act(connect(settings), args.id, "pause", args.reason)


@command("rollout resume", "ro_1", _ID, _REASON)
def resume(args: Namespace, settings: Settings) -> Reply:
    """Let a paused rollout go on, or start one that is still a draft."""
    client = connect(settings)
    draft = client.get(f"/v1/rollouts/{args.id}")["state"] == "draft"
    return _act(client, args.id, "start" if draft else "resume", args.reason)


@command(
    "rollout halt",
    'ro_1 --reason "wrong audio files"',
    _ID,
    arg("--reason", required=True, help="why; kept with the rollout"),
)
def halt(args: Namespace, settings: Settings) -> Reply:
    """End a rollout for good."""
    return _act(connect(settings), args.id, "halt", args.reason)


@command(
    "rollout wait",
    "ro_1 --until completed --timeout 2h",
    _ID,
    arg("--until", choices=WAITABLE, default="completed", help="default: completed"),
    arg("--timeout", type=arguments.duration_s, help="as 90s or 2h (default: wait for ever)"),
)
def wait_for(args: Namespace, settings: Settings) -> Reply:
    """Wait until a rollout reaches a state; the exit code tells how it ended."""
    client = connect(settings)
    return _ended(*wait(client, args.id, args.until, args.timeout, lambda _: None))


def wait(
    client: Client,
    identity: str,
    until: str,
    timeout_s: int | None,
    watch: Callable[[dict[str, Any]], None],
) -> tuple[dict[str, Any], int]:
    """Wait until a rollout reaches a state or ends; returns it and the exit code.

    Args:
        client: the server.
        identity: of the rollout.
        until: the state.
        timeout_s: give up after so long, or None: never.
        watch: is called with the rollout whenever it changed.
    """
    end = float("inf") if timeout_s is None else time.monotonic() + timeout_s
    seen: Any = None
    while True:
        left = max(0, min(WAIT_S_MAX, end - time.monotonic()))
        rollout = client.get(f"/v1/rollouts/{identity}/wait", until=until, timeout_s=int(left))
        if rollout != seen:
            watch(rollout)
            seen = rollout
        if rollout["state"] == until:
            return rollout, REACHED
        if rollout["state"] in TERMINAL:
            return rollout, ENDED_OTHERWISE
        if time.monotonic() >= end:
            return rollout, TIME_OVER
        time.sleep(PAUSE_S)


def _act(client: Client, identity: str, verb: str, reason: str) -> Reply:
    return _shown(client.post(f"/v1/rollouts/{identity}/{verb}", {"reason": reason}))


def _ended(rollout: dict[str, Any], exit_code: int) -> Reply:
    reason = f": {rollout['halt_reason']}" if rollout.get("halt_reason") else ""
    return Reply(rollout, [f"rollout {rollout['id']} is {rollout['state']}{reason}"], exit_code)


def _shown(rollout: dict[str, Any]) -> Reply:
    facts = {name: rollout[name] for name in _FACTS if rollout.get(name) not in (None, "", [])}
    lines = [*show.fields(facts), "", *show.table(_STAGES, rollout.get("stages") or [])]
    if rollout.get("health"):
        lines += ["", "health", *show.fields(rollout["health"])]
    return Reply(rollout, lines)
