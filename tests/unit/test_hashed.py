"""The hash of hashed sections: the same numbers for ever, spread evenly, independent parts."""

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_diff import decode, decode_numpy, encode
from neural_diff.codec import unpack
from neural_diff.errors import Malformed
from neural_diff.hashed import fmix32, locate, locate_one, region_seed
from neural_diff.packed import Encoded
from neural_diff.region import Region
from neural_diff.section import Stream
from tests.unit.patch_files import PATCH_SEED, section_of

COUNT = 1 << 19

# seed, index, buckets, fraction bits -> bucket, sign, dither. These are the format: they stay.
GOLDEN = [
    ((0, 0, 1000, 8), (0, 1, 0)),
    ((0, 1, 1000, 8), (70, -1, 117)),
    ((0xDEADBEEF, 12345, 4194304, 8), (998228, -1, 231)),
    ((0xFFFFFFFF, 0xFFFFFFFF, 7, 3), (1, 1, 6)),
    ((1, 2**31, 47186, 0), (25712, 1, 0)),
]


def test_fmix32_has_the_published_values() -> None:
    # Known answers of MurmurHash3's 32-bit finaliser.
    assert [fmix32(value) for value in (0, 1, 0xFFFFFFFF)] == [0, 0x514E28B7, 0x81F16F39]


@pytest.mark.parametrize(("asked", "answer"), GOLDEN)
def test_locations_are_the_golden_ones(
    asked: tuple[int, int, int, int], answer: tuple[int, int, int]
) -> None:
    assert locate_one(*asked) == answer
    seed, index, buckets, fraction_bits = asked
    found = locate(seed, index, 1, buckets, fraction_bits)
    assert tuple(int(part[0]) for part in found) == answer


def test_the_seed_of_a_region_is_the_golden_one() -> None:
    assert region_seed(PATCH_SEED, "lstm.0.weight") == 3705879493
    assert region_seed(PATCH_SEED, "wöi") != region_seed(PATCH_SEED, "woi")


@given(
    st.integers(0, 2**32 - 1),
    st.integers(0, 2**32 - 9),
    st.integers(1, 2**22),
    st.integers(0, 8),
)
def test_numpy_locates_as_the_reference_does(
    seed: int, start: int, buckets: int, fraction_bits: int
) -> None:
    found = np.transpose(locate(seed, start, 8, buckets, fraction_bits)).tolist()
    wanted = [locate_one(seed, start + i, buckets, fraction_bits) for i in range(8)]
    assert [tuple(row) for row in found] == wanted


