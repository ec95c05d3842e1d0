"""Journal and outbox: what is saved survives torn writes, and nothing is said twice or lost."""

import dataclasses
import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.errors import Misconfigured, Rejected, Unavailable
from device_agent.journal import Journal, Record, decode, encode, write_durably
from device_agent.outbox import Event, Outbox
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

OLD, NEW = "0" * 64, "f" * 64
PLAN = Plan(
    deployment="dep1",
    rollout="ro1",
    direction="forward",
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
    Journal(tmp_path / "cycle", 28).save(state)
    assert Journal(tmp_path / "cycle", 28).peek() == state


@given(saves=st.integers(1, 6), cut=st.floats(0, 1, exclude_max=True))
@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None)
def test_a_torn_write_falls_back_to_the_document_before(
    tmp_path: Path, saves: int, cut: float
) -> None:
    path = tmp_path / f"record{len(list(tmp_path.iterdir()))}"
    record = Record(path)
    for number in range(saves):
        record.save({"number": number})
    newest = path.with_name(f"{path.name}.{saves % 2}")
    newest.write_bytes(newest.read_bytes()[: int(cut * newest.stat().st_size)])
    again = Record(path)
    assert again.document == ({"number": saves - 2} if saves > 1 else None)
    again.save({"number": "next"})
    assert Record(path).document == {"number": "next"}


def test_nothing_counts_as_saved_before_it_is_flushed(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flushed: list[bytes] = []

    def fsync(descriptor: int) -> None:
        file = Path(f"/proc/self/fd/{descriptor}").resolve()
        flushed.append(file.read_bytes() if file.is_file() else b"folder")

    monkeypatch.setattr("os.fsync", fsync)
    record = Record(tmp_path / "memory")
    for number in range(3):
        record.save({"number": number})
        assert any(f'"number": {number}'.encode() in content for content in flushed)
    assert flushed.count(b"folder") == 2
    flushed.clear()
    write_durably(tmp_path / "secret", b"secret")
    assert flushed == [b"secret", b"folder"]


def test_two_damaged_files_are_said_and_not_guessed(tmp_path: Path) -> None:
    record = Record(tmp_path / "memory")
    for number in range(2):
        record.save({"number": number})
    for name in ("memory.0", "memory.1"):
        (tmp_path / name).write_bytes(b"?")
    with pytest.raises(Misconfigured, match="both damaged"):
        Record(tmp_path / "memory")


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
    state: State, end: type[State], tmp_path: Path
) -> None:
    Journal(tmp_path / "cycle", 5).save(state)
    for _ in range(4):
        assert Journal(tmp_path / "cycle", 5).resume() == state
    ended = Journal(tmp_path / "cycle", 5).resume()
    assert type(ended) is end
    assert Journal(tmp_path / "cycle", 5).peek() == ended


def test_resuming_an_idle_device_is_not_counted(tmp_path: Path) -> None:
    for _ in range(50):
        assert Journal(tmp_path / "cycle", 5).resume() == Idle()


class Post:
    """A server's inbox that may be closed, slow to acknowledge, or choosy."""

    def __init__(self) -> None:
        self.events: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.answer: Callable[[list[dict[str, Any]]], Any] = lambda batch: {
            "acknowledged": batch[-1]["seq"]
        }

    def post(self, path: str, document: dict[str, Any]) -> Any:
        if path == "canary-reports":
            self.reports.append(document)
            return {"result": "counted"}
        answer = self.answer(document["events"])
        self.events += document["events"]
        return answer


def outbox(folder: Path, items_max: int = 100, batch_max: int = 10) -> Outbox:
    return Outbox(folder / "outbox", items_max, batch_max, lambda: "2026-01-01T00:00:00Z")


def fill(box: Outbox, count: int) -> None:
    for number in range(count):
        box.add_event(f"key {number}", Event("note", reason=f"n{number}"))


def test_everything_is_sent_in_order_and_in_batches(tmp_path: Path) -> None:
    box, post = outbox(tmp_path), Post()
    fill(box, 25)
    box.add_report({"report_id": "r"})
    box.add_event("last", Event("committed", "dep1", bytes=3))
    box.flush(post)
    assert [event["seq"] for event in post.events] == list(range(1, 27))
    assert post.events[-1] == {
        "seq": 26,
        "kind": "committed",
        "deployment": "dep1",
        "at": "2026-01-01T00:00:00Z",
        "reason": "",
        "detail": "",
        "bytes": 3,
    }
    assert (len(post.reports), len(box)) == (1, 0)


def test_what_was_not_acknowledged_stays_through_a_restart(tmp_path: Path) -> None:
    box, post = outbox(tmp_path), Post()
    fill(box, 3)
    post.answer = lambda batch: {"acknowledged": 1}
    box.flush(post)
    post.answer = lambda batch: (_ for _ in ()).throw(Unavailable("down"))
    with pytest.raises(OSError, match="down"):
        outbox(tmp_path).flush(post)
    assert len(outbox(tmp_path)) == 2


def test_numbers_never_repeat_after_a_restart(tmp_path: Path) -> None:
    for number in range(3):
        box = outbox(tmp_path)
        box.add_event(f"key {number}", Event("note"))
        box.flush(Post())
    post = Post()
    box = outbox(tmp_path)
    box.add_event("key 3", Event("note"))
    box.flush(post)
    assert post.events[0]["seq"] == 4


def test_the_same_thing_is_said_once_even_after_it_was_sent(tmp_path: Path) -> None:
    post = Post()
    for _ in range(3):
        box = outbox(tmp_path)
        box.add_event("key", Event("refused"))
        box.add_report({"report_id": "r"})
        box.flush(post)
    assert (len(post.events), len(post.reports)) == (1, 1)


@pytest.mark.parametrize("answer", [None, [], {}, {"acknowledged": "9"}, "yes"])
def test_an_acknowledgement_that_is_none_does_not_stop_the_rest(
    tmp_path: Path, answer: Any
) -> None:
    box, post = outbox(tmp_path), Post()
    fill(box, 2)
    box.add_report({"report_id": "r"})
    post.answer = lambda batch: answer
    box.flush(post)
    assert (len(post.reports), len(box)) == (1, 0)


def test_one_event_that_the_server_cannot_take_does_not_hold_back_the_others(
    tmp_path: Path,
) -> None:
    box, post = outbox(tmp_path), Post()
    fill(box, 5)

    def choosy(batch: list[dict[str, Any]]) -> Any:
        if any(event["reason"] == "n2" for event in batch):
            raise Rejected("E_HTTP", "422")
        return {"acknowledged": batch[-1]["seq"]}

    post.answer = choosy
    box.flush(post)
    assert [event["reason"] for event in post.events] == ["n0", "n1", "n3", "n4"]
    assert len(box) == 0


def test_a_full_outbox_loses_its_oldest_entry_and_says_so(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    box = outbox(tmp_path, items_max=3)
    fill(box, 5)
    post = Post()
    box.flush(post)
    assert [event["reason"] for event in post.events] == ["n2", "n3", "n4"]
    assert "is full" in caplog.text


def test_a_long_detail_is_cut_to_what_the_service_takes(tmp_path: Path) -> None:
    box, post = outbox(tmp_path), Post()
    box.add_event("key", Event("failed", detail="x" * 900))
    box.flush(post)
    assert len(post.events[0]["detail"]) == 500
