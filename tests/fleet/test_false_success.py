"""False success is impossible: what a device says is never what it is counted by."""

from collections import Counter

import pytest

from tests.fleet.conftest import GATE, Simulated
from tests.fleet.liars import OTHER, GoesBack, Repeats, RunsOther, SaysBetter, SaysSo
from tests.fleet.simulated import SimulatedDevice
from tests.fleet.simulator import Fleet
from tests.service.world import BASE, BETTER, digest

NEW, OLD = digest(BETTER), digest(BASE)


def outcomes(fleet: Fleet) -> dict[int, tuple[str, str]]:
    """Device -> the state and reason of its one attempt."""
    number = {device.device_id: device.number for device in fleet.devices}
    return {number[d.device_id]: (d.state, d.reason) for d in fleet.deployments()}


def check_truth(fleet: Fleet) -> None:
    """Whoever counts as confirmed has run the new bytes in truth."""
    for number, (state, _) in outcomes(fleet).items():
        assert state != "confirmed" or NEW in fleet.devices[number].ran


def all_of(kind: type[SimulatedDevice], *numbers: int) -> dict[int, type[SimulatedDevice]]:
    return dict.fromkeys(numbers, kind)


@pytest.mark.attack("A16")
@pytest.mark.parametrize(("kind", "runs"), [(SaysSo, OLD), (RunsOther, OTHER)])
def test_who_says_success_and_runs_other_bytes_counts_as_failed(
    simulated: Simulated, kind: type[SimulatedDevice], runs: str
) -> None:
    fleet = simulated(16, liars=all_of(kind, 2, 5))
    fleet.run(hours=5)
    check_truth(fleet)
    found = outcomes(fleet)
    assert [found[n] for n in (2, 5)] == [("failed", "went_back")] * 2
    assert Counter(found.values()) == {("confirmed", ""): 14, ("failed", "went_back"): 2}
    assert fleet.running() == {NEW: 14, runs: 2}


@pytest.mark.attack("A16")
def test_who_goes_back_silently_counts_as_failed_and_holds_no_rollout_up(
    simulated: Simulated,
) -> None:
    soaking = [{"share_bp": 10_000, "soak_s": 2 * 3600}]
    fleet = simulated(16, liars=all_of(GoesBack, 1, 7), stages=soaking)
    fleet.run(hours=6)
    assert fleet.running() == {NEW: 14, OLD: 2}
    found = outcomes(fleet)
    assert [found[n] for n in (1, 7)] == [("failed", "went_back")] * 2
    assert Counter(found.values()) == {("confirmed", ""): 14, ("failed", "went_back"): 2}
    assert fleet.rollout()["state"] == "completed"


@pytest.mark.attack("A16")
def test_who_repeats_all_that_it_ever_said_backwards_counts_once(simulated: Simulated) -> None:
    honest = simulated(12)
    liars = simulated(12, liars=all_of(Repeats, *range(6)))
    for fleet in (honest, liars):
        fleet.run(hours=4)
        check_truth(fleet)
    assert all(len(device.told) > 3 for device in liars.devices if isinstance(device, Repeats))
    assert outcomes(honest) == outcomes(liars) and honest.rollout()["state"] == "completed"
    assert [honest.rollout()["health"][name] for name in ("pairs", "failures")] == [12, 0]
    assert [liars.rollout()["health"][name] for name in ("pairs", "failures")] == [12, 0]
    sent = [sum(d.bytes_sent for d in fleet.deployments()) for fleet in (honest, liars)]
    assert sent[0] == sent[1]


@pytest.mark.attack("A16")
def test_a_harmful_release_halts_however_good_some_devices_say_it_is(
    simulated: Simulated,
) -> None:
    gate = {"hostile_count": 2, "margin_rel": 0.02, "clip": 0.15, "alpha_halt": 0.05}
    everybody = [{"share_bp": 10_000}]
    fleet = simulated(40, liars=all_of(SaysBetter, 0, 1), gate=GATE | gate, stages=everybody)
    fleet.bad[NEW] = 0.12
    fleet.run(hours=3)
    found = fleet.rollout()
    assert (found["state"], found["halt_reason"].partition(":")[0]) == ("halted", "wer")
    assert fleet.running()[NEW] < 40
