import inspect
import json
import shlex
import socket
from pathlib import Path

import pytest

from release_manager import show
from release_manager.__main__ import COMMANDS, build_parser, words_of
from tests.release_manager.desk import Desk
from tests.release_manager.fake_server import TOKEN, FakeServer


@pytest.mark.parametrize("usage", COMMANDS)
def test_every_command_has_help_an_example_and_the_exit_codes(desk: Desk, usage: str) -> None:
    assert desk.run(*words_of(usage), "--help") == 0
    for part in ("Example:", f"  fleetdiff {' '.join(words_of(usage))}", "exit codes:", "--json"):
        assert part in desk.out
    assert (inspect.getdoc(COMMANDS[usage]) or "").splitlines()[0].endswith(".")


@pytest.mark.parametrize("usage", COMMANDS)
def test_every_example_is_a_command(usage: str) -> None:
    lines = (inspect.getdoc(COMMANDS[usage]) or "").splitlines()
    examples = [line for line in lines if line.startswith("  fleetdiff ")]
    assert examples
    for example in examples:
        args = build_parser().parse_args(shlex.split(example)[1:])
        assert args.run is COMMANDS[usage]


@pytest.mark.parametrize(
    "words",
    [
        "",
        "dance",
        "rollout halt ro_1",
        "rollout start asr r2 --cohort c --stages 5%,4%",
        "release publish Asr r1 file",
        "device token --model asr --ttl soon",
        "cohort create c --model asr",
        "cohort create c --model asr --device d1 --filter hardware=h1",
        "diff make a",
        "diff make a b --buckets c -o d --result e",
        "login --server http://127.0.0.1:9",
        "init",
        "status --server fleet.example",
        "status --server https://user:pw@fleet.example",
    ],
)
def test_wrong_usage_is_two_lines_and_exit_code_2(desk: Desk, words: str) -> None:
    assert desk.run(*words.split()) == 2
    assert len(desk.err.splitlines()) == 2
    assert desk.err.startswith("fleetdiff: ")
    assert desk.out == ""


def test_json_is_one_document_on_stdout(desk: Desk) -> None:
    desk.server.answers["GET /v1/cohorts"] = {"items": [{"name": "k", "count": 3}]}
    assert desk.json("cohort", "list") == {"items": [{"name": "k", "count": 3}]}


def test_a_list_is_a_table(desk: Desk) -> None:
    desk.server.answers["GET /v1/cohorts"] = {"items": [{"name": "k", "model": "asr", "count": 3}]}
    assert desk.run("cohort", "list") == 0
    assert [line.split() for line in desk.out.splitlines()] == [
        ["NAME", "MODEL", "KIND", "COUNT", "COUNTED", "FILTER"],
        ["k", "asr", "-", "3", "-", "-"],
    ]


def test_an_empty_list_says_so(desk: Desk) -> None:
    desk.server.answers["GET /v1/models"] = {"items": []}
    assert desk.run("model", "list") == 0
    assert desk.out == "none\n"


def test_status_shows_who_and_how(desk: Desk) -> None:
    desk.server.answers["GET /v1/whoami"] = {"name": "ann", "scopes": ["devices:read"]}
    desk.server.answers["GET /v1/health"] = {"devices": 7}
    assert desk.json("status")["health"] == {"devices": 7}
    assert desk.run("status") == 0
    assert desk.out.splitlines()[2:] == [
        *("whoami", "name    ann", "scopes  devices:read", ""),
        *("health", "devices  7"),
    ]


def test_a_refusal_shows_title_detail_and_fields(desk: Desk) -> None:
    problem = {"title": "Conflict", "detail": "it runs", "status": 409, "state": "running"}
    desk.server.fail = [(409, problem)]
    assert desk.run("rollout", "pause", "ro_1") == 1
    assert desk.err.splitlines()[0] == "fleetdiff: Conflict: it runs (state=running)"


def test_a_wrong_token_says_how_to_log_in(desk: Desk) -> None:
    assert desk.run("status", "--token", "fd_00000000_wrong") == 1
    assert "fleetdiff login" in desk.err
    assert "wrong" not in desk.err


