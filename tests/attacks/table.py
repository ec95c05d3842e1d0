"""The ids of the table of attacks, each with a short name; they never change."""

from functools import cache
from pathlib import Path


@cache
def names_of_rows() -> dict[str, str]:
    """Return id -> short name, in the order of the table."""
    lines = Path(__file__).with_name("table.txt").read_text().splitlines()
    return {line[:3]: line[4:] for line in lines}
