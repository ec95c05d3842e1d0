"""How long a device waits: between polls, after trouble, and when it is told to."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from device_agent import agent
from device_agent.config import Limits
from device_agent.deadline import backoff_s
from device_agent.errors import Unavailable
from device_agent.states import Idle, Reporting
from tests.agent.conftest import Lab

unit = st.floats(0, 1)
periods = st.floats(0.001, 1e5)


@given(failures=st.integers(0, 10_000), period=periods, most=periods, draw=unit)
def test_backoff_stays_within_its_limits(
    failures: int, period: float, most: float, draw: float
) -> None:
    assert 0 <= backoff_s(failures, period, most, lambda: draw) <= most


@given(failures=st.integers(1, 100), period=periods, most=periods, draw=unit)
def test_backoff_never_shrinks_with_another_failure(
    failures: int, period: float, most: float, draw: float
) -> None:
    now, later = (backoff_s(n, period, most, lambda: draw) for n in (failures, failures + 1))
    assert now <= later <= 2 * now


@given(period=periods, draw=unit)
def test_the_first_delay_is_spread_over_a_whole_period(period: float, draw: float) -> None:
    assert backoff_s(1, period, 1e9, lambda: draw) == draw * period


@pytest.mark.attack("A10")
@given(asked=st.none() | st.floats(0, 1e7), draw=unit, status=st.sampled_from([429, 503]))
def test_a_fleet_that_is_told_to_wait_comes_back_within_a_period(
    asked: float | None, draw: float, status: int
) -> None:
    limits = Limits()
    error = Unavailable("busy", status, asked)
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("random.random", lambda: draw)
        delay = agent.retry_delay_s(error, 1, limits)
    period = min(max(limits.poll_s if asked is None else asked, 1.0), limits.poll_s_max)
    assert delay == draw * period


@pytest.mark.attack("A10")
@pytest.mark.parametrize("told", ["drawn over a period", "the same for all"])
def test_after_an_outage_polls_do_not_echo(told: str) -> None:
    """However a server says when to come back: no moment within two periods is crowded."""
    limits, draw = Limits(), random.Random(1)
    period, fleet = limits.poll_s, 20_000
    per_slot = [0] * 40
    for _ in range(fleet):
        later = draw.random() * period if told == "drawn over a period" else 30.0
        error = Unavailable("overloaded", 503, later_s=later)
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("random.random", draw.random)
            delay = agent.retry_delay_s(error, 1, limits)
        assert later <= delay <= later + period
        while delay < 2 * period:  # and then one poll a period, as `poll_delay_s` says
            per_slot[int(delay / period * 20)] += 1
            delay += period * (0.9 + 0.1 * draw.random())
    mean = sum(per_slot) / len(per_slot)
    assert max(per_slot) <= 1.5 * mean


@given(seconds=st.floats(0, 1e7), status=st.sampled_from([429, 503]))
def test_no_server_sends_a_device_away_for_good(seconds: float, status: int) -> None:
    limits = Limits()
    error = Unavailable("busy", status, later_s=seconds)
    assert agent.retry_delay_s(error, 1, limits) <= 2 * limits.poll_s_max


def test_polls_follow_what_the_server_asks_for(lab: Lab) -> None:
    with lab.device() as device:
        agent.run_once(device)
        assert 54 <= agent.poll_delay_s(device) <= 60


def test_who_only_asks_keeps_to_its_period_while_the_server_is_away(lab: Lab) -> None:
    away, limits = Unavailable("cannot be reached"), lab.config.limits
    with lab.device() as device:
        device.check()
        period = agent.poll_delay_s(device)
        for failures in range(1, 30):
            delay = agent.trouble_delay_s(device, Idle(), away, failures)
            quick = failures <= limits.quick_retries_max
            assert delay <= 2 * limits.retry_s if quick else 0.9 * period <= delay <= 1.2 * period
        under_way = agent.trouble_delay_s(device, Reporting(*"abcde"), away, 3)
        assert under_way <= 4 * limits.retry_s, "what is under way is not put off"
        busy = Unavailable("busy", 503, later_s=7.0)
        assert agent.trouble_delay_s(device, Idle(), busy, 9) >= 7.0
