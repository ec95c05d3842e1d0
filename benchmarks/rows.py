"""The form of every figure: rows of work, figure, value, unit, and a goal of that very run."""

import json
from dataclasses import asdict, dataclass
from pathlib import Path

FOLDER = Path(__file__).parents[1] / "build" / "bench"


@dataclass(frozen=True)
class Row:
    """One figure; `goal` is an upper bound in the same unit, or None where there is none."""

    work: str
    figure: str
    value: float
    unit: str
    goal: float | None = None

    @property
    def holds(self) -> bool:
        """Whether the value keeps its goal."""
        return self.goal is None or self.value <= self.goal


def publish(name: str, rows: list[Row]) -> int:
    """Print the table, write `build/bench/NAME.json`; returns 1 if a goal was missed."""
    FOLDER.mkdir(parents=True, exist_ok=True)
    lines = [asdict(row) | {"holds": row.holds} for row in rows]
    (FOLDER / f"{name}.json").write_text(json.dumps(lines, indent=1) + "\n")
    width = max(len(f"{row.work}: {row.figure}") for row in rows)
    for row in rows:
        goal = "" if row.goal is None else f"   at most {row.goal:,g}"
        missed = "" if row.holds else "   MISSED"
        value = f"{row.value:>12,.4g}" if row.value < 1000 else f"{row.value:>12,.0f}"
        print(f"{f'{row.work}: {row.figure}':{width}}{value} {row.unit}{goal}{missed}")
    return int(not all(row.holds for row in rows))
