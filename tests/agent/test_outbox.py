"""The outbox: nothing is said twice or lost."""

from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from device_agent import agent
from device_agent.errors import Rejected, Unavailable
from device_agent.journal import Journal
from device_agent.outbox import Event, Outbox
from tests.agent.conftest import Lab


@pytest.fixture(autouse=True)
def quick(no_fsync: None) -> None:
    return


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


def outbox(folder: Path) -> Outbox:
    return Outbox(Journal(folder), lambda: "2026-01-01T00:00:00Z")


def fill(box: Outbox, count: int) -> None:
    for number in range(count):
        box.add_event(f"key {number}", Event("note", reason=f"n{number}"))


def test_everything_is_sent_in_order_and_in_batches(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.outbox.BATCH_ITEMS_MAX", 10)
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
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("device_agent.outbox.ITEMS_MAX", 3)
    box = outbox(tmp_path)
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


def test_an_agent_that_was_replaced_says_so_once_and_again_when_it_is_put_back(
    lab: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    told = lambda: [e["detail"] for e in lab.server.events if e["reason"] == "agent"]  # noqa: E731
    lab.once()
    assert told() == []  # it was told at enrollment
    for version in ("0.2.0", "0.1.0", "0.2.0"):
        monkeypatch.setattr(agent, "AGENT_VERSION", version)
        lab.once()
        lab.once()
    assert told() == ["0.2.0", "0.1.0", "0.2.0"]
