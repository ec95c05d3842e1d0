"""Where the parts of a chart lie; `charts.html` draws them.

Bars stretch to the width they are given and hold no text, since text would stretch too: the
page prints the numbers next to them.
"""

from collections.abc import Iterator, Sequence
from typing import NamedTuple

WIDTH = 1000  # of a stretching bar, in its own units
SLIVER = 6  # a part that is not empty is at least so wide, else one device of many is unseen
GAP = 2
SCALES_BP = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000)


class Part(NamedTuple):
    """One part of a bar: the class that colours it, its name, how much of it there is."""

    tone: str
    name: str
    amount: float


def spans(parts: Sequence[Part], whole: float) -> Iterator[tuple[Part, float, float]]:
    """Yield each part that is not empty with its left edge and its width.

    Slivers, and what is more than the whole, are taken from the widest.
    """
    shown = [Part(*part) for part in parts if part[2] > 0]
    room = WIDTH - GAP * (len(shown) - 1)
    widths = [max(SLIVER, room * part.amount / whole) for part in shown]
    if widths:
        widths[widths.index(max(widths))] -= max(0.0, sum(widths) - room)
    x = 0.0
    for part, width in zip(shown, widths, strict=True):
        yield part, x, width
        x += width + GAP


def scale_bp(*values_bp: float) -> float:
    """Return the end of an axis, in basis points, that holds every value on either side of 0."""
    most = max(abs(value) for value in values_bp)
    return next((scale for scale in SCALES_BP if scale >= most), most)
