"""The table of attacks and the run over it: every row once, and none better than its tests."""

import json
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest

from tests.attacks.__main__ import ROOT
from tests.attacks.table import names_of_rows
from tests.conftest import pytest_collection_modifyitems

LAST = {"M": 52, "A": 29, "D": 22, "T": 14}
TESTS = """
import pytest

@pytest.mark.attack("M01", "M02")
def test_one(): pass

@pytest.mark.attack("M02")
@pytest.mark.parametrize("holds", [True, {holds}])
def test_two(holds): assert holds

@pytest.mark.attack("M03")
def test_three(): pytest.skip("nothing to try it on")

def test_of_no_attack(): raise AssertionError
"""


def attacks(folder: Path, tests: str, *words: str) -> tuple[int, Any]:
    """Runs the table over some tests; returns the exit code and what it said."""
    (folder / "test_some.py").write_text(tests)
    run = [sys.executable, "-m", "tests.attacks", "--tests", str(folder), *words]
    ended = subprocess.run(run, capture_output=True, cwd=ROOT, check=False, text=True)
    as_json = "--json" in words and ended.stdout
    return ended.returncode, json.loads(ended.stdout) if as_json else ended.stdout


def test_every_row_of_the_table_is_listed_once_and_has_a_name_of_its_own() -> None:
    lines = Path(__file__).with_name("table.txt").read_text().splitlines()
    wanted = [f"{kind}{number:02}" for kind, n in LAST.items() for number in range(1, n + 1)]
    assert [line.split(" ")[0] for line in lines] == wanted
    names = list(names_of_rows().values())
    assert len(set(names)) == len(wanted) and all(names)


def test_a_row_is_as_demanded_only_if_a_test_ran_and_all_of_them_passed(tmp_path: Path) -> None:
    code, rows = attacks(tmp_path, TESTS.format(holds=True), "--json", "M01", "M02", "M03", "M04")
    assert [row["outcome"] for row in rows] == ["as demanded"] * 2 + ["NOT COVERED"] * 2
    assert ([len(row["tests"]) for row in rows], code) == ([1, 3, 1, 0], 3)


def test_one_failure_fails_its_row_and_the_run(tmp_path: Path) -> None:
    code, rows = attacks(tmp_path, TESTS.format(holds=False), "--json", "M01", "M02")
    assert [row["outcome"] for row in rows] == ["as demanded", "FAILED"]
    assert (sorted(rows[1]["tests"].values()), code) == (["failed", "passed", "passed"], 1)


def test_a_run_in_which_all_is_as_demanded_says_so(tmp_path: Path) -> None:
    code, said = attacks(tmp_path, TESTS.format(holds=True), "M01")
    assert code == 0
    assert said.splitlines()[0].endswith("as demanded    1 tests: test_one")


def test_a_marker_that_names_no_row_of_the_table_stops_the_run() -> None:
    marked = SimpleNamespace(nodeid="x", iter_markers=lambda name: [pytest.mark.attack("M53").mark])
    with pytest.raises(pytest.UsageError, match="M53"):
        pytest_collection_modifyitems([marked])  # type: ignore[list-item]
