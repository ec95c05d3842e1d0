"""The release that runs is withdrawn: it is told, and left if the device's owner wants that."""

from collections.abc import Callable
from dataclasses import replace

import pytest

from tests.agent.conftest import Lab
from tests.agent.hostile import change_bundle


@pytest.fixture
def at_r2(new_lab: Callable[..., Lab]) -> Lab:
    """A device that came from r1 to r2, with a signed way back."""
    lab = new_lab(on_withdrawn="previous_slot")
    lab.server.publish("r1", back_from=("r2",))
    lab.server.offer("r2")
    assert lab.once().kind == "committed"
    lab.once()
    lab.server.events.clear()
    return lab


def reasons(lab: Lab) -> list[tuple[str, str]]:
    return [(event["kind"], event["reason"]) for event in lab.server.events]


def test_a_withdrawn_release_runs_on_and_the_server_is_told_once(at_r2: Lab) -> None:
    at_r2.config = replace(at_r2.config, on_withdrawn="report")
    at_r2.server.publish("r2", status="withdrawn")
    assert at_r2.once() is None and at_r2.once() is None
    assert reasons(at_r2) == [("note", "E_WITHDRAWN")]
    assert at_r2.release_running() == "r2"


def test_a_withdrawn_release_is_left_along_the_signed_way_without_an_order(at_r2: Lab) -> None:
    at_r2.server.order = at_r2.server.plan = None
    at_r2.server.publish("r2", status="withdrawn")
    assert at_r2.once() is None
    assert at_r2.release_running() == "r1"
    assert reasons(at_r2) == [("note", "E_WITHDRAWN"), ("rolled_back", "withdrawn")]
    at_r2.server.publish("r3")
    at_r2.server.offer("r3")
    assert (at_r2.once().kind, at_r2.release_running()) == ("committed", "r3")


@pytest.mark.attack("M28")
@pytest.mark.parametrize("bar", ["no edge", "the earlier one, too", "other bytes in the slot"])
def test_a_withdrawn_release_is_not_left_for_what_nobody_signed(at_r2: Lab, bar: str) -> None:
    if bar == "no edge":
        at_r2.server.publish("r1")
    elif bar == "the earlier one, too":
        at_r2.server.publish("r1", status="withdrawn", back_from=("r2",))
    else:
        (at_r2.config.state_dir / "slots/a/model").write_bytes(b"other bytes")
    at_r2.server.publish("r2", status="withdrawn")
    assert at_r2.once() is None
    assert at_r2.release_running() == "r2"
    assert reasons(at_r2) == [("note", "E_WITHDRAWN")]


def test_a_server_that_only_says_withdrawn_moves_nobody(at_r2: Lab) -> None:
    """The word is in a document that the family signs; spelled by the server it is a broken one."""

    def claim(bundle: dict[str, dict[str, str]]) -> None:
        for name, body in bundle["metadata"].items():
            bundle["metadata"][name] = body.replace('"active"', '"withdrawn"')

    at_r2.server.sign_all()
    at_r2.server.lie = change_bundle(claim)
    assert at_r2.once().kind == "refused"
    assert at_r2.release_running() == "r2"
