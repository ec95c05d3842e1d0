"""Where a patch may change a file, and what: offsets, counts, the bytes between, odd numbers."""

from typing import Any

import numpy as np
import pytest

from neural_diff import encode
from neural_diff.region import Region
from tests.unit.patch_files import put_together, take_apart
from tests.unit.ways import KINDS, answer, drafted, raws, said, sections_of, with_limits, with_raws

OLD = bytes(range(200))
HUGE = [2**31 - 1, 2**31, 2**32 - 1, 2**32, 2**33, 2**62, 2**63, 2**64 - 8, 2**64 - 1, 2**70]


def honest() -> bytes:
    region = Region("w", 8, 48, 32, "int")
    new = with_raws(region, OLD, [7, 2**32 - 1])
    patch = drafted(list(sections_of(region, OLD, new, "gaps")), OLD, new)
    assert answer(OLD, patch) == new
    return patch


def told(side: str, field: str, value: Any) -> str:
    manifest, payloads = take_apart(honest())
    manifest[side][0][field] = value
    found = answer(OLD, put_together(with_limits(manifest), payloads))
    assert isinstance(found, str)
    return found


@pytest.mark.attack("D07")
@pytest.mark.parametrize("offset", [9, 200, *HUGE, -1, -8])
def test_d07_a_region_that_ends_outside_the_file_is_refused_whatever_wraps(offset: int) -> None:
    assert told("regions", "file_offset", offset).startswith("Malformed")


@pytest.mark.attack("D07")
@pytest.mark.parametrize("start", [1, 48, *HUGE, -1])
def test_d07_a_section_that_ends_outside_its_region_is_refused_whatever_wraps(start: int) -> None:
    assert told("sections", "start", start).startswith("Malformed")


@pytest.mark.attack("D08")
@pytest.mark.parametrize("count", [49, 2**30, 2**30 + 48, *HUGE, 0, -48])
@pytest.mark.parametrize("side", ["regions", "sections"])
def test_d08_a_count_whose_bytes_overflow_32_or_64_bits_is_refused(side: str, count: int) -> None:
    assert told(side, "count", count).startswith("Malformed")


@pytest.mark.attack("D12")
@pytest.mark.parametrize(("kind", "width"), KINDS)
def test_d12_bytes_that_no_region_declares_are_never_changed(kind: Any, width: int) -> None:
    region = Region("w", 64, 32, width, kind)
    new = with_raws(region, OLD, (raws(region, OLD) ^ 3).tolist())
    for way in ("gaps", "blocks32", "replace", "exclusive or"):
        given = answer(OLD, drafted(list(sections_of(region, OLD, new, way)), OLD, new))
        assert isinstance(given, bytes)
        assert given[:64] == OLD[:64]
        assert given[64 + region.span_bytes :] == OLD[64 + region.span_bytes :]


@pytest.mark.attack("D12")
def test_d12_a_header_is_changed_only_by_a_region_that_says_so() -> None:
    manifest, payloads = take_apart(honest())
    manifest["to"]["sha256"] = "0" * 64
    assert "Corrupt" in str(answer(OLD, put_together(manifest, payloads)))


@pytest.mark.attack("D13")
@pytest.mark.parametrize(
    ("kind", "width", "odd"),
    [
        ("f16", 16, [0x7C00, 0xFC00, 0x7E01, 0xFFFF, 0x8000, 0, 1, 0x8001, 0x7BFF]),
        ("bf16", 16, [0x7F80, 0xFF80, 0x7FC1, 0xFFFF, 0x8000, 0, 1, 0x8001, 0x7F7F]),
        ("f32", 32, [0x7F800000, 0xFF800000, 0x7FC00001, 2**32 - 1, 1 << 31, 0, 1, 0x80000001]),
    ],
)
def test_d13_infinities_denormals_and_what_is_no_number_change_bit_by_bit(
    kind: Any, width: int, odd: list[int]
) -> None:
    pairs = [(a, b) for a in odd for b in odd]
    region = Region("w", 0, len(pairs), width, kind)
    old = with_raws(region, bytes(region.span_bytes), [a for a, _ in pairs])
    new = with_raws(region, bytes(region.span_bytes), [b for _, b in pairs])
    for way in ("gaps", "blocks32", "class-gaps", "set gaps", "replace", "exclusive or"):
        given = said(way, region, raws(region, old), raws(region, new))
        assert answer(old, drafted([(region, 0, region.count, given)], old, new)) == new


@pytest.mark.attack("D13")
@pytest.mark.parametrize("width", [4, 8, 16, 32])
def test_d13_codes_outside_their_bounds_are_brought_inside_by_hashing(width: int) -> None:
    half = 1 << (width - 1)
    region = Region("w", 0, 16, width, "int", 0, -half // 2, half // 2 - 1)
    old = with_raws(region, bytes(16 * width // 8), [half - 1, half] * 8)
    new = with_raws(region, old, [half // 2 - 1, 2 * half - half // 2] * 8)
    hashed = encode.hashed(np.array([0], np.int16), 5, 0)
    assert answer(old, drafted([(region, 0, 16, hashed)], old, new)) == new
