import xml.etree.ElementTree as ET

import pytest

from service.dashboard import charts, words
from service.dashboard.charts import Part
from service.dashboard.rollout_card import wer_rows

EVIL = '<script>alert("x")</script>\r\nSet-Cookie: a=b'


def widths(svg: str) -> list[float]:
    rects = [r for r in ET.fromstring(svg).iter("rect") if r.get("class") != "track"]
    return [float(r.get("width", "nan")) for r in rects]


def test_a_bar_without_devices_is_an_empty_track() -> None:
    assert widths(charts.stacked_bar([], "none")) == []
    assert widths(charts.stacked_bar([Part("r1", 0, "ok")], "none")) == []


def test_one_device_fills_the_bar_and_one_of_a_million_is_still_seen() -> None:
    assert widths(charts.stacked_bar([Part("r1", 1, "ok")], "one")) == [charts.WIDTH]
    most, one = widths(charts.stacked_bar([Part("a", 10**6, "ok"), Part("b", 1, "halt")], "many"))
    assert one >= charts.SLIVER
    assert most + one + charts.GAP == pytest.approx(charts.WIDTH, abs=0.2)


@pytest.mark.parametrize(("share", "width"), [(-1.0, []), (0.0, []), (0.5, [500]), (7.0, [1000])])
def test_a_meter_stays_within_its_track(share: float, width: list[float]) -> None:
    assert widths(charts.meter(share, "ok", "share")) == width


def test_a_band_far_outside_the_scale_stays_inside_the_picture() -> None:
    (width, change) = widths(charts.band(50_000, -50_000, 50_000, None, "wild"))
    assert 0 < width <= charts.BAND_WIDTH
    assert change > 0
    assert "margin" not in charts.band(0, 0, 0, None, "still")


def test_chart_titles_are_escaped() -> None:
    assert "<script" not in charts.stacked_bar([Part(EVIL, 1, "ok")], EVIL)
    assert "<script" not in charts.meter(0.5, "ok", EVIL)
    assert "<script" not in charts.band(1, 0, 2, 1, EVIL)


def test_an_unknown_word_error_rate_is_no_bar() -> None:
    health = {"old_wer_bp": None, "new_wer_bp": None}
    assert wer_rows({"health": health, "stages": []}) == []
    nothing_wrong = wer_rows({"health": {"old_wer_bp": 0, "new_wer_bp": 0}, "stages": []})
    assert [row["new"] for row in nothing_wrong] == ["0.0 %"]


@pytest.mark.parametrize(
    ("said", "meant"),
    [
        (words.share(999_999, 1_000_000), "99.9 %"),
        (words.share(1, 1_000_000), "0.1 %"),
        (words.share(0, 0), "–"),
        (words.percent(None), "–"),
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
