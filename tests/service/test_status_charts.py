import xml.etree.ElementTree as ET
from collections.abc import Sequence
from itertools import pairwise
from typing import Any, cast

import pytest
from hypothesis import given
from hypothesis import strategies as st

from service.dashboard import charts, words
from service.dashboard.charts import Part
from service.dashboard.pages import TEMPLATES
from service.dashboard.story import wer_rates

EVIL = '<script>alert("x")</script>\r\nSet-Cookie: a=b'
BAND_WIDTH = 360  # of its view box
drawn = cast(Any, TEMPLATES.get_template("charts.html").module)
rollout = cast(Any, TEMPLATES.get_template("rollout.html").module)


def bar(parts: Sequence[Part], title: str = "chart") -> str:
    return str(drawn.bar(parts, sum(part.amount for part in parts), title))


def meter(share: float, title: str = "share") -> str:
    return str(drawn.bar([("ok", "", share)], 1, title))


def widths(svg: str) -> list[float]:
    rects = [r for r in ET.fromstring(svg).iter("rect") if r.get("class") != "track"]
    return [float(r.get("width", "nan")) for r in rects]


def test_a_bar_without_devices_is_an_empty_track() -> None:
    assert widths(bar([])) == []
    assert widths(bar([Part("ok", "r1", 0)])) == []


def test_one_device_fills_the_bar_and_one_of_a_million_is_still_seen() -> None:
    assert widths(bar([Part("ok", "r1", 1)])) == [charts.WIDTH]
    most, one = widths(bar([Part("ok", "a", 10**6), Part("halt", "b", 1)]))
    assert one >= charts.SLIVER
    assert most + one + charts.GAP == pytest.approx(charts.WIDTH, abs=0.2)


@given(st.lists(st.integers(0, 10**6), min_size=1, max_size=8))
def test_the_parts_of_a_bar_fill_it_in_order_and_none_is_lost(amounts: list[int]) -> None:
    parts = [Part("ok", str(place), amount) for place, amount in enumerate(amounts)]
    laid = list(charts.spans(parts, sum(amounts)))
    assert [part for part, _, _ in laid] == [part for part in parts if part.amount]
    assert all(width >= charts.SLIVER for _, _, width in laid)
    for (_, x, width), (_, following, _) in pairwise(laid):
        assert following == pytest.approx(x + width + charts.GAP)
    if laid:
        assert laid[0][1] == 0
        assert laid[-1][1] + laid[-1][2] == pytest.approx(charts.WIDTH)


@pytest.mark.parametrize(("share", "width"), [(-1.0, []), (0.0, []), (0.5, [500]), (7.0, [1000])])
def test_a_meter_stays_within_its_track(share: float, width: list[float]) -> None:
    assert widths(meter(share)) == width


def test_a_band_far_outside_the_scale_stays_inside_the_picture() -> None:
    (width, change) = widths(drawn.band(50_000, -50_000, 50_000, None, "wild"))
    assert 0 < width <= BAND_WIDTH
    assert change > 0
    assert "margin" not in drawn.band(0, 0, 0, None, "still")


@pytest.mark.parametrize(
    ("values_bp", "end_bp"), [([0], 10), ([-31, 45], 50), ([300], 300), ([301], 500), ([2e4], 2e4)]
)
def test_an_axis_ends_at_a_round_value_that_holds_all(values_bp: list[int], end_bp: int) -> None:
    assert charts.scale_bp(*values_bp) == end_bp


def test_chart_titles_are_escaped() -> None:
    assert "<script" not in bar([Part("ok", EVIL, 1)], EVIL)
    assert "<script" not in meter(0.5, EVIL)
    assert "<script" not in drawn.band(1, 0, 2, 1, EVIL)


def test_an_unknown_word_error_rate_is_no_bar() -> None:
    health = {"old_wer_bp": None, "new_wer_bp": None}
    assert wer_rates({"health": health, "stages": []}) == []
    nothing_wrong = wer_rates({"health": {"old_wer_bp": 0, "new_wer_bp": 0}, "stages": []})
    assert nothing_wrong == [("All devices", 0, 0)]
    assert "<b>0.0 %</b>" in rollout.wer(nothing_wrong)


@pytest.mark.parametrize(
    ("found", "missing", "text"),
    [
        (None, 0, "0 % of enough"),
        (-3.0, 0, "0 % of enough"),
        (1.0, 0, "50 % of enough"),
        (2.0, 0, "enough"),
        (2.0, 25, "enough, once 25 devices reported"),
    ],
)
def test_evidence_is_said_as_a_share_of_enough(
    found: float | None, missing: int, text: str
) -> None:
    assert f">{text}</span>" in rollout.evidence("Harm", "halts", "halt", found, 2.0, missing)


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (words.share(999_999, 1_000_000), "99.9 %"),
        (words.share(1, 1_000_000), "0.1 %"),
        (words.share(0, 0), "–"),
        (words.percent(0), "0.0 %"),
        (words.percent(1234), "12.3 %"),
        (words.points(-31), "−0.31"),
        (words.size(0), "0 B"),
        (words.size(999), "999 B"),
        (words.size(1_350_000), "1.4 MB"),
        (words.devices(1), "1 device"),
    ],
)
def test_numbers_are_said_in_one_way(said: str, meant: str) -> None:
    assert said == meant
