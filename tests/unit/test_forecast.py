"""What a rollout is foretold to take: bounds and directions that hold for every fleet."""

from dataclasses import replace

from hypothesis import given
from hypothesis import strategies as st

from service.core.canary import Gate
from service.core.forecast import Group, Pace, Step, detectable, forecast, pairs_needed

FULL = 1_000_000
groups = st.lists(
    st.builds(
        Group,
        release=st.sampled_from(["", "r1", "r2"]),
        network=st.sampled_from(["", "fast", "slow", "metered"]),
        devices=st.integers(0, 100_000),
        bytes=st.integers(0, FULL),
    ),
    max_size=6,
)
paces = st.builds(Pace, st.floats(1, 1e5), st.floats(1, 100), st.floats(0, 600), st.floats(0, 1))
caps = st.none() | st.integers(1, 10_000)
GATE, WHOLE = Gate(), Step(10_000, 0, None)


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
        fleet = [Group("r1", "", pairs, 1)]
        (stage,) = forecast(fleet, FULL, [WHOLE], GATE, Pace(60, 2))["stages"]
        assert stage["decides"] is decides
    assert detectable(GATE, GATE.pairs_halt_least - 1) is None
    assert pairs_needed(replace(GATE, hostile_share=1.0)) is None, "nobody could be believed"


def test_an_empty_cohort_takes_nothing() -> None:
    found = forecast([], FULL, [WHOLE], GATE, Pace(60, 2))
    assert [found[name] for name in ("devices", "bytes", "bytes_full", "seconds")] == [0, 0, 0, 0]
