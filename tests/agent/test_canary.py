"""The engine in every state of disrepair, and the gate."""

import json
import time
from collections.abc import Callable
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent.canary import gate_refuses, read_manifest
from device_agent.engine import Counts, Engine, Shard, read_counts, run_engine
from device_agent.errors import Rejected
from tests.agent.conftest import Lab
from tests.agent.server_double import COUNTED, NOW, digest

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
EACH = [1] * 24 + [0] * 26
HEARD = ["", *["ab12"] * 49]
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
        {"by_utterance": EACH[1:]},
        {"by_utterance": [*EACH[1:], 0]},
        {"by_utterance": [2, -1, *EACH[2:], 0]},
        {"by_utterance": 24},
        {"heard": HEARD[1:]},
        {"heard": ["the words", *HEARD[1:]]},
        {"heard": ["0" * 17, *HEARD[1:]]},
        {"heard": [None, *HEARD[1:]]},
        {"heard": "ab"},
    ],
)
def test_impossible_counts_are_refused(changes: dict[str, Any]) -> None:
    for fine in (COUNTS, {**COUNTS, "by_utterance": EACH}, {**COUNTS, "heard": HEARD}):
        assert read_counts(json.dumps(fine).encode(), SHARD, 5).errors == 24
    with pytest.raises(Rejected, match="E_ENGINE"):
        read_counts(json.dumps({**COUNTS, **changes}).encode(), SHARD, 5)


@pytest.mark.parametrize("output", [b"", b"{}", b"[]", b"null", b"\xff\xfe", b"[" * 100_000])
def test_rubbish_is_no_count(output: bytes) -> None:
    with pytest.raises(Rejected, match="E_ENGINE"):
        read_counts(output, SHARD, 5)


ROW = {"file": "03.zip", "sha256": "b" * 64, "bytes": 8, "utterances": 50, "ref_words": 400}


def read(now: datetime = NOW, **changes: Any) -> Shard:
    manifest = {**COUNTED, "shards": [ROW], **changes}
    return read_manifest(json.dumps(manifest).encode(), "b" * 64, now)


def test_a_manifest_gives_its_shard() -> None:
    assert read().ref_words == 400


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
    with pytest.raises(Rejected, match="E_CANARY"):
        read(shards=[{**ROW, **change}])


@pytest.mark.parametrize(
    "change",
    [
        {"normaliser": "whisper/1"},
        {"normaliser": "nfkc-casefold/10"},
        {"normaliser": None},
        {"unit": "phoneme"},
        {"unit": ""},
        {"expires": "tomorrow"},
        {"expires": "2026-13-01T00:00:00Z"},
    ],
)
def test_a_set_that_counts_in_an_unknown_way_is_refused(change: dict[str, Any]) -> None:
    with pytest.raises(Rejected, match="E_CANARY"):
        read(**change)


def test_a_set_that_does_not_say_how_it_counts_is_refused() -> None:
    with pytest.raises(Rejected, match="E_CANARY: missing key 'normaliser'"):
        read_manifest(json.dumps({"shards": [ROW], "unit": "word"}).encode(), "b" * 64, NOW)


def test_a_set_is_good_until_it_expires() -> None:
    end = datetime(2027, 1, 1, tzinfo=UTC)
    assert read(end - timedelta(seconds=1), unit="char", expires="2027-01-01T00:00:00Z")
    with pytest.raises(Rejected, match="expired at 2027"):
        read(end, unit="char", expires="2027-01-01T00:00:00Z")


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
