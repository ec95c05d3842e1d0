"""What a rollout is foretold to take: bounds and directions that hold for every fleet."""

from dataclasses import replace
from datetime import UTC, datetime, timedelta
from typing import Any

from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import Gate
from service.core.conditions import DAY_MIN, open_after_s, open_minutes, opens_at
from service.core.forecast import Group, Hours, Pace, Step, detectable, forecast, pairs_needed

FULL = 1_000_000
groups = st.lists(
    st.builds(
        Group,
        release=st.sampled_from(["", "r1", "r2"]),
        network=st.sampled_from(["", "fast", "slow", "metered"]),
        devices=st.integers(0, 100_000),
        bytes=st.integers(0, FULL),
        bytes_worst=st.integers(FULL, 3 * FULL),
    ),
    max_size=6,
)
paces = st.builds(Pace, st.floats(1, 1e5), st.floats(1, 100), st.floats(0, 600), st.floats(0, 1))
caps = st.none() | st.integers(1, 10_000)
GATE, WHOLE, DAY_S = Gate(), Step(10_000, 0, None), 86_400
minutes, zones_s = st.integers(0, DAY_MIN - 1), st.integers(-12 * 3600, 14 * 3600)
windows = st.tuples(minutes, minutes).filter(lambda ends: ends[0] != ends[1])
windows = windows.map(lambda ends: dict(zip(("start_min", "end_min"), ends, strict=True)))
hours = st.builds(
    Hours, windows, st.lists(zones_s, min_size=1, max_size=4), st.integers(0, DAY_S - 1)
)


def seconds(fleet: list[Group], stage: Step, pace: Pace) -> int:
    found: int = forecast(fleet, FULL, [stage], GATE, pace)["seconds"]
    return found


@given(groups, paces, st.lists(st.integers(1, 9999), unique=True, max_size=4), caps)
def test_no_stage_takes_more_than_full_downloads_or_less_than_the_one_before(
    fleet: list[Group], pace: Pace, shares: list[int], cap: int | None
) -> None:
    stages = [Step(share, 60, cap) for share in (*sorted(shares), 10_000)]
    found = forecast(fleet, FULL, stages, GATE, pace)
    assert found["bytes"] <= found["bytes_full"] == found["devices"] * FULL
    for name, total in (("bytes", found["bytes"]), ("devices", found["devices"])):
        rising = [stage[name] for stage in found["stages"]]
        assert rising == sorted(rising) and rising[-1] == total
    assert found["seconds"] >= 60 * len(stages)


