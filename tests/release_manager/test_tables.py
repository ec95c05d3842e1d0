"""What people read in eighty letters a line; machines read --json."""

import pytest

from release_manager import rollouts, show
from tests.release_manager.desk import Desk


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("change_bp", -285, "-2.85 points"),
        ("share_bp", 10_000, "100 %"),
        ("last_seen_at", "2026-11-27T00:44:57.932934Z", "2026-11-27 00:44:57Z"),
        ("at", "2026-11-27T00:46:55.574012+00:00", "2026-11-27 00:46:55Z"),
        ("reason", "since 2026-11-27T00:44:57Z", "since 2026-11-27T00:44:57Z"),
    ],
)
def test_a_change_is_in_points_and_a_moment_in_seconds(name: str, value: object, text: str) -> None:
    assert show.value_text(name, value) == text


def test_a_table_fits_a_terminal_and_no_word_of_it_is_broken() -> None:
    token = {"id": "dd1f2c1352b748ae", "scopes": ["rollouts:halt", "rollouts:read"] * 4}
    token |= {"last_used_at": "2026-11-27T00:46:12.8Z", "expires_at": "2026-12-27T00:46:12.8Z"}
    rows, columns = [token, {**token, "scopes": []}], "id scopes last_used_at expires_at"
    whole = show.as_table(rows, columns).splitlines()
    assert len(whole) == 3 and len(whole[1]) > 150
    fitting = show.as_table(rows, columns, 60).splitlines()
    assert max(map(len, fitting)) <= 60 and len(fitting) > 5
    assert {*" ".join(fitting).split()} == {*" ".join(whole).split()}


def test_a_terminal_gets_as_much_of_a_digest_as_tells_it_apart() -> None:
    rows = [{"sha256": "ab" * 32, "bytes": 1}]
    assert show.as_table(rows, "sha256 bytes", 80).splitlines()[1] == "abababababab…  1 byte"
    assert show.as_table(rows, "sha256 bytes").splitlines()[1].startswith("ab" * 32)


def test_what_a_rollout_waits_for_is_among_the_first_lines() -> None:
    health = {"pairs": 0, "waiting_for": "a person resumes it"}
    text = rollouts.text({"id": "ro1", "state": "paused", "cohort": "c", "health": health})
    assert text.splitlines()[2].split(maxsplit=2) == ["waiting", "for", "a person resumes it"]
    assert text.count("a person resumes it") == 1


def test_the_fleet_is_shown_with_a_line_for_each_release_the_newest_first(desk: Desk) -> None:
    releases = [{"name": f"r{n}", "status": "active", "devices": n, "bytes": 1} for n in range(30)]
    paused = {"id": "ro1", "state": "paused", "reasons": ["budget", "operator"]}
    models = [{"name": "asr", "releases": releases, "unknown": 0}]
    desk.server.answers["GET /v1/whoami"] = {"name": "me"}
    desk.server.answers["GET /v1/health"] = {"models": models, "rollouts": [paused]}
    assert desk.run("status") == 0
    rows = [line.split() for line in desk.out.splitlines() if line.startswith("asr ")]
    assert len(rows) == 30 and rows[0] == ["asr", "r29", "active", "1", "byte", "29"]
    assert "budget, operator" in desk.out
    assert desk.json("status")["health"]["models"] == models
