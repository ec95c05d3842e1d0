import json
from typing import Any

import pytest

from release_manager import rollouts
from tests.release_manager.desk import Desk


def rollout(state: str, **more: Any) -> dict[str, Any]:
    stage = {"number": 1, "share_bp": 500, "state": "running", "devices": 3, "new_wer_bp": 421}
    health = {"pairs": 12, "waiting_for": "about 88 more devices"}
    return {"id": "ro1", "state": state, "stages": [stage], "health": health, **more}


@pytest.fixture
def sent(desk: Desk) -> dict[str, Any]:
    """What the server was sent, by path."""
    bodies: dict[str, Any] = {}

    def keep(name: str, answer: dict[str, Any]) -> Any:
        def take(_query: dict[str, str], body: bytes) -> dict[str, Any]:
            bodies[name] = json.loads(body)
            return answer

        return take

    answers = {"rollouts": rollout("draft"), "cohorts": {"name": "k", "count": 2}}
    answers |= {f"rollouts/ro1/{v}": rollout("running") for v in ("start", "pause", "resume")}
    answers |= {"rollouts/ro1/halt": rollout("halted", halt_reason="wrong audio")}
    answers |= {"enrollment-tokens": {"token": "fe_1_abc", "id": "1", "uses": 3}}
    for path, answer in answers.items():
        desk.server.answers[f"POST /v1/{path}"] = keep(path, answer)
    return bodies


def test_a_rollout_is_created_and_started(desk: Desk, sent: dict[str, Any]) -> None:
    words = ["rollout", "start", "asr", "r2", "--cohort", "k", "--stages", "40%:10m,100%"]
    done = desk.json(*words, "--gate", "margin_rel=0.02", "--gate", "pairs_halt_least=5")
    assert done["state"] == "running"
    untouched = {"rollback": False, "priority": 0, "include_new": True}
    untouched |= dict.fromkeys(("per_minute_max", "bytes_max", "start_at"))
    assert sent["rollouts"] == untouched | {
        "model": "asr",
        "release": "r2",
        "cohort": "k",
        "stages": [
            {"share_bp": 4000, "soak_s": 600, "in_flight_max": None},
            {"share_bp": 10_000, "soak_s": 0, "in_flight_max": None},
        ],
        "gate": {"margin_rel": 0.02, "pairs_halt_least": 5},
        "on_halt": "revert",
        "conditions": {"networks": [], "idle": False, "charging": False, "window": None},
    }
    assert "rollouts/ro1/start" in sent


def test_a_rollout_shows_what_each_signal_says(desk: Desk) -> None:
    told = {"signal": "empty", "state": "warn", "devices": 40, "worse": 12, "better": 1}
    answer = rollout("running", health={"pairs": 40, "signals": [told | {"evidence": 7.1}]})
    desk.server.answers["GET /v1/rollouts/ro1"] = answer
    assert desk.run("rollout", "status", "ro1") == 0
    shown = [line.split() for line in desk.out.splitlines()]
    assert "SIGNAL STATE DEVICES WORSE BETTER".split() in shown
    assert "empty warn 40 12 1".split() in shown


def test_a_rollout_may_have_conditions_and_a_budget(desk: Desk, sent: dict[str, Any]) -> None:
    words = ["rollout", "start", "asr", "r2", "--cohort", "k", "--idle", "--window", "22:00-05:30"]
    costs = ["--on-network", "fast", "--on-network", "slow", "--per-minute", "9", "--bytes", "2GB"]
    assert desk.run(*words, *costs) == 0
    made = sent["rollouts"]
    window = {"start_min": 22 * 60, "end_min": 5 * 60 + 30}
    asked = {"networks": ["fast", "slow"], "idle": True, "charging": False, "window": window}
    assert (made["conditions"], made["per_minute_max"], made["bytes_max"]) == (asked, 9, 2 * 10**9)
    assert desk.run(*words, "--priority", "9", "--no-new", "--rollback") == 0
    assert sent["rollouts"]["rollback"] is True
    assert (sent["rollouts"]["priority"], sent["rollouts"]["include_new"]) == (9, False)
    assert desk.run(*words[:-1], "22:00") == 2 and "01:00-05:00" in desk.err


def test_the_stages_have_a_default(desk: Desk, sent: dict[str, Any]) -> None:
    assert desk.run("rollout", "start", "asr", "r2", "--cohort", "k", "--on-halt", "keep") == 0
    shares = [stage["share_bp"] for stage in sent["rollouts"]["stages"]]
    assert (shares, sent["rollouts"]["on_halt"]) == ([500, 2500, 10_000], "keep")


def test_a_start_that_failed_says_how_to_go_on(desk: Desk, sent: dict[str, Any]) -> None:
    del desk.server.answers["POST /v1/rollouts/ro1/start"]
    assert desk.run("rollout", "start", "asr", "r2", "--cohort", "k") == 1
    assert "fleetdiff rollout resume ro1" in desk.err