def test_a_server_that_is_not_there_is_exit_code_75(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        port = free.getsockname()[1]
    assert desk.run("status", "--server", f"http://127.0.0.1:{port}") == 75
    assert "run the same command again" in desk.err


def test_trouble_is_tried_again_where_that_is_safe(desk: Desk) -> None:
    desk.server.answers["GET /v1/models"] = {"items": []}
    desk.server.fail = [(503, {}), (502, {}), (429, {}), (504, {})]
    assert desk.run("model", "list") == 0
    assert len(desk.server.seen) == 5
    desk.server.fail = [(503, {})] * 9
    assert desk.run("model", "list") == 75
    assert len(desk.server.seen) == 10


def test_devices_are_quarantined_readmitted_and_revoked(desk: Desk) -> None:
    desk.server.answers["PATCH /v1/devices/dev_1"] = lambda _query, body: json.loads(body)
    for verb, status in (
        ("quarantine", "quarantined"),
        ("readmit", "active"),
        ("revoke", "revoked"),
    ):
        desk.server.fail = [(503, {})]  # the same change may be asked for again
        assert desk.json("device", verb, "dev_1") == {"status": status}


def test_a_token_is_asked_for_with_its_scopes_and_its_end(desk: Desk) -> None:
    desk.server.answers["POST /v1/tokens"] = lambda _query, body: json.loads(body)
    words = "token create ci --scope releases:write --scope releases:read --lifetime 30d"
    scopes = ["releases:write", "releases:read"]
    asked = {"name": "ci", "scopes": scopes, "ttl_s": 30 * 86400, "networks": None}
    assert desk.json(*words.split()) == asked
    networks = {"networks": ["10.0.0.0/8"], "ttl_s": 90 * 86400}
    words = words.replace("--lifetime 30d", "--network 10.0.0.0/8")
    assert desk.json(*words.split()) == asked | networks
    assert desk.run("token", "create", "ci") == 2
    desk.server.answers["POST /v1/tokens/0a/revoke"] = {"id": "0a", "revoked_at": "now"}
    assert desk.json("token", "revoke", "0a")["revoked_at"] == "now"
    desk.server.answers["GET /v1/tokens"] = {"items": [{"id": "0a", "scopes": scopes}]}
    assert desk.run("token", "list") == 0 and "releases:write, releases:read" in desk.out


def test_an_address_is_told_of_rollouts_unless_it_asks_for_something_else(desk: Desk) -> None:
    desk.server.answers["POST /v1/webhooks"] = lambda _query, body: json.loads(body)
    made = desk.json("webhook", "create", "https://hooks.example/ci")
    assert made == {"url": "https://hooks.example/ci"}, "the server knows the default"
    words = "webhook create https://hooks.example/ci --event release.* --event cohort.create"
    assert desk.json(*words.split())["events"] == ["release.*", "cohort.create"]
    for verb in ("enable", "test"):
        desk.server.answers[f"POST /v1/webhooks/0a/{verb}"] = {"id": "0a", "state": "active"}
        assert desk.json("webhook", verb, "0a")["state"] == "active"
    desk.server.answers["DELETE /v1/webhooks/0a"] = {}
    assert desk.json("webhook", "delete", "0a") == {"deleted": "0a"}
    desk.server.answers["GET /v1/webhooks"] = {"items": [{"id": "0a", "last_error": "it fell"}]}
    assert desk.run("webhook", "list") == 0 and "it fell" in desk.out


def test_a_post_is_sent_again_with_the_same_key_and_the_next_one_with_another(desk: Desk) -> None:
    desk.server.answers["POST /v1/rollouts/ro_1/pause"] = {"id": "ro_1", "state": "paused"}
    desk.server.fail = [(503, {}), (429, {})]
    for _ in range(2):
        assert desk.run("rollout", "pause", "ro_1") == 0
    first, again, third, other = desk.server.keys_seen
    assert first and first == again == third != other


def test_an_answer_that_is_no_json_is_refused(desk: Desk) -> None:
    desk.server.answers["GET /v1/models"] = b"<html>a proxy</html>"
    assert desk.run("model", "list") == 1
    assert "not JSON" in desk.err


def test_a_refusal_without_a_problem_document_is_understood(desk: Desk) -> None:
    desk.server.fail = [(500, b"<html>")]  # type: ignore[list-item]
    assert desk.run("model", "list") == 1
    assert "the server answered 500" in desk.err


@pytest.mark.attack("M43")
def test_the_token_does_not_follow_a_redirect(desk: Desk) -> None:
    desk.server.fail = [(307, {"location": f"{desk.server.address}/elsewhere"})]
    assert desk.run("model", "list") == 1
    assert desk.server.tokens_seen == [f"Bearer {TOKEN}", ""]


def test_a_redirected_post_is_refused(desk: Desk) -> None:
    desk.server.fail = [(302, {"location": f"{desk.server.address}/elsewhere"})]
    assert desk.run("rollout", "pause", "ro_1") == 1
    assert len(desk.server.seen) == 1


@pytest.mark.attack("A22")
def test_control_characters_of_a_device_do_not_reach_the_terminal(desk: Desk) -> None:
    device = {"id": "d1", "serial": "\x1b[2Jx\n", "events": [{"kind": "note", "detail": "\x1b]0;"}]}
    desk.server.answers["GET /v1/devices/d1"] = device
    assert desk.run("device", "show", "d1") == 0
    assert "\x1b" not in desk.out
    desk.server.fail = [(409, {"title": "\x1b[31mred", "detail": "a\nb"})]
    assert desk.run("device", "show", "d1") == 1
    assert "\x1b" not in desk.err
    assert len(desk.err.splitlines()) == 2


@pytest.mark.parametrize(
    ("name", "value", "text"),
    [
        ("bytes", 999, "999 bytes"),
        ("bytes_sent", 1_500_000, "1.5 MB"),
        ("patch_bytes", 12_345, "12.3 kB"),
        ("new_wer_bp", 421, "4.21 %"),
        ("new_wer_bp", None, "-"),
        ("seconds_anytime", 93_784, "1 day, 2:03:04"),
        ("share", 0.0123, "1.23 %"),
        ("active", True, "yes"),
        ("tags", {"a": 1, "b": [2, 3]}, "a=1 b=2, 3"),
        ("bytes_full", 5 * 10**12, "5.0 TB"),
        ("may_sign", ["ab" * 32, "cd" * 32], "abababababab…, cdcdcdcdcdcd…"),
    ],
)
def test_a_value_is_shown_with_its_unit(name: str, value: object, text: str) -> None:
    assert show.value_text(name, value) == text


# --- configuration


def test_login_writes_what_later_commands_use(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    desk.server.answers["GET /v1/whoami"] = {"name": "ann"}
    for name in ("SERVER", "TOKEN"):
        monkeypatch.delenv(f"FLEETDIFF_{name}")
    assert desk.run("status") == 2
    words = ["login", "--server", desk.server.address + "/", "--token", TOKEN]
    assert desk.json(*words)["name"] == "ann"
    file = tmp_path / "config" / "fleetdiff" / "config.toml"
    assert file.stat().st_mode & 0o777 == 0o600
    desk.server.answers["GET /v1/health"] = {}
    assert desk.run("status") == 0


def test_login_reads_the_token_from_stdin(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    import io

    desk.server.answers["GET /v1/whoami"] = {"name": "ann"}
    monkeypatch.setattr("sys.stdin", io.StringIO(TOKEN + "\n"))
    assert desk.run("login", "--server", desk.server.address, "--token", "-") == 0


def test_a_refused_token_is_not_written(desk: Desk, tmp_path: Path) -> None:
    assert desk.run("login", "--server", desk.server.address, "--token", "fd_1_no") == 1
    assert not (tmp_path / "config").exists()


def test_flags_come_before_the_environment_and_that_before_the_file(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    from release_manager.config import read_settings

    file = tmp_path / "config" / "fleetdiff" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text('server = "http://file"\ntoken = "f"\nkeys = "/file"\n')
    home = {"XDG_CONFIG_HOME": str(tmp_path / "config")}
    stored = read_settings({}, home)
    assert (stored.server, stored.keys) == ("http://file", Path("/file"))
    outer = home | {"FLEETDIFF_SERVER": "http://env", "FLEETDIFF_KEYS": "/env"}
    assert read_settings({}, outer).server == "http://env"
    flags = {"server": "http://flag", "token": "t", "keys": Path("/flag")}
    chosen = read_settings(flags, outer)
    assert (chosen.server, chosen.keys) == ("http://flag", Path("/flag"))
    assert repr(chosen).count("***") == 1


@pytest.mark.parametrize("text", [f'token = "{TOKEN}', f'token = {{a = "{TOKEN}"}}', "\udcff"])
def test_a_damaged_configuration_is_refused_without_showing_it(
    desk: Desk, tmp_path: Path, text: str
) -> None:
    file = tmp_path / "config" / "fleetdiff" / "config.toml"
    file.parent.mkdir(parents=True)
    file.write_text(text, errors="surrogateescape")
    assert desk.run("model", "list") == 2
    assert "fleetdiff login" in desk.err


def test_a_bar_moves_only_on_a_terminal(
    server: FakeServer, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    with show.progress("[x]") as report:
        report(1, 2)
    assert capsys.readouterr().err == ""
    monkeypatch.setattr("sys.stderr.isatty", lambda: True)
    with show.progress("[x] file") as report:
        report(1, 2)
    assert "[x] file" in capsys.readouterr().err
