"""What a person at a device is told: what it does, and why it does no more."""

import json
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from device_agent.__main__ import main
from device_agent.errors import Unavailable
from device_agent.journal import Memory
from device_agent.states import Idle
from device_agent.status import because, status
from tests.agent.conftest import Lab
from tests.agent.loopback import Answer, Asked

NOW = datetime(2026, 11, 20, tzinfo=UTC)


def told(lab: Lab) -> dict[str, Any]:
    return status(lab.config)


def test_a_device_that_nobody_enrolled_says_what_to_do(lab: Lab, tmp_path: Path) -> None:
    found = status(replace(lab.config, state_dir=tmp_path / "none"))
    assert (found["enrolled"], found["because"]) == (False, "enroll it: --token TOKEN")


@pytest.mark.parametrize("hold", ["not_in_stage", "backoff", "\x1b[2J" + "x" * 500, 7])
def test_a_device_without_an_order_says_why_in_the_servers_word(lab: Lab, hold: Any) -> None:
    lab.server.hold = hold
    assert lab.once() is None
    shown = told(lab)["because"]
    assert shown.startswith("the server says ") and len(shown) < 90 and shown.isprintable()
    assert str(hold).strip("\x1b")[:40] in shown
    assert lab.once() is None  # a 304 is the same answer
    assert told(lab)["because"] == shown


def test_once_says_why_there_is_nothing_to_do(
    lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    lab.server.hold = "no_rollout"
    assert main(["once", "--config", str(toml), "--json"]) == 0
    answer = json.loads(capsys.readouterr().out)
    assert (answer["outcome"], answer["reason"]) == ("nothing to do", "no_rollout")


def test_what_the_server_said_is_forgotten_when_it_offers_something(lab: Lab) -> None:
    lab.server.hold = "no_rollout"
    lab.once()
    lab.server.hold = None
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    assert told(lab)["because"] == "the server says up_to_date"
    assert told(lab)["last_attempt"].startswith("committed release r2 runs ")


def test_trouble_is_told_until_it_is_over(lab: Lab) -> None:
    lab.server.offer("r2")
    lab.server.lie = lambda asked, answer: cut(asked, answer)
    with pytest.raises(Unavailable):
        lab.once()
    shown = told(lab)
    assert shown["doing"] == "downloads what leads to release r2"
    assert shown["because"].startswith("cut off after 0 of")
    lab.server.lie = lambda asked, answer: answer
    assert lab.once().kind == "committed"
    assert told(lab)["because"] == "the server says up_to_date"


def cut(asked: Asked, answer: Answer) -> Answer:
    return Answer(chunks=[b""], declare=len(answer.body)) if "artifacts" in asked.path else answer


def test_a_refusal_is_told_until_another_attempt_ends(lab: Lab) -> None:
    lab.server.offer("r2", device="d2")
    assert lab.once().kind == "refused"
    assert told(lab)["last_attempt"].startswith("refused E_AUD ")


def test_a_disk_that_is_full_is_told_by_the_error_where_it_cannot_be_kept(lab: Lab) -> None:
    def full(**changes: Any) -> None:
        raise OSError(28, "No space left on device")

    with lab.device() as device:
        device.journal.remember = full  # type: ignore[method-assign]
        device.tell_trouble(OSError(28, "No space left on device"))


def test_a_model_that_somebody_changed_is_named(lab: Lab) -> None:
    (lab.config.state_dir / "current" / "model").write_bytes(b"other")
    assert "somebody changed it" in told(lab)["because"]


def test_a_wrong_clock_or_a_long_silence_is_named() -> None:
    memory = Memory(fresh_until="2026-11-19T00:00:00Z", hold="not_in_stage")
    shown = because(Idle(), memory, "", NOW)
    assert "2026-11-19" in shown and "this clock says 2026-11-20 00:00" in shown
    assert because(Idle(), memory, "", NOW - timedelta(days=2)) == "the server says not_in_stage"


def test_people_read_words_and_machines_read_json(
    lab: Lab, toml: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["status", "--config", str(toml)]) == 0
    shown = capsys.readouterr().out
    assert "enrolled: yes\n" in shown and "doing: waits for its next poll\n" in shown
    assert "release=r1 good=yes" in shown or "good=yes" in shown
    assert "{" not in shown and "None" not in shown and "deployment" not in shown