def test_what_a_rollout_may_cost_is_changed(desk: Desk, sent: dict[str, Any]) -> None:
    def changed(_query: dict[str, str], body: bytes) -> dict[str, Any]:
        sent["change"] = json.loads(body)
        return rollout("paused")

    desk.server.answers["PATCH /v1/rollouts/ro1"] = changed
    assert desk.run("rollout", "change", "ro1", "--bytes", "2GB") == 0
    assert sent["change"] == {"bytes_max": 2 * 10**9}
    assert desk.run("rollout", "change", "ro1", "--bytes", "2 GB") == 2
    assert desk.run("rollout", "change", "ro1", "--at", "2026-12-02T03:00+01:00") == 0
    assert sent["change"] == {"start_at": "2026-12-02T03:00+01:00"}


def test_a_rollout_may_wait_for_its_time(desk: Desk, sent: dict[str, Any]) -> None:
    words = ["rollout", "start", "asr", "r2", "--cohort", "k", "--at"]
    assert desk.run(*words, "2026-12-01T03:00Z") == 0
    assert sent["rollouts"]["start_at"] == "2026-12-01T03:00Z"
    for wrong in ("2026-12-01", "03:00", "2026-12-01T03:00", "2026-12-01T24:00Z", "tomorrow"):
        assert desk.run(*words, wrong) == 2 and "a time with its zone" in desk.err


def test_resume_starts_a_draft(desk: Desk, sent: dict[str, Any]) -> None:
    for state, verb in (("draft", "start"), ("paused", "resume")):
        sent.clear()
        desk.server.answers["GET /v1/rollouts/ro1"] = rollout(state)
        assert desk.run("rollout", "resume", "ro1", "--reason", "seen") == 0
        assert sent == {f"rollouts/ro1/{verb}": {"reason": "seen"}}


def test_pause_and_halt_carry_their_reason(desk: Desk, sent: dict[str, Any]) -> None:
    assert desk.run("rollout", "pause", "ro1", "--reason", "night") == 0
    assert desk.run("rollout", "halt", "ro1", "--reason", "wrong audio") == 0
    assert "wrong audio" in desk.out
    assert sent["rollouts/ro1/pause"] == {"reason": "night"}


def test_status_shows_stages_and_what_it_waits_for(desk: Desk) -> None:
    desk.server.answers["GET /v1/rollouts/ro1"] = rollout("running")
    assert desk.run("rollout", "status", "ro1") == 0
    for part in ("5 %", "4.21 %", "about 88 more devices", "NEW WER"):
        assert part in desk.out


def test_watching_shows_every_change_once(desk: Desk) -> None:
    desk.server.waits = [rollout(s) for s in ("running", "running", "paused", "completed")]
    assert desk.run("rollout", "status", "ro1", "--watch") == 0
    assert desk.out.count("health") == 3
    desk.server.waits = [rollout("running"), rollout("completed")]
    assert desk.json("rollout", "status", "ro1", "--watch")["state"] == "completed"


def test_watching_shows_stage_by_stage_and_ends_with_the_rollout(desk: Desk) -> None:
    def at(state: str, *confirmed: int) -> dict[str, Any]:
        stages = [
            {
                "number": n,
                "share_bp": 5000 * n,
                "state": "running",
                "devices": 4 * n,
                "confirmed": done,
            }
            for n, done in enumerate(confirmed, 1)
        ]
        return {"id": "ro1", "state": state, "stages": stages, "halt_reason": None}

    desk.server.waits = [at("running", 2, 0), at("running", 4, 1), at("completed", 4, 4)]
    assert desk.run("rollout", "status", "ro1", "--watch") == 0
    lines = desk.out.splitlines()
    bars = [line.split()[4:6] for line in lines if line.startswith(("1 ", "2 "))]
    assert bars == [
        ["#####.....", "2/4"],
        ["##........", "2/8"],
        ["##########", "4/4"],
        ["######....", "5/8"],
        ["##########", "4/4"],
        ["##########", "8/8"],
    ]
    assert lines[-1] == "rollout ro1 is completed"


