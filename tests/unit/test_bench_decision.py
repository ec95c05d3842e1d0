"""The benchmark of a decision's cost is about a decision that the service takes."""

from pathlib import Path

from benchmarks.decision import FEW, measure


def test_a_decision_can_be_timed_on_tables_that_were_filled_in_bulk(tmp_path: Path) -> None:
    assert measure(tmp_path / "few.db", FEW) > 0
