"""The journal: what is saved survives torn writes, and no attempt goes on for ever."""

import dataclasses
import json
from datetime import UTC, datetime
from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.canary import Counts
from device_agent.disk import write_durably
from device_agent.errors import Misconfigured
from device_agent.journal import Journal, Memory, decode, encode
from device_agent.plan import Canary, Gate, Plan, Step
from device_agent.states import (
    Applying,
    Committing,
    Downloading,
    Idle,
    Reporting,
    RollingBack,
    State,
    Switching,
    Trying,
)
from trust.floors import Floors

OLD, NEW = "0" * 64, "f" * 64
PLAN = Plan(
    deployment="dep1",
    release="r2",
    sha256=NEW,
    bytes=10,
    pipelines=((Step("patch", "a" * 64, 5, NEW, 10),), (Step("full", NEW, 10, NEW, 10),)),
    canary=Canary("b" * 64, 3, "03", "c" * 64, 4),
    gate=Gate(60),
    order_seq=4,
    base=OLD,
    etag='"x"',
)
STATES: list[State] = [
    Idle(),
    Downloading(PLAN, 1),
    Applying(PLAN, 0),
    Trying(dataclasses.replace(PLAN, canary=None, base="")),
    Switching(PLAN),
    Committing(PLAN),
    RollingBack(PLAN, OLD, "failed", "E_RESULT"),
    Reporting("dep1", "4", "refused", "E_GATE", "worse"),
]


@pytest.fixture(autouse=True)
def quick(no_fsync: None) -> None:
    return


@pytest.mark.parametrize("state", STATES, ids=lambda s: type(s).__name__)
def test_every_state_comes_back_as_it_was_saved(state: State, tmp_path: Path) -> None:
    assert decode(json.loads(json.dumps(encode(state)))) == state
    Journal(tmp_path).save(state)
    assert Journal(tmp_path).state == state


@pytest.mark.attack("M45")
@given(saves=st.integers(1, 6), cut=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_torn_write_falls_back_to_the_document_before(
    tmp_path: Path, saves: int, cut: float
) -> None:
    folder = tmp_path / str(len(list(tmp_path.iterdir())))
    folder.mkdir()
    journal = Journal(folder)
    for number in range(1, saves + 1):
        journal.remember(refusals=number)
    newest = folder / f"journal.{saves % 2}"
    newest.write_bytes(newest.read_bytes()[: int(cut * newest.stat().st_size)])
    again = Journal(folder)
    assert again.memory == Memory(refusals=saves - 1)
    again.remember(etag="next")
    assert Journal(folder).memory == Memory(refusals=saves - 1, etag="next")


def test_nothing_counts_as_saved_before_it_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bytes] = []

    def fsync(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        flushed.append(file.read_bytes() if file.is_file() else b"folder")

    monkeypatch.setattr("os.fsync", fsync)
    journal = Journal(tmp_path)
    for number in range(1, 4):
        journal.remember(refusals=number)
        assert any(f'"refusals": {number}'.encode() in content for content in flushed)
    assert flushed.count(b"folder") == 2
    flushed.clear()
    write_durably(tmp_path / "secret", b"secret")
    assert flushed == [b"secret", b"folder"]


def test_two_damaged_files_are_said_and_not_guessed(tmp_path: Path) -> None:
    for number in (1, 2):
        Journal(tmp_path).remember(refusals=number)
    for name in ("journal.0", "journal.1"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(Misconfigured, match="both damaged"):
        Journal(tmp_path)


def test_the_whole_memory_comes_back_as_it_was(tmp_path: Path) -> None:
    heard_at = datetime(2026, 11, 27, 1, 2, 3, tzinfo=UTC)
    memory = Memory(
        floors=Floors({"root": ("", 3), "timestamp": ("ab", 9)}, 4, NEW, heard_at),
        given_up=("dep1",),
        back_edges=((NEW, OLD),),
        good={OLD: "r1", NEW: ""},
        attempt=("r2", "dep1", 2),
        counts={"key": Counts({"sub": 1, "del": 0, "ins": 2}, 7, "wer/1", "sh/1")},
        queue=(("events", {"seq": 1, "detail": "x"}),),
        said=("key",),
    )
    Journal(tmp_path).remember(**memory.__dict__)
    assert Journal(tmp_path).memory == memory


def test_a_memory_that_was_not_written_is_not_believed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    journal = Journal(tmp_path)
    journal.remember(refusals=1)
    with monkeypatch.context() as patch:
        patch.setattr("os.fsync", full)
        with pytest.raises(OSError, match="No space"):
            journal.remember(refusals=2)
    assert journal.memory.refusals == 1
    journal.remember(refusals=2)
    assert Journal(tmp_path).memory.refusals == 2


@pytest.mark.parametrize(
    ("state", "end"),
    [
        (Downloading(PLAN, 0), Reporting),
        (Trying(PLAN), Reporting),
        (Switching(PLAN), RollingBack),
        (Committing(PLAN), RollingBack),
        (RollingBack(PLAN, OLD, "failed", "x"), Reporting),
        (Reporting("d", "1", "failed", "", ""), Idle),
    ],
)
def test_an_attempt_that_is_resumed_too_often_is_ended(
    state: State, end: type[State], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.journal.SAVES_MAX", 5)
    Journal(tmp_path).save(state)
    for _ in range(4):
        assert Journal(tmp_path).resume() == state
    ended = Journal(tmp_path).resume()
    assert type(ended) is end
    assert Journal(tmp_path).state == ended


def test_resuming_an_idle_device_is_not_counted(tmp_path: Path) -> None:
    for _ in range(50):
        assert Journal(tmp_path).resume() == Idle()
