"""The fleets of `make bench-seeds` are told apart by their seed, and judged by the product."""

import pytest

from benchmarks.seeds_fleet import MODELS, SHARDS, Drawn, Heard
from demo.story import GATE as DEMO
from device_agent.engine import Counts
from service.core.canary import Gate
from service.core.policy import gate_of

GATE = gate_of(DEMO)


def heard(*errors: int) -> Heard:
    """Each model makes so many errors on every shard."""
    of = dict(zip(MODELS, errors, strict=True))
    return {
        (model, shard.sha256): Counts({"sub": n, "del": 0, "ins": 0}, 1, "wer/1", "x", (), ("ab",))
        for model, n in of.items()
        for shard in SHARDS
    }


@pytest.mark.parametrize("gate", [GATE, Gate()])
def test_what_is_better_is_promoted_and_what_is_worse_is_halted(gate: Gate) -> None:
    outcomes = Drawn(1, 600, heard(30, 20, 10, 22)).story(gate)
    assert [outcome.verdict for outcome in outcomes] == ["promoted", "promoted", "halted"]
    assert all(outcome.pairs >= gate.pairs_halt_least for outcome in outcomes)
    assert [outcome.refused for outcome in outcomes] == [0, 0, 0]


def test_devices_that_refuse_halt_before_the_words_do() -> None:
    broken = Drawn(1, 60, heard(10, 10, 10, 80)).story(GATE)[-1]
    assert (broken.verdict, broken.refused) == ("halted", broken.pairs)
    assert broken.pairs < GATE.pairs_halt_least


def test_what_changes_nothing_has_no_verdict_in_a_small_fleet() -> None:
    nothing = Drawn(1, 60, heard(10, 10, 10, 10)).story(Gate())[0]
    assert nothing.verdict == "neither" and 15 < nothing.pairs < 45


def test_the_same_seed_draws_the_same_fleet_and_another_one_another() -> None:
    one, again, other = (Drawn(seed, 60, heard(9, 9, 9, 9)).story(Gate()) for seed in (1, 1, 2))
    assert one == again != other
