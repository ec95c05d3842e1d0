"""A server that lies: the model's bytes stay, the reason is reported, the next good poll works."""

import json
import shutil
from collections.abc import Callable, Iterator
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.check_in import CheckIn
from tests.agent.conftest import Lab
from tests.agent.loopback import Answer, Asked, Lie

HONEST: Lie = lambda asked, answer: answer  # noqa: E731


@pytest.fixture
def offered(lab: Lab) -> Lab:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    return lab


def lies_about(path: str, change: Callable[[Answer], Answer]) -> Lie:
    def lie(asked: Asked, answer: Answer) -> Answer:
        return change(answer) if path in asked.path and answer.status == 200 else answer

    return lie


def must_refuse(lab: Lab, *codes: str) -> None:
    """The lie is refused with one of these codes, reported once, and leaves nothing behind."""
    outcome = lab.once()
    assert outcome.kind == "refused" and outcome.reason in codes, outcome
    lab.once()
    assert lab.release_running() == "r1"
    refused = [e for e in lab.server.events if e["kind"] == "refused"]
    assert [e["reason"] for e in refused] == [outcome.reason]


def must_recover(lab: Lab) -> None:
    lab.server.lie = HONEST
    assert (lab.once().kind, lab.release_running()) == ("committed", "r2")


def change_bundle(change: Callable[[dict[str, Any]], Any]) -> Lie:
    def lie(answer: Answer) -> Answer:
        document = json.loads(answer.body)
        change(document)
        return replace(answer, body=json.dumps(document).encode())

    return lies_about("poll", lie)


SETTINGS = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@SETTINGS
@given(where=st.floats(0, 1, exclude_max=True), bit=st.integers(0, 7))
def test_a_flipped_bit_in_a_patch_is_refused(offered: Lab, where: float, bit: int) -> None:
    offered.reborn()
    blob = offered.server.patches["r1", "r2"].sha256
    offered.server.lie = lies_about(blob, lambda answer: flipped(answer, where, bit))
    must_refuse(offered, "E_HASH")
    must_recover(offered)


@SETTINGS
@given(
    name=st.sampled_from("timestamp snapshot targets family order".split()),
    where=st.floats(0, 1, exclude_max=True),
)
def test_a_changed_letter_in_a_signed_document_is_refused(
    offered: Lab, name: str, where: float
) -> None:
    offered.reborn()

    def change(document: dict[str, Any]) -> None:
        if name == "order":
            document["order"]["payload"] = changed(document["order"]["payload"], where)
            return
        file = next(n for n in document["metadata"] if name in n)
        signed = document["metadata"][file]
        at = signed.index('"signed":')
        document["metadata"][file] = signed[:at] + changed(signed[at:], where)

    offered.server.lie = change_bundle(change)
    must_refuse(offered, "E_SIG", "E_MIX", "E_ROLLBACK_META", "E_FREEZE", "E_NOT_RELEASED")
    must_recover(offered)


def flipped(answer: Answer, where: float, bit: int) -> Answer:
    body = bytearray(answer.body)
    body[int(where * len(body))] ^= 1 << bit
    return replace(answer, body=bytes(body))


def changed(text: str, where: float) -> str:
    at = int(where * len(text))
    return text[:at] + ("B" if text[at] != "B" else "C") + text[at + 1 :]


def step_to(document: dict[str, Any], **changes: Any) -> None:
    document["plan"]["pipelines"][0][0].update(changes)


@pytest.mark.parametrize(
    ("change", "code"),
    [
        (lambda d: d.update(order=None), "E_NOT_RELEASED"),
        (lambda d: d["plan"].update(release="r1"), "E_NOT_RELEASED"),
        (lambda d: d["plan"].update(sha256="0" * 64), "E_NOT_RELEASED"),
        (lambda d: d["plan"].update(bytes=1), "E_NOT_RELEASED"),
        (lambda d: d["plan"].update(deployment="other"), "E_NOT_RELEASED"),
        (lambda d: d["plan"]["canary"].update(set="0" * 64), "E_NOT_RELEASED"),
        (lambda d: step_to(d, sha256="0" * 64), "E_NOT_RELEASED"),
        (lambda d: step_to(d, bytes=1), "E_NOT_RELEASED"),
        (lambda d: step_to(d, to="0" * 64), "E_NOT_RELEASED"),
        (lambda d: step_to(d, op="run"), "E_PLAN"),
        (lambda d: step_to(d, op="full"), "E_NOT_RELEASED"),
        (lambda d: step_to(d, bytes=-1), "E_PLAN"),
        (lambda d: step_to(d, bytes=True), "E_PLAN"),
        (lambda d: d["plan"].update(pipelines=[]), "E_PLAN"),
        (lambda d: d["plan"].update(pipelines=[[]]), "E_PLAN"),
        (lambda d: d["plan"].pop("gate"), "E_PLAN"),
        (lambda d: d.update(plan=[]), "E_PLAN"),
        (lambda d: d.pop("metadata"), "E_HTTP"),
        (lambda d: d["metadata"].pop("timestamp.json"), "E_MIX"),
        (lambda d: d["metadata"].update({f"{n}.root.json": "{}" for n in range(200)}), "E_SIZE"),
    ],
)
def test_a_plan_or_bundle_that_does_not_fit_is_refused(
    offered: Lab, change: Callable[[dict[str, Any]], Any], code: str
) -> None:
    offered.server.lie = change_bundle(change)
    must_refuse(offered, code)
    must_recover(offered)


