"""The engine in every state of disrepair, and the gate."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.canary import (
    Counts,
    Engine,
    Shard,
    gate_refuses,
    read_counts,
    read_manifest,
    run_engine,
    run_trial,
)
from device_agent.errors import Rejected
from tests.agent.conftest import Lab
from tests.agent.server_double import digest

SHARD = Shard("03.zip", "b" * 64, 8, 50, 400, "a" * 64)
COUNTS = {
    "sub": 20,
    "del": 3,
    "ins": 1,
    "utterances": 50,
    "ref_words": 400,
    "canary_set": "a" * 64,
    "scorer": "wer/1",
    "runtime": "sh/1",
}
errors = st.integers(0, 2000)


@given(old=errors, new=errors, words=st.integers(1, 2000))
def test_the_gate_never_refuses_a_model_that_is_not_worse(old: int, new: int, words: int) -> None:
    if new <= old:
        assert not gate_refuses(old, new, words)


@given(old=errors, new=errors, words=st.integers(1, 2000))
def test_the_gate_is_monotone_in_the_new_errors(old: int, new: int, words: int) -> None:
    if gate_refuses(old, new, words):
        assert gate_refuses(old, new + 1, words)


@pytest.mark.parametrize(
    ("old", "new", "refused"), [(20, 40, False), (20, 60, True), (0, 20, False), (0, 21, True)]
)
def test_the_gate_at_its_edges(old: int, new: int, refused: bool) -> None:
    assert gate_refuses(old, new, 400) is refused


@pytest.mark.parametrize(
    "changes",
    [
        {"sub": -1},
        {"sub": 2.0},
        {"sub": True},
        {"sub": "1"},
        {"sub": None},
        {"sub": 399},
        {"ins": 401},
        {"utterances": 49},
        {"ref_words": 401},
        {"canary_set": "c" * 64},
        {"runtime": ""},
        {"runtime": "two words"},
        {"scorer": 7},
        {"sub": 10**7},
    ],
)
def test_impossible_counts_are_refused(changes: dict[str, Any]) -> None:
    assert read_counts(json.dumps(COUNTS).encode(), SHARD, 5).errors == 24
    with pytest.raises(Rejected, match="E_ENGINE"):
        read_counts(json.dumps({**COUNTS, **changes}).encode(), SHARD, 5)


@pytest.mark.parametrize("output", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_rubbish_is_no_count(output: bytes) -> None:
    with pytest.raises(Rejected, match="E_ENGINE"):
        read_counts(output, SHARD, 5)


@pytest.mark.parametrize(
    "change",
    [
        {"file": "../x"},
        {"file": "canary.json"},
        {"file": ".hidden"},
        {"file": 3},
        {"bytes": 0},
        {"ref_words": "400"},
        {"sha256": "c" * 64},
    ],
)
def test_a_manifest_that_cannot_be_is_refused(change: dict[str, Any]) -> None:
    row = {"file": "03.zip", "sha256": "b" * 64, "bytes": 8, "utterances": 50, "ref_words": 400}
    assert read_manifest(json.dumps({"shards": [row]}).encode(), "b" * 64).ref_words == 400
    with pytest.raises(Rejected, match="E_CANARY"):
        read_manifest(json.dumps({"shards": [{**row, **change}]}).encode(), "b" * 64)


def run(script: str, timeout_s: float = 10) -> Counts:
    return run_engine(
        Engine(("/bin/sh", "-c", script), timeout_s), Path("model"), Path("canary"), SHARD
    )


def test_an_engine_that_hangs_is_killed_with_its_children() -> None:
    started = time.monotonic()
    with pytest.raises(Rejected, match="E_SLOW"):
        run("sleep 30 & sleep 30", 0.1)
    assert time.monotonic() - started < 5


def test_an_engine_that_closes_its_output_and_hangs_is_killed() -> None:
    with pytest.raises(Rejected, match="E_SLOW"):
        run("exec >&-; sleep 30", 0.1)


def test_an_engine_that_never_stops_printing_is_cut() -> None:
    with pytest.raises(Rejected, match=r"E_ENGINE.*printed more"):
        run("yes")


@pytest.mark.parametrize("script", ["exit 2", "kill -SEGV $$", "echo hello"])
def test_an_engine_that_fails_is_refused(script: str) -> None:
    with pytest.raises(Rejected, match="E_ENGINE"):
        run(script)


def test_an_engine_that_is_not_there_is_refused() -> None:
    with pytest.raises(Rejected, match="cannot be started"):
        run_engine(Engine(("/no/such/engine",), 1), Path("m"), Path("c"), SHARD)


class Heard:
    """An engine in memory: which model was run, in which order."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch) -> None:
        self.runs: list[str] = []
        self.runtime = "x/1"
        self.deaf: set[str] = set()
        self.known: dict[str, Counts] = {}
        monkeypatch.setattr("device_agent.canary.run_engine", self.run)

    def run(self, engine: Engine, model: Path, folder: Path, shard: Shard) -> Counts:
        self.runs.append(model.name)
        if model.name in self.deaf:
            raise Rejected("E_ENGINE", "crashed")
        return Counts({"sub": 20, "del": 0, "ins": 0}, 1, "wer/1", self.runtime)

    def trial(self, old: str, new: str, *, old_first: bool) -> Any:
        models = (digest(old.encode()), Path(old)), (digest(new.encode()), Path(new))
        trial = run_trial(Engine((), 1), models, SHARD, Path("c"), self.known, old_first=old_first)
        if trial:
            self.known = trial.kept
        return trial


