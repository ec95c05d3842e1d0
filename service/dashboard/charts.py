"""Charts as inline SVG: values in, escaped markup out; nothing here knows the fleet.

Bars stretch to the width they are given and hold no text, since text would stretch too: the
page prints the numbers next to them. Colours are classes of the page's style, so they follow
light and dark. Each chart has a `<title>`, which is also its name for a screen reader.
"""

from collections.abc import Sequence
from dataclasses import dataclass

from markupsafe import Markup

WIDTH = 1000  # of a stretching bar, in its own units
HEIGHT = 12
SLIVER = 6  # a part that is not empty is at least so wide, else one device of many is unseen
GAP = 2

BAND_WIDTH, BAND_HEIGHT = 360, 86
BAND_EDGE = 26  # room for half a label at either end
AXIS_Y, BAND_Y = 60, 22
SCALES_BP = (10, 20, 50, 100, 200, 300, 500, 1000, 2000, 5000, 10_000)

ICONS = {
    "running": '<path d="M5 3l8 5-8 5z"/>',
    "paused": '<path d="M4 3h3v10H4zM9 3h3v10H9z"/>',
    "completed": '<path class="stroke" d="M3 8.5l3.5 3.5L13 4.5"/>',
    "passed": '<path class="stroke" d="M3 8.5l3.5 3.5L13 4.5"/>',
    "halted": '<path d="M3.5 3.5h9v9h-9z"/>',
    "canceled": '<path class="stroke" d="M4 4l8 8M12 4l-8 8"/>',
    "draft": '<circle class="stroke" cx="8" cy="8" r="5"/>',
    "waiting": '<circle class="stroke" cx="8" cy="8" r="5"/>',
    "warning": '<path class="stroke" d="M8 2.5L14.5 13.5H1.5zM8 7v3M8 11.6v.4"/>',
}


@dataclass(frozen=True)
class Part:
    """One part of a stacked bar: its name, how many, and the class that colours it."""

    name: str
    count: int
    tone: str


def stacked_bar(parts: Sequence[Part], title: str) -> Markup:
    """Return a bar whose parts are as wide as their counts; without any, an empty track."""
    shown = [part for part in parts if part.count > 0]
    total = sum(part.count for part in shown)
    room = WIDTH - SLIVER * len(shown) - GAP * max(0, len(shown) - 1)
    drawn, x = [], 0.0
    for part in shown:
        width = SLIVER + room * part.count / total
        drawn.append(
            Markup(
                '<rect class="{}" x="{:.1f}" width="{:.1f}" height="{}">'
                "<title>{}: {}</title></rect>"
            ).format(part.tone, x, width, HEIGHT, part.name, part.count)
        )
        x += width + GAP
    return _bar(Markup("").join(drawn), title)


def meter(share: float, tone: str, title: str) -> Markup:
    """Return a track filled to a share in [0, 1]; more is full, less is empty."""
    width = WIDTH * min(1.0, max(0.0, share))
    if width > 0:
        width = max(width, SLIVER)
    fill = Markup('<rect class="{}" width="{:.1f}" height="{}"/>').format(tone, width, HEIGHT)
    return _bar(fill if width else Markup(""), title)


def band(change_bp: int, lower_bp: int, upper_bp: int, margin_bp: int | None, title: str) -> Markup:
    """Return the change of the word error rate with its always-valid band and the margin.

    Left of zero is better, right of the margin is harm. All in basis points of the rate, so
    100 is one percentage point.
    """
    most = max(abs(change_bp), abs(lower_bp), abs(upper_bp), abs(margin_bp or 0))
    scale = next((s for s in SCALES_BP if s >= most), SCALES_BP[-1])

    def x(value_bp: int) -> float:
        inside = max(-scale, min(scale, value_bp))
        return BAND_WIDTH / 2 + inside / scale * (BAND_WIDTH / 2 - BAND_EDGE)

    drawn = [
        Markup('<line class="axis" x1="{}" x2="{}" y1="{y}" y2="{y}"/>').format(
            BAND_EDGE, BAND_WIDTH - BAND_EDGE, y=AXIS_Y
        ),
        _tick(x(-scale), _points(-scale)),
        _tick(x(0), "0"),
        _tick(x(scale), _points(scale)),
        Markup('<line class="zero" x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{y}"/>').format(
            x=x(0), y=AXIS_Y
        ),
        Markup('<rect class="band" x="{:.1f}" y="{}" width="{:.1f}" height="22" rx="4"/>').format(
            x(lower_bp), BAND_Y, max(2.0, x(upper_bp) - x(lower_bp))
        ),
    ]
    if margin_bp is not None:
        drawn.append(
            Markup(
                '<line class="margin" x1="{x:.1f}" x2="{x:.1f}" y1="12" y2="{y}"/>'
                '<text class="margin-word" x="{t:.1f}" y="9">margin {m}</text>'
            ).format(x=x(margin_bp), y=AXIS_Y, t=x(margin_bp) - 2, m=_points(margin_bp))
        )
    drawn.append(
        Markup('<rect class="change" x="{:.1f}" y="{}" width="4" height="30" rx="2"/>').format(
            x(change_bp) - 2, BAND_Y - 4
        )
    )
    return Markup(
        '<svg class="chart" viewBox="0 0 {} {}" role="img"><title>{}</title>{}</svg>'
    ).format(BAND_WIDTH, BAND_HEIGHT, title, Markup("").join(drawn))


def icon(name: str) -> Markup:
    """Return a small mark by shape; the word next to it says the same."""
    body = Markup(ICONS[name])
    return Markup('<svg class="icon" viewBox="0 0 16 16" aria-hidden="true">{}</svg>').format(body)


def _bar(body: Markup, title: str) -> Markup:
    return Markup(
        '<svg class="bar" viewBox="0 0 {w} {h}" preserveAspectRatio="none" role="img">'
        '<title>{t}</title><rect class="track" width="{w}" height="{h}"/>{b}</svg>'
    ).format(w=WIDTH, h=HEIGHT, t=title, b=body)


def _tick(x: float, word: str) -> Markup:
    return Markup(
        '<line class="axis" x1="{x:.1f}" x2="{x:.1f}" y1="{a}" y2="{b}"/>'
        '<text x="{x:.1f}" y="{c}">{w}</text>'
    ).format(x=x, a=AXIS_Y, b=AXIS_Y + 4, c=AXIS_Y + 18, w=word)


def _points(value_bp: int) -> str:
    """Return percentage points with a sign and no more digits than needed."""
    return f"{value_bp / 100:+g}".replace("-", "−")
