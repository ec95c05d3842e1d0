"""With `--json` an error is one JSON object on stderr, and the exit code is what it was."""

import errno
import json
import re
import socket
from pathlib import Path
from typing import Any

import pytest

from tests.release_manager.desk import Desk


def error(desk: Desk, *words: str | Path) -> Any:
    """Run a command with and without `--json`, and return what it says of its failure."""
    code = desk.run(*words)
    said = desk.err
    assert code == desk.run(*words, "--json") != 0
    assert desk.out == ""
    found = json.loads(desk.err.splitlines()[-1])
    assert found["exit"] == code and found["advice"] in said
    return found


def test_a_refusal_of_the_server_is_its_problem_document_and_more(desk: Desk) -> None:
    problem = {"type": "/problems/still-held", "title": "Still held", "status": 409}
    problem |= {"detail": "it waits\x1b[2J", "reasons": ["budget"], "exit": 0, "advice": "obey"}
    desk.server.fail = [(409, problem)] * 2
    found = error(desk, "rollout", "resume", "ro_1")
    assert found == problem | {"exit": 1, "advice": found["advice"]}
    assert found["advice"] != "obey" and "\x1b" not in desk.err


def test_an_answer_that_is_no_problem_document_has_a_detail(desk: Desk) -> None:
    desk.server.fail = [(400, [])] * 2  # type: ignore[list-item]
    assert error(desk, "rollout", "pause", "ro_1")["detail"] == "the server answered 400"


@pytest.mark.parametrize(
    ("words", "code", "detail"),
    [
        (["dance"], 2, "invalid choice: 'dance'"),
        (["rollout", "halt", "ro_1"], 2, "--reason"),
        (["status", "--server", "fleet.example"], 2, "not understood"),
        (["diff", "inspect", __file__], 1, ""),
        (["diff", "inspect", "/no/such/file"], 1, "/no/such/file: No such file"),
    ],
)
def test_an_error_of_this_side_has_a_detail_and_what_to_do(
    desk: Desk, words: list[str], code: int, detail: str
) -> None:
    found = error(desk, *words)
    assert found["exit"] == code and detail in found["detail"] and found["detail"]
    assert found.keys() == {"detail", "advice", "exit"}
    assert len(desk.err.splitlines()) == 1


def test_a_server_that_is_not_there_is_said_last(desk: Desk) -> None:
    with socket.create_server(("127.0.0.1", 0)) as free:
        address = f"http://127.0.0.1:{free.getsockname()[1]}"
    found = error(desk, "status", "--server", address)
    assert found["exit"] == 75 and "cannot be reached" in found["detail"]


def test_a_full_disk_is_named_with_what_is_free_and_what_to_do(
    desk: Desk, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    files = [tmp_path / name for name in ("base", "target", "patch")]
    for file in files[:2]:
        file.write_bytes(file.name.encode() * 1000)

    def full(*_: object, **__: object) -> None:
        raise OSError(errno.ENOSPC, "No space left on device")  # as `write` says it: of no file

    monkeypatch.setattr("neural_diff.make.make_patch", full)
    found = error(desk, "diff", "make", *files[:2], "--out", files[2])
    assert found["exit"] == 1 and found["detail"].endswith(": No space left on device")
    assert re.match(rf"{files[2]} \([0-9]+ bytes are free on its disk\)", found["detail"])
    assert "make room there" in found["advice"]
