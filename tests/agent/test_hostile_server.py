"""A server that lies: the model's bytes stay, the reason is reported, the next good poll works."""

from collections.abc import Callable, Iterator
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from device_agent.check_in import CheckIn
from tests.agent.conftest import Lab
from tests.agent.hostile import change_bundle, lies_about, must_recover, must_refuse
from tests.agent.loopback import Answer


@pytest.fixture
def offered(lab: Lab) -> Lab:
    lab.server.make_patch("r1", "r2")
    lab.server.offer("r2", [lab.server.patch("r1", "r2")])
    return lab


SETTINGS = settings(
    max_examples=15, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


@pytest.mark.attack("M01")
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


@pytest.mark.attack("M05")
@pytest.mark.parametrize("body", [b"", b"[" * 60_000, b"{}", b"\xff", b"null", b'{"metadata":1}'])
def test_an_answer_that_is_no_bundle_is_refused(offered: Lab, body: bytes) -> None:
    offered.server.lie = lies_about("poll", lambda answer: replace(answer, body=body))
    must_refuse(offered, "E_HTTP")
    must_recover(offered)


@pytest.mark.attack("M05")
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


@pytest.mark.attack("M04")
def test_an_answer_over_the_limit_is_refused_unread(offered: Lab) -> None:
    huge = Answer(declare=3 * 1024 * 1024, chunks=[b"x"])
    offered.server.lie = lies_about("poll", lambda answer: huge)
    must_refuse(offered, "E_SIZE")
    must_recover(offered)


@pytest.mark.attack("M04")
def test_an_answer_without_end_is_cut_at_the_limit(offered: Lab) -> None:
    chunks: Iterator[bytes] = (b" " * 65_536 for _ in range(1_000))
    offered.server.lie = lies_about("poll", lambda answer: Answer(chunks=chunks))
    assert offered.once().reason == "E_SIZE"
    must_recover(offered)


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