@pytest.mark.parametrize("buckets", [COUNT // 50, COUNT // 10, 1000])
@pytest.mark.parametrize("seed", [0, 1, 0x9E3779B1, 0xFFFFFFFF])
def test_buckets_are_occupied_evenly(seed: int, buckets: int) -> None:
    load = np.bincount(locate(seed, 0, COUNT, buckets, 0)[0], minlength=buckets)
    mean = COUNT / buckets
    chi_squared = np.sum((load - mean) ** 2) / mean
    assert abs(chi_squared - buckets) / np.sqrt(2 * buckets) < 4


@pytest.mark.parametrize("seed", [0, 77, 0xFFFFFFFF])
def test_elements_some_lag_apart_share_a_bucket_no_more_often_than_by_chance(seed: int) -> None:
    buckets = COUNT // 50
    place = locate(seed, 0, COUNT, buckets, 0)[0]
    by_chance = COUNT / buckets
    for lag in [*range(1, 200), 256, 512, 768, 1024, 1536, 3072, 65536]:
        assert np.count_nonzero(place[lag:] == place[:-lag]) < 3 * by_chance


def test_a_hash_without_the_multiplication_would_fail_the_lag_test() -> None:
    buckets, index = COUNT // 50, np.arange(COUNT, dtype=np.uint32)
    for shift, multiplier in ((16, 0x85EBCA6B), (13, 0xC2B2AE35), (16, 1)):
        index ^= index >> np.uint32(shift)
        index *= np.uint32(multiplier)
    place = (index.astype(np.uint64) * np.uint64(buckets)) >> np.uint64(32)
    worst = max(np.count_nonzero(place[lag:] == place[:-lag]) for lag in range(1, 1025))
    assert worst > 3 * COUNT / buckets


def test_another_seed_gives_unrelated_buckets() -> None:
    one, two = (locate(seed, 0, COUNT, 5000, 0)[0] for seed in (1, 2))
    assert abs(np.count_nonzero(one == two) - COUNT / 5000) < 5 * np.sqrt(COUNT / 5000)


@pytest.mark.parametrize("buckets", [1000, COUNT // 50, 2**22])
def test_sign_and_dither_are_independent_of_bucket_and_of_each_other(buckets: int) -> None:
    place, sign, dither = locate(5, 0, COUNT, buckets, 8)
    limit = 5 / np.sqrt(COUNT)
    assert abs(sign.mean()) < limit
    assert abs(dither.mean() - 127.5) < 5 * 74 / np.sqrt(COUNT)
    assert set(np.unique(dither)) == set(range(256))
    parts = np.stack([place % 256, place, sign, dither, dither & 1, dither >> 7])
    correlation = np.corrcoef(parts)
    for one, two in [(0, 2), (0, 3), (1, 2), (1, 3), (2, 3), (2, 4), (2, 5), (4, 5), (0, 4)]:
        assert abs(correlation[one, two]) < limit, (one, two)


def test_a_bucket_of_less_than_a_step_moves_its_share_of_elements() -> None:
    region = Region("w", 0, COUNT, 8, "int", 0, -128, 127)
    for value in (1, 64, -64, 255):
        moved = np.frombuffer(applied(region, bytes(COUNT), np.array([value], np.int16), 8), "i1")
        _, sign, _ = locate(9, 0, COUNT, 1, 8)
        assert abs((moved * sign).mean() - value / 256) < 5 / np.sqrt(COUNT)


def applied(
    region: Region, old: bytes, buckets: np.ndarray, fraction_bits: int, plain: bool = False
) -> bytes:
    encoded = encode.hashed(buckets, 9, fraction_bits)
    section = section_of(encoded, region.count)
    decoder = decode if plain else decode_numpy
    change = decoder.change_of(section, region, unpack(encoded.streams, encoded.payload))
    middle = len(old) // 2 // region.element_bytes * region.element_bytes
    halves = bytearray(old[:middle]), bytearray(old[middle:])
    change(halves[0], 0)
    change(halves[1], middle // region.element_bytes)
    return bytes(halves[0] + halves[1])


@settings(deadline=None)
@given(
    st.data(),
    st.sampled_from([4, 8, 16, 32]),
    st.lists(st.integers(-32768, 32767), min_size=1, max_size=20),
    st.integers(0, 8),
)
def test_both_decoders_move_codes_as_the_formula_says(
    data: st.DataObject, width: int, values: list[int], fraction_bits: int
) -> None:
    half = 1 << (width - 1)
    lo = data.draw(st.integers(-half, half - 1))
    hi = data.draw(st.integers(lo, half - 1))
    bias = data.draw(st.sampled_from([0, half]))
    raws = data.draw(st.lists(st.integers(0, 2 * half - 1), min_size=20, max_size=40))
    region = Region("w", 0, len(raws), width, "int", bias, lo, hi)
    size = region.element_bytes
    wanted = b""
    for index, raw in enumerate(raws):
        place, sign, dither = locate_one(9, index, len(values), fraction_bits)
        code = raw - bias if bias else raw - 2 * half * (raw >= half)
        code += int(np.floor((sign * values[place] + dither) / 2**fraction_bits))
        wanted += ((min(max(code, lo), hi) + bias) % (2 * half)).to_bytes(size, "little")
    old = b"".join(raw.to_bytes(size, "little") for raw in raws)
    for plain in (True, False):
        assert applied(region, old, np.array(values, np.int16), fraction_bits, plain) == wanted


@pytest.mark.attack("D11")
@pytest.mark.parametrize(
    ("tokens", "bits", "signs"),
    [
        (bytes([8 + 12 * 4]), b"\0\0", b"\0"),  # +32768
        (bytes([8 + 13 * 4]), b"\0\0", b"\1"),  # -65536
        (b"\1", b"", b""),
        (b"\0", b"", b"\1"),
        (b"\1", b"", b"\2"),
    ],
)
def test_d11_buckets_that_are_no_16_bit_numbers_or_lack_signs_are_refused(
    tokens: bytes, bits: bytes, signs: bytes
) -> None:
    streams = tuple(Stream(1, len(stream), len(stream)) for stream in (tokens, bits, signs))
    params = {"buckets": 1, "fraction_bits": 0, "seed": 0}
    stored = tuple(zip(streams, (tokens, bits, signs), strict=True))
    encoded = Encoded("hashed", 4, params, stored)
    region = Region("w", 0, 4, 8, "int", 0, -128, 127)
    said = []
    for decoder in (decode, decode_numpy):
        with pytest.raises(Malformed) as refused:
            decoder.change_of(section_of(encoded, 4), region, unpack(streams, encoded.payload))
        said.append(str(refused.value))
    assert said[0] == said[1]


def test_the_lowest_bucket_is_kept() -> None:
    region = Region("w", 0, 1, 32, "int", 0, -(1 << 31), (1 << 31) - 1)
    seed = next(s for s in range(99) if locate_one(s, 0, 4, 0)[:2] == (0, 1))
    for plain in (True, False):
        encoded = encode.hashed(np.array([-32768, 32767, 0, -1], np.int16), seed, 0)
        decoder = decode if plain else decode_numpy
        streams = unpack(encoded.streams, encoded.payload)
        elements = bytearray(4)
        decoder.change_of(section_of(encoded, 1), region, streams)(elements, 0)
        assert int.from_bytes(elements, "little", signed=True) == -32768
