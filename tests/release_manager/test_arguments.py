from argparse import ArgumentTypeError
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from release_manager import arguments


@pytest.mark.parametrize(
    ("read", "text", "value"),
    [
        (arguments.share_bp, "5%", 500),
        (arguments.share_bp, "0.25%", 25),
        (arguments.share_bp, "0.01%", 1),
        (arguments.share_bp, "100%", 10_000),
        (arguments.duration_s, "90", 90),
        (arguments.duration_s, "90s", 90),
        (arguments.duration_s, "15m", 900),
        (arguments.duration_s, "24h", 86_400),
        (arguments.duration_s, "7d", 604_800),
        (arguments.count, "12", 12),
        (arguments.size, "500MB", 500_000_000),
        (arguments.size, "7", 7),
        (arguments.window, "01:00-23:59", {"start_min": 60, "end_min": 1439}),
        (arguments.gate_entry, "margin_bp=50", ("margin_bp", 50)),
        (arguments.gate_entry, "alpha=0.05", ("alpha", 0.05)),
        (arguments.filter_entry, "hardware=h1,h2", ("hardware", "h1,h2")),
        (arguments.filter_entry, "tags.ring=beta", ("tags.ring", "beta")),
        (arguments.name, "asr-en.v2_x", "asr-en.v2_x"),
    ],
)
def test_a_text_is_read_as_its_value(read: Callable[[str], Any], text: str, value: object) -> None:
    assert read(text) == value


@pytest.mark.parametrize(
    ("read", "texts"),
    [
        (arguments.share_bp, ["5", "0%", "0.001%", "101%", "-5%", "5 %", "1e1%", "", "٥%"]),
        (arguments.duration_s, ["0", "-1", "1.5h", "1w", "h", "", "1h30m"]),
        (arguments.count, ["0", "-1", "1.0", "many", ""]),
        (arguments.stages, ["5%,25%", "25%,5%,100%", "100%,100%", "", "5%,,100%", "100%:0"]),
        (arguments.size, ["0", "-1", "5 GB", "5gb", "1.5GB", "GB", ""]),
        (arguments.window, ["1:00-2:00", "24:00-01:00", "01:00", "01:00-02:60", ""]),
        (arguments.gate_entry, ["a=true", "a=null", "a=NaN", "a=1e9", "a=[1]", "a=", "a"]),
        (arguments.filter_entry, ["hw=h1", "hardware", "hardware.x=1", "tags=1", "tags.=1"]),
        (arguments.name, ["", "A", "-a", "a/b", "a" * 65, "a\n", "..", "é"]),
    ],
)
def test_a_text_that_is_not_meant_is_refused(read: Callable[[str], Any], texts: list[str]) -> None:
    for text in texts:
        with pytest.raises(ArgumentTypeError):
            read(text)


def test_stages_carry_their_least_duration() -> None:
    assert arguments.stages("5%:1h, 25%,100%") == [
        {"share_bp": 500, "soak_s": 3600, "in_flight_max": None},
        {"share_bp": 2500, "soak_s": 0, "in_flight_max": None},
        {"share_bp": 10_000, "soak_s": 0, "in_flight_max": None},
    ]


def test_filters_of_one_kind_join() -> None:
    entries = ["hardware=h1", "hardware=h2,h3", "tags.ring=beta", "tags.room=k", "running=r1"]
    assert arguments.cohort_filter([arguments.filter_entry(e) for e in entries]) == {
        "hardware": ["h1", "h2", "h3"],
        "tags": {"ring": "beta", "room": "k"},
        "running": ["r1"],
    }


@given(st.integers(1, 10_000))
def test_every_basis_point_can_be_written(share: int) -> None:
    assert arguments.share_bp(f"{share / 100:.2f}%") == share
