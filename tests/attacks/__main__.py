"""Run the tests that are marked with an attack, and say of each row of the table how it ended.

    python -m tests.attacks [--json] [ID ...]

A row is as demanded when every test behind it passed, and not covered when none ran. The exit
code is 0 if all rows are as demanded, 3 if some are not covered, and otherwise pytest's: 1 if a
test failed, 2 or 4 if the tests could not be run.
"""

import argparse
import io
import json
import sys
from contextlib import redirect_stdout
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from tests.attacks.table import names_of_rows

ROOT = Path(__file__).parents[2]
OUT = ROOT / "build" / "bench" / "attacks.json"
HOLDS, FAILED, NOT_COVERED = "as demanded", "FAILED", "NOT COVERED"


@dataclass
class Row:
    """One attack and what became of its tests: node id -> passed, failed or skipped."""

    id: str
    name: str
    tests: dict[str, str] = field(default_factory=dict)

    @property
    def outcome(self) -> str:
        ends = set(self.tests.values())
        if "failed" in ends:
            return FAILED
        return HOLDS if "passed" in ends else NOT_COVERED

    def line(self) -> str:
        functions = list(dict.fromkeys(node.split("[")[0].split("::")[-1] for node in self.tests))
        more = f" and {len(functions) - 1} more" if functions[1:] else ""
        behind = f"{len(self.tests):>4} tests: {functions[0]}{more}" if functions else ""
        return f"{self.id}  {self.name:48} {self.outcome:12}{behind}".rstrip()


class Watch:
    """A pytest plugin that keeps only the tests of some rows, and how each of them ended."""

    def __init__(self, rows: dict[str, Row]) -> None:
        self.rows = rows

    def pytest_collection_modifyitems(self, config: pytest.Config, items: list[Any]) -> None:
        kept = [item for item in items if attacks_of(item) & self.rows.keys()]
        config.hook.pytest_deselected(items=[item for item in items if not attacks_of(item)])
        items[:] = kept
        for item in kept:
            for row in attacks_of(item) & self.rows.keys():
                self.rows[row].tests[item.nodeid] = "skipped"

    def pytest_runtest_logreport(self, report: pytest.TestReport) -> None:
        if report.failed or (report.when == "call" and report.passed):
            for row in self.rows.values():
                if row.tests.get(report.nodeid, "failed") != "failed":
                    row.tests[report.nodeid] = report.outcome


def attacks_of(item: pytest.Item) -> set[str]:
    """Return the rows that a test covers."""
    return {row for mark in item.iter_markers("attack") for row in mark.args}


def main() -> int:
    """Run, print, write `build/bench/attacks.json`."""
    parser = argparse.ArgumentParser(prog="python -m tests.attacks", description=__doc__)
    parser.add_argument("--json", action="store_true", help="print the rows as JSON")
    parser.add_argument("--tests", default=ROOT / "tests", help="look only here")
    parser.add_argument("ids", nargs="*", metavar="ID", help="only these rows, as M01, or M")
    options = parser.parse_args()
    wanted = tuple(options.ids) or ("",)
    rows = {i: Row(i, name) for i, name in names_of_rows().items() if i.startswith(wanted)}
    said = io.StringIO()
    with redirect_stdout(said):
        code = pytest.main(
            ["-c", str(ROOT / "pyproject.toml"), "-q", "--tb=short", str(options.tests)],
            plugins=[Watch(rows)],
        )
    if code not in (pytest.ExitCode.OK, pytest.ExitCode.NO_TESTS_COLLECTED):
        print(said.getvalue(), file=sys.stderr)
    _publish(rows, as_json=options.json)
    if code == pytest.ExitCode.NO_TESTS_COLLECTED:
        code = pytest.ExitCode.OK
    return int(code) or 3 * any(row.outcome == NOT_COVERED for row in rows.values())


def _publish(rows: dict[str, Row], *, as_json: bool) -> None:
    found = [vars(row) | {"outcome": row.outcome} for row in rows.values()]
    figures = [
        {"work": f"{row.id} {row.name}", "figure": "tests that do not hold", "unit": "tests"}
        | {"value": sum(end == "failed" for end in row.tests.values()), "goal": 0}
        | {"holds": row.outcome == HOLDS}
        for row in rows.values()
    ]
    OUT.parent.mkdir(parents=True, exist_ok=True)
    OUT.write_text(json.dumps(figures, indent=1) + "\n")
    if as_json:
        print(json.dumps(found, indent=1))
        return
    for row in rows.values():
        print(row.line())
    count = {end: sum(row.outcome == end for row in rows.values()) for end in (HOLDS, FAILED)}
    print(f"{count[HOLDS]} of {len(rows)} rows as demanded, {count[FAILED]} failed")


if __name__ == "__main__":
    sys.exit(main())
