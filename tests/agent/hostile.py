"""What every lie must come to: refused with its code, reported once, and nothing else."""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

from device_agent.journal import Journal
from tests.agent.conftest import Lab
from tests.agent.loopback import Answer, Asked, Lie

HONEST: Lie = lambda asked, answer: answer  # noqa: E731


def lies_about(path: str, change: Callable[[Answer], Answer]) -> Lie:
    def lie(asked: Asked, answer: Answer) -> Answer:
        return change(answer) if path in asked.path and answer.status == 200 else answer

    return lie


def installed(lab: Lab) -> tuple[bytes, Path, set[str]]:
    """The bytes that run, the slot they are in, and every model that was found good."""
    state = lab.config.state_dir
    return lab.running(), (state / "current").readlink(), set(Journal(state).memory.good)


def must_refuse(lab: Lab, *codes: str) -> None:
    """The lie is refused with one of these codes, reported once, and leaves nothing behind."""
    before = installed(lab)
    outcome = lab.once()
    assert outcome.kind == "refused" and outcome.reason in codes, outcome
    lab.once()
    assert installed(lab) == before
    refused = [e for e in lab.server.events if e["kind"] == "refused"]
    assert [e["reason"] for e in refused] == [outcome.reason]


def must_recover(lab: Lab, release: str = "r2") -> None:
    """Once the server is honest again, the device does what it says."""
    lab.server.lie = HONEST
    assert (lab.once().kind, lab.release_running()) == ("committed", release)


def change_bundle(change: Callable[[dict[str, Any]], Any]) -> Lie:
    def lie(answer: Answer) -> Answer:
        document = json.loads(answer.body)
        change(document)
        return replace(answer, body=json.dumps(document).encode())

    return lies_about("poll", lie)