@pytest.mark.parametrize("body", [b"", b"[" * 60_000, b"{}", b"\xff", b"null", b'{"metadata":1}'])
def test_an_answer_that_is_no_bundle_is_refused(offered: Lab, body: bytes) -> None:
    offered.server.lie = lies_about("poll", lambda answer: replace(answer, body=body))
    must_refuse(offered, "E_HTTP")
    must_recover(offered)


@pytest.mark.parametrize("name", ["timestamp.json", "2.root.json", "order"])
def test_a_nesting_bomb_in_a_document_is_refused(offered: Lab, name: str) -> None:
    def change(document: dict[str, Any]) -> None:
        if name == "order":
            document["order"] = "[" * 60_000
        else:
            document["metadata"][name] = "[" * 60_000

    offered.server.lie = change_bundle(change)
    must_refuse(offered, "E_SIG", "E_SIZE")
    must_recover(offered)


def test_an_answer_over_the_limit_is_refused_unread(offered: Lab) -> None:
    huge = Answer(declare=3 * 1024 * 1024, chunks=[b"x"])
    offered.server.lie = lies_about("poll", lambda answer: huge)
    must_refuse(offered, "E_SIZE")
    must_recover(offered)


def test_an_answer_without_end_is_cut_at_the_limit(offered: Lab) -> None:
    chunks: Iterator[bytes] = (b" " * 65_536 for _ in range(1_000))
    offered.server.lie = lies_about("poll", lambda answer: Answer(chunks=chunks))
    assert offered.once().reason == "E_SIZE"
    must_recover(offered)


def test_an_order_for_another_device_is_refused(lab: Lab) -> None:
    lab.server.offer("r2", device="d2")
    must_refuse(lab, "E_AUD")


def test_an_order_that_was_superseded_is_refused(lab: Lab) -> None:
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    lab.server.seq = 0
    lab.server.offer("r2")
    lab.server.seq = 0
    lab.server.offer("r2")
    must_refuse(lab, "E_REPLAY")
    lab.server.seq = 7
    lab.server.offer("r2")
    must_recover(lab)


def test_an_older_order_is_refused_after_a_newer_one(lab: Lab) -> None:
    lab.server.seq = 5
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    lab.server.seq = 2
    lab.server.offer("r2")
    must_refuse(lab, "E_REPLAY")


def test_a_way_back_that_nobody_signed_is_refused(lab: Lab) -> None:
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.server.offer("r1", [lab.server.undo("r1")])
    assert lab.once().reason == "E_DOWNGRADE"
    assert lab.release_running() == "r2"


def test_a_withdrawn_release_is_refused(lab: Lab) -> None:
    lab.server.publish("r2", status="withdrawn")
    lab.server.offer("r2")
    must_refuse(lab, "E_WITHDRAWN")


def test_an_order_by_another_key_is_refused(lab: Lab) -> None:
    lab.server.keys["director"], kept = lab.server.keys["timestamp"], lab.server.keys["director"]
    lab.server.offer("r2")
    must_refuse(lab, "E_SIG")
    lab.server.keys["director"] = kept
    lab.server.offer("r2")
    must_recover(lab)


def test_older_metadata_is_refused_even_when_the_cache_was_wiped(lab: Lab) -> None:
    old = dict(lab.server.files)
    lab.server.publish("r3")
    assert lab.once() is None
    new, lab.server.files = lab.server.files, old
    shutil.rmtree(lab.config.state_dir / "tuf")
    must_refuse(lab, "E_ROLLBACK_META")
    lab.server.files = new
    lab.server.offer("r2")
    must_recover(lab)


def test_a_damaged_metadata_cache_heals(lab: Lab) -> None:
    assert lab.once() is None
    for file in (lab.config.state_dir / "tuf").glob("*.json"):
        file.write_text("{")
    lab.server.offer("r2")
    outcomes = [outcome.kind for outcome in (lab.once(), lab.once()) if outcome]
    assert outcomes in (["committed"], ["refused", "committed"])
    assert lab.release_running() == "r2"


def test_a_new_root_is_followed(lab: Lab) -> None:
    assert lab.once() is None
    root = lab.server._documents["root"]
    root.signed.version = 2
    lab.server._sign("root", root)
    lab.server.sign_all()
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.once()
    assert lab.server.asked[-1].query["root"] == "2"


def test_an_answer_that_never_changes_is_noticed_when_its_metadata_expires(lab: Lab) -> None:
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    lab.server.lie = lambda asked, answer: replace(answer, status=304, body=b"")
    assert lab.once() is None
    assert not lab.server.events
    lab.server.now += timedelta(days=4)
    assert lab.once() is None
    lab.server.lie = HONEST
    lab.server.sign_all()
    lab.server.now -= timedelta(days=4)
    lab.once()
    assert [(e["kind"], e["reason"]) for e in lab.server.events] == [("note", "E_FREEZE")]
    assert lab.release_running() == "r1"


def test_a_304_to_an_unconditional_question_is_no_answer(lab: Lab) -> None:
    lab.server.lie = lambda asked, answer: replace(answer, status=304, body=b"")
    with pytest.raises(OSError, match="without a condition"):
        lab.once()


def test_nothing_of_a_patch_is_read_before_the_order_is_verified(
    offered: Lab, monkeypatch: pytest.MonkeyPatch
) -> None:
    verified: list[int] = []
    real = CheckIn.ask

    def ask(self: CheckIn) -> Any:
        found = real(self)
        verified.append(sum("artifacts" in a.path for a in offered.server.asked))
        return found

    monkeypatch.setattr(CheckIn, "ask", ask)
    assert offered.once().kind == "committed"
    assert verified[0] == 0
