"""What a device remembers before it does anything else, and what no clock can make it forget."""

from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from typing import Any

import pytest

from device_agent.journal import Journal
from tests.agent.conftest import Lab
from tests.agent.hostile import HONEST, change_bundle, installed, must_recover, must_refuse
from tests.agent.loopback import Answer, Asked
from trust.floors import Floors

YEAR = timedelta(days=365)


def floors(lab: Lab) -> Floors:
    return Journal(lab.config.state_dir).memory.floors


@pytest.mark.attack("M16")
def test_m16_a_clock_of_2099_moves_no_floor_and_is_forgotten_once_repaired(lab: Lab) -> None:
    lab.server.offer("r2")
    lab.server.now += 73 * YEAR
    before = floors(lab)
    must_refuse(lab, "E_FREEZE")
    assert floors(lab) == before
    lab.server.now -= 73 * YEAR
    must_recover(lab)
    assert floors(lab).time <= lab.server.now


@pytest.mark.attack("M14")
def test_m14_a_clock_set_back_two_years_does_not_take_the_time_back(lab: Lab) -> None:
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    passed = floors(lab).time
    assert passed == lab.server.now
    order = lab.server.sign_order(lab.server.releases["r2"], expires=passed)
    lab.server.offer("r2")
    lab.server.order, lab.server.now = order, lab.server.now - 2 * YEAR
    must_refuse(lab, "E_FREEZE")  # by its own clock the order has two years to go
    lab.server.now = passed
    lab.server.offer("r2")
    must_recover(lab)


@pytest.mark.attack("M17")
def test_m17_an_order_dated_2079_moves_the_time_floor_to_now_and_no_further(lab: Lab) -> None:
    lab.server.offer("r2", issued=lab.server.now + 53 * YEAR)
    must_recover(lab)
    assert floors(lab).time == lab.server.now
    lab.server.publish("r3")
    lab.server.offer("r3")
    must_recover(lab, "r3")


def never_news(asked: Asked, answer: Answer) -> Answer:
    return replace(answer, status=304, body=b"") if "poll" in asked.path else answer


def empty(bundle: dict[str, Any]) -> None:
    bundle.update(metadata={}, order=None, plan=None, hold="no_rollout")


@pytest.mark.attack("M18")
@pytest.mark.parametrize("lie", [never_news, change_bundle(empty)], ids=["304", "nothing"])
def test_m18_a_server_without_news_is_told_of_once_its_documents_expire(
    lab: Lab, lie: Callable[[Asked, Answer], Answer]
) -> None:
    lab.server.offer("r2", hold=True)
    assert lab.once() is None
    lab.server.lie = lie
    assert lab.once() is None
    before = installed(lab)
    lab.server.now += timedelta(days=4)  # the timestamp lives for three
    assert lab.once() is None
    assert installed(lab) == before
    lab.server.now -= timedelta(days=4)
    lab.server.lie = HONEST
    lab.server.offer("r2")
    must_recover(lab)
    notes = [event["reason"] for event in lab.server.events if event["kind"] == "note"]
    assert notes == ["E_FREEZE"]


def test_floors_rise_with_the_metadata_even_if_the_order_beside_it_is_refused(lab: Lab) -> None:
    assert lab.once() is None
    seen = floors(lab).versions["timestamp"][1]
    lab.server.publish("r3")
    lab.server.offer("r3", device="d2")
    must_refuse(lab, "E_AUD")
    assert floors(lab).versions["timestamp"][1] == seen + 1


def test_the_number_of_an_order_counts_even_if_what_it_asks_for_is_refused(lab: Lab) -> None:
    lab.server.offer("r2")
    older = lab.server.order
    lab.server.releases["r2"] = replace(lab.server.releases["r2"], hardware=("riscv64",))
    lab.server.sign_all()
    lab.server.offer("r2")
    must_refuse(lab, "E_INCOMPAT")
    lab.server.order = older
    lab.server.events.clear()
    must_refuse(lab, "E_REPLAY")