def test_on_a_terminal_the_watched_rollout_stays_in_its_place(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("sys.stdout.isatty", lambda: True)
    monkeypatch.setenv("TERM", "xterm")
    desk.server.waits = [rollout(s) for s in ("running", "paused", "halted")]
    assert desk.run("rollout", "status", "ro1", "--watch") == 0
    assert "\x1b[" in desk.out  # the cursor goes back up
    assert desk.out.endswith("rollout ro1 is halted\n")


@pytest.mark.parametrize(
    ("states", "until", "code"),
    [
        (["running", "running", "completed"], "completed", 0),
        (["running", "paused"], "paused", 0),
        (["running", "halted"], "halted", 0),
        (["running", "halted"], "completed", 3),
        (["canceled"], "completed", 3),
        (["completed"], "paused", 3),
    ],
)
def test_waiting_ends_with_the_exit_code_of_the_end(
    desk: Desk, states: list[str], until: str, code: int
) -> None:
    desk.server.waits = [rollout(state) for state in states]
    assert desk.run("rollout", "wait", "ro1", "--until", until, "--json") == code
    assert json.loads(desk.out)["state"] == states[-1]


def test_waiting_ends_when_the_time_is_over(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    clock = iter(range(0, 1000, 4))
    monkeypatch.setattr(rollouts.time, "monotonic", lambda: next(clock))
    desk.server.waits = [rollout("running")]
    assert desk.run("rollout", "wait", "ro1", "--timeout", "30s") == 4
    assert len(desk.server.calls("GET")) == 5  # one look first


def test_waiting_says_why_it_was_halted(desk: Desk) -> None:
    desk.server.waits = [rollout("halted", halt_reason="wer")]
    assert desk.run("rollout", "wait", "ro1") == 3
    assert desk.out == "rollout ro1 is halted: wer\n"


def test_rollouts_are_listed_by_state(desk: Desk) -> None:
    asked: list[dict[str, str]] = []

    def answer(query: dict[str, str], _body: bytes) -> dict[str, Any]:
        asked.append(query)
        return {"items": [rollout("running")]}

    desk.server.answers["GET /v1/rollouts"] = answer
    assert desk.run("rollout", "list", "--state", "running") == 0
    assert asked == [{"state": "running"}]


@pytest.mark.parametrize("identity", ["", "..", "a/b", "a b", "a?b=1", "é", "a" * 65])
def test_an_id_that_is_none_is_not_sent(desk: Desk, identity: str) -> None:
    assert desk.run("rollout", "status", identity) == 2
    assert desk.server.seen == []


# --- cohorts and devices


def test_a_cohort_is_made_of_devices_or_of_a_filter(desk: Desk, sent: dict[str, Any]) -> None:
    words = ["cohort", "create", "k", "--model", "asr"]
    assert desk.run(*words, "--device", "d1", "--device", "d2") == 0
    assert sent["cohorts"] == {"name": "k", "model": "asr", "devices": ["d1", "d2"]}
    assert desk.run(*words, "--filter", "hardware=h1", "--filter", "tags.ring=beta") == 0
    assert sent["cohorts"]["filter"] == {"hardware": ["h1"], "tags": {"ring": "beta"}}


def test_an_enrollment_token_is_shown_once(desk: Desk, sent: dict[str, Any]) -> None:
    words = ["device", "token", "--model", "asr", "--uses", "3", "--ttl", "2h"]
    assert desk.json(*words)["token"] == "fe_1_abc"
    assert sent["enrollment-tokens"] == {"model": "asr", "uses": 3, "ttl_s": 7200, "cohort": None}


def test_devices_are_read_page_by_page(desk: Desk) -> None:
    asked: list[dict[str, str]] = []

    def answer(query: dict[str, str], _body: bytes) -> dict[str, Any]:
        asked.append(query)
        first = int(query.get("cursor", "0"))
        last = min(first + int(query["limit"]), 700)
        items = [{"id": f"d{n}"} for n in range(first, last)]
        return {"items": items, "next": str(last) if last < 700 else None}

    desk.server.answers["GET /v1/devices"] = answer
    assert len(desk.json("device", "list", "--limit", "600")["items"]) == 600
    assert asked == [{"limit": "500"}, {"limit": "100", "cursor": "500"}]
    assert len(desk.json("device", "list", "--limit", "5000")["items"]) == 700


def test_a_device_is_shown_with_its_events(desk: Desk) -> None:
    events = [{"seq": 1, "kind": "applied", "detail": "ok"}]
    device = {"id": "d1", "tags": {"ring": "beta"}, "deployments": [], "events": events}
    desk.server.answers["GET /v1/devices/d1"] = device
    assert desk.run("device", "show", "d1") == 0
    assert "ring=beta" in desk.out
    assert "applied" in desk.out


def test_a_rollout_is_rehearsed_as_it_would_be_started_and_none_is_made(
    desk: Desk, sent: dict[str, Any]
) -> None:
    asked: list[Any] = []
    stage = {"number": 1, "devices": 7, "seconds": 93784, "detects_wer_bp": None}
    notes = [{"about": "budget", "says": "the bytes last for about 3 of 7 devices"}]
    answered = {"devices": 7, "bytes": 70, "seconds": 93784, "budget": {"devices": 3}}

    def answer(_query: dict[str, str], body: bytes) -> dict[str, Any]:
        asked.append(json.loads(body))
        return answered | {"notes": notes, "stages": [stage]}

    desk.server.answers["POST /v1/rollouts/simulate"] = answer
    costs = ["--bytes", "5GB", "--window", "01:00-05:00", "--per-minute", "9"]
    words = ["asr", "r2", "--cohort", "k", "--stages", "100%", "--gate", "clip=0.1", *costs]
    assert desk.json("rollout", "simulate", *words)["budget"] == answered["budget"]
    assert sent == {}, "nothing was made"
    assert desk.run("rollout", "start", *words) == 0
    assert asked == [sent["rollouts"]]
    assert desk.run("rollout", "simulate", *words) == 0
    assert "1 day, 2:03:04" in desk.out and notes[0]["says"] in desk.out
    assert "DEVICES" in desk.out and "REFUSED" not in desk.out