@given(groups, paces, caps, st.integers(1, 10_000), st.integers(0, 10_000))
def test_a_wider_cap_a_shorter_soak_and_faster_polls_never_take_longer(
    fleet: list[Group], pace: Pace, cap: int | None, share: int, soak_s: int
) -> None:
    stage = Step(share, soak_s, cap)
    took = seconds(fleet, stage, pace)
    assert seconds(fleet, replace(stage, in_flight_max=cap and cap + 1), pace) <= took
    assert seconds(fleet, replace(stage, soak_s=soak_s // 2), pace) <= took
    assert seconds(fleet, stage, replace(pace, poll_s=pace.poll_s / 2)) <= took
    assert seconds(fleet, stage, replace(pace, per_minute_max=share)) >= took


@given(st.integers(0, 100_000), st.integers(0, 100_000))
def test_more_pairs_never_detect_less(fewer: int, more: int) -> None:
    fewer, more = sorted((fewer, more))
    found = [detectable(GATE, pairs) for pairs in (fewer, more)]
    assert found[0] is None or (found[1] is not None and found[1] <= found[0])


def test_what_is_asked_of_the_gate_is_answered_by_the_gate() -> None:
    needed = pairs_needed(GATE)
    assert needed is not None and needed >= GATE.pairs_promote_least
    for pairs, decides in ((needed - 1, False), (needed, True)):
        fleet = [Group("r1", "", pairs, 1, FULL)]
        (stage,) = forecast(fleet, FULL, [WHOLE], GATE, Pace(60, 2))["stages"]
        assert stage["decides"] is decides
    assert detectable(GATE, GATE.pairs_halt_least - 1) is None
    assert pairs_needed(replace(GATE, hostile_share=1.0)) is None, "nobody could be believed"


def test_an_empty_cohort_takes_nothing() -> None:
    found = forecast([], FULL, [WHOLE], GATE, Pace(60, 2))
    assert [found[name] for name in ("devices", "bytes", "bytes_full", "seconds")] == [0, 0, 0, 0]


@given(windows, zones_s, st.integers(0, 2 * DAY_S))
def test_a_minute_is_open_where_the_rules_let_devices_begin(
    window: Any, zone_s: int, from_s: int
) -> None:
    zone_s -= zone_s % 60
    midnight = datetime(2026, 6, 1, tzinfo=UTC)
    now = midnight + timedelta(seconds=from_s)
    day = open_minutes(window, zone_s)
    assert day[from_s // 60 % DAY_MIN] is (opens_at(window, zone_s, now) == now)
    wait_s = (opens_at(window, zone_s, now) - now).total_seconds()
    assert open_after_s(day, from_s, 1) == wait_s + 1


def test_a_window_that_is_too_short_goes_on_the_next_day() -> None:
    hour = open_minutes({"start_min": 0, "end_min": 60}, 0)
    for open_s, after_s in ((3600, 3600), (3601, DAY_S + 1), (7200, DAY_S + 3600), (0, 0)):
        assert open_after_s(hour, 0, open_s) == after_s
    assert open_after_s(hour, 1800, 3600) == DAY_S, "half of it is over already"


@given(groups, paces, caps, hours, st.lists(st.integers(0, 3 * DAY_S), max_size=4))
def test_a_window_never_shortens_a_rollout_and_a_wider_one_never_lengthens_it(
    fleet: list[Group], pace: Pace, cap: int | None, narrow: Hours, soaks: list[int]
) -> None:
    stages = [Step(2000 * n, soak_s, cap) for n, soak_s in enumerate(soaks, 1)] + [WHOLE]

    def takes(hours: Hours | None) -> Any:
        return forecast(fleet, FULL, stages, GATE, replace(pace, hours=hours))

    found, anytime = takes(narrow), takes(None)
    assert found["seconds"] >= anytime["seconds"] == found["seconds_anytime"]
    end = (narrow.window["end_min"] + 1) % DAY_MIN
    if end != narrow.window["start_min"]:
        wider = replace(narrow, window=narrow.window | {"end_min": end})
        assert takes(wider)["seconds"] <= found["seconds"]


@given(groups, st.integers(0, 10**12), st.integers(1, 9999))
def test_what_bytes_last_for_they_pay_for_and_what_would_do_does(
    fleet: list[Group], bytes_max: int, share: int
) -> None:
    def budget(most: int) -> Any:
        stages = [Step(share, 0, None), WHOLE]
        return forecast(fleet, FULL, stages, GATE, Pace(60, 2, bytes_max=most))

    found = budget(bytes_max)
    lasts, all_of_them = found["budget"]["devices"], found["devices"]
    assert 0 <= lasts <= all_of_them
    assert (lasts == all_of_them) is (found["budget"]["stage"] is None)
    if found["budget"]["stage"]:
        assert (found["budget"]["stage"] == 1) is (found["stages"][0]["devices"] > lasts)
    enough = budget(found["budget"]["bytes_needed"])["budget"]
    assert (enough["devices"], enough["stage"]) == (all_of_them, None)
    assert budget(FULL - 1)["budget"]["devices"] == 0, "less than any device reserves"


def test_what_is_left_of_a_budget_bounds_how_many_are_on_their_way() -> None:
    fleet = [Group("r1", "", 10_000, FULL // 2, 3 * FULL // 2)]
    needed = forecast(fleet, FULL, [WHOLE], GATE, Pace(60, 2, bytes_max=1))["budget"]
    took = [
        forecast(fleet, FULL, [WHOLE], GATE, Pace(60, 2, bytes_max=most))["seconds"]
        for most in (needed["bytes_needed"], needed["bytes_needed"] * 21 // 20, FULL * 10**6)
    ]
    assert took[0] > took[1] > took[2] == seconds(fleet, WHOLE, Pace(60, 2))
