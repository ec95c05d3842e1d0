"""What every lie must come to: refused with its code, reported once, and nothing else."""

import json
from collections.abc import Callable
from copy import deepcopy
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


def must_hold_out(lab: Lab, change: Callable[[Lab], Any], *codes: str, then: str = "r2") -> None:
    """What every row demands: a device refuses, and installs when the server is honest again.

    Refused with a code, told once; the model's bytes and what is installed stay.
    """
    server = lab.server
    assert lab.once() is None
    kept = {n: dict(getattr(server, n)) for n in ("files", "bodies", "blobs", "keys", "releases")}
    documents = deepcopy(server.documents)
    server.offer("r2")
    change(lab)
    must_refuse(lab, *codes)
    for role in documents.keys() - {"root"}:  # What was seen is seen: honest versions are higher.
        seen = server.documents[role].signed.version
        documents[role].signed.version = max(seen, documents[role].signed.version)
    vars(server).update(kept, documents=documents)
    documents["targets"].signed.version += 1
    server.put("targets", documents["targets"])
    server.sign_all()
    server.seq += 9
    server.offer(then)
    must_recover(lab, then)


def change_bundle(change: Callable[[dict[str, Any]], Any]) -> Lie:
    def lie(answer: Answer) -> Answer:
        document = json.loads(answer.body)
        change(document)
        return replace(answer, body=json.dumps(document).encode())

    return lies_about("poll", lie)
