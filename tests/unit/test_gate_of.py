"""The gate of a rollout's row: any gate survives it, and nonsense is refused by name."""

import math
from typing import Any

import pytest

from service.core.canary import Gate
from service.core.policy import GATE_BOUNDS, gate_of


def test_an_empty_row_is_the_default_gate_and_any_gate_survives_its_row() -> None:
    assert gate_of({}) == Gate()
    gate = Gate(margin_rel=0.05, undecided_s=60)
    assert gate_of(vars(gate)) == gate


def test_every_field_of_a_gate_has_bounds() -> None:
    assert set(GATE_BOUNDS) == set(vars(Gate()))


BAD = [-1, math.nan, math.inf, -math.inf, "0.1", None, True, [], 1e30]


@pytest.mark.parametrize("name", sorted(GATE_BOUNDS))
@pytest.mark.parametrize("value", BAD, ids=repr)
def test_a_field_that_makes_no_sense_is_refused_by_name(name: str, value: Any) -> None:
    with pytest.raises(ValueError, match=name):
        gate_of({name: value})


def test_a_field_that_nobody_knows_is_refused() -> None:
    with pytest.raises(ValueError, match="marginrel"):
        gate_of({"marginrel": 0.1})


@pytest.mark.parametrize("fine", [0.08, 0.09])
def test_what_is_fine_lies_below_what_is_bad(fine: float) -> None:
    with pytest.raises(ValueError, match="failures_fine"):
        gate_of({"failures_fine": fine})