@pytest.fixture
def heard(monkeypatch: pytest.MonkeyPatch) -> Heard:
    return Heard(monkeypatch)


def test_the_order_is_as_drawn(heard: Heard) -> None:
    assert heard.trial("r1", "r2", old_first=False).old_first is False
    assert heard.runs == ["r2", "r1"]


def test_a_model_that_was_heard_before_is_not_heard_again(heard: Heard) -> None:
    heard.trial("r1", "r2", old_first=True)
    assert heard.trial("r2", "r3", old_first=False).old_first is True
    assert heard.runs == ["r1", "r2", "r3"]


def test_another_runtime_makes_earlier_counts_worthless(heard: Heard) -> None:
    heard.trial("r1", "r2", old_first=True)
    heard.runtime = "x/2"
    trial = heard.trial("r2", "r3", old_first=True)
    assert heard.runs[2:] == ["r3", "r2"]
    assert (trial.old_first, trial.old.runtime) == (False, "x/2")


@pytest.mark.parametrize("old_first", [True, False])
def test_a_running_model_that_is_deaf_does_not_keep_its_successor_out(
    heard: Heard, old_first: bool
) -> None:
    heard.deaf = {"r1"}
    assert heard.trial("r1", "r2", old_first=old_first) is None


@pytest.mark.parametrize("old_first", [True, False])
def test_a_new_model_that_is_deaf_is_refused(heard: Heard, old_first: bool) -> None:
    heard.deaf = {"r2"}
    with pytest.raises(Rejected):
        heard.trial("r1", "r2", old_first=old_first)


@pytest.mark.parametrize(
    ("script", "code"),
    [("exit 1", "E_ENGINE"), ("echo 7", "E_ENGINE"), ("sleep 9", "E_SLOW")],
)
def test_a_release_that_the_engine_cannot_run_is_refused_for_good(
    new_lab: Callable[..., Lab], script: str, code: str
) -> None:
    lab = new_lab()
    limits = replace(lab.config.limits, recogniser_s_max=0.1)
    lab.config = replace(lab.config, recogniser=("/bin/sh", "-c", script), limits=limits)
    lab.server.offer("r2")
    outcome = lab.once()
    assert (outcome.kind, outcome.reason, lab.release_running()) == ("refused", code, "r1")
    fetched = len(lab.server.asked)
    assert lab.once() is None
    assert not any("artifacts" in asked.path for asked in lab.server.asked[fetched:])


def test_a_much_worse_release_is_refused_for_good_and_reported(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab(new_errors=90)
    lab.server.offer("r2")
    outcome = lab.once()
    assert (outcome.kind, outcome.reason, lab.release_running()) == ("refused", "E_GATE", "r1")
    (report,) = lab.server.reports
    assert (report["gate"], report["new"]["sub"], report["attempt"]) == ("refused", 90, 1)
    assert lab.once() is None


def test_a_second_deployment_of_a_release_is_a_second_attempt(
    new_lab: Callable[..., Lab],
) -> None:
    lab = new_lab(new_errors=90)
    for attempt in (1, 2):
        lab.server.offer("r2")
        assert lab.once().reason == "E_GATE"
        assert lab.server.reports[-1]["attempt"] == attempt
    assert len({report["report_id"] for report in lab.server.reports}) == 2


def test_a_shard_that_is_not_the_manifests_is_refused(lab: Lab) -> None:
    lab.server.offer("r2")
    assert lab.server.plan is not None
    lab.server.blobs[digest(b"other")] = b"other"
    lab.server.plan["canary"].update(shard_sha256=digest(b"other"), shard_bytes=5)
    assert lab.once().reason == "E_CANARY"
