"""Streams, hybrid tokens and sparse sections: what is encoded comes back, lies do not."""

import zlib

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_diff import codec_numpy, decode, decode_numpy, encode
from neural_diff.codec import (
    GAP_LITERAL_BITS,
    VALUE_LITERAL_BITS,
    numbers,
    token_table,
    unpack,
)
from neural_diff.errors import Malformed
from neural_diff.packed import Encoded, pack
from neural_diff.region import Kind, Region
from neural_diff.section import CLASS_GAPS, CONSTANT, DEFLATE, RAW, Stream
from neural_diff.view import ordinal, plane_join, plane_split
from tests.unit.patch_files import section_of

BYTES = Region("w", 0, 64, 8, "int", 0, -128, 127)


def changed_by(encoded: Encoded, region: Region, old: bytes, block: int | None = None) -> bytes:
    """Decodes with both decoders, block by block, and gives what they agree on."""
    results = []
    section = section_of(encoded, region.count)
    streams = unpack(encoded.streams, encoded.payload)
    size = region.element_bytes
    step = (block or region.count) * size
    for decoder in (decode, decode_numpy):
        change = decoder.change_of(section, region, streams)
        new = b""
        for first in range(0, len(old), step):
            elements = bytearray(old[first : first + step])
            change(elements, first // size)
            new += elements
        results.append(new)
    assert results[0] == results[1]
    return results[0]


def refusal(encoded: Encoded, region: Region = BYTES) -> str:
    """Gives the message with which both decoders refuse."""
    said = []
    for decoder in (decode, decode_numpy):
        with pytest.raises(Malformed) as refused:
            decoder.change_of(
                section_of(encoded, region.count),
                region,
                unpack(encoded.streams, encoded.payload),
            )
        said.append(str(refused.value))
    assert said[0] == said[1]
    return said[0]


def add_of(changes: int, *decoded: bytes) -> Encoded:
    return Encoded("add", 1, {"changes": changes}, tuple(pack(stream) for stream in decoded))


@given(st.lists(st.integers(0, 2**32 - 1), min_size=1, max_size=50), st.sampled_from([3, 4]))
def test_numbers_survive_being_split_into_tokens(values: list[int], literal_bits: int) -> None:
    tokens, bits = encode._split_numbers(np.array(values, np.int64), literal_bits)
    assert [one for _, some in numbers([tokens], bits, literal_bits) for one in some] == values
    assert codec_numpy.numbers(tokens, bits, literal_bits).tolist() == values


@pytest.mark.parametrize("literal_bits", [GAP_LITERAL_BITS, VALUE_LITERAL_BITS])
@pytest.mark.parametrize("largest", [2, 12, 600, 2**32])  # none, few, most and wide raw bits
def test_each_step_of_a_stream_takes_up_the_bits_where_the_one_before_ended(
    largest: int, literal_bits: int
) -> None:
    values = np.random.default_rng(7).geometric(1 / largest, 20_000).clip(0, 2**32 - 1)
    tokens, bits = encode._split_numbers(values, literal_bits)
    assert codec_numpy.numbers(tokens, bits, literal_bits).tolist() == values.tolist()
    streams = [tokens[:5_000], b"", tokens[5_000:]]
    found: list[list[int]] = [[], [], []]
    for stream, some in numbers(streams, bits, literal_bits, 1):
        found[stream] += some
    assert [len(one) for one in found] == [5_000, 0, 15_000]
    assert [*found[0], *found[2]] == (values + 1).tolist()


def test_tokens_stand_for_adjoining_ranges_up_to_32_bits() -> None:
    for literal_bits in (GAP_LITERAL_BITS, VALUE_LITERAL_BITS):
        lowest, extra = token_table(literal_bits)
        ends = [low + (1 << count) for low, count in zip(lowest, extra, strict=True)]
        assert ends[:-1] == list(lowest[1:])
        assert ends[-1] == 1 << 32


@given(st.binary(max_size=300), st.integers(1, 40))
def test_a_stream_survives_being_packed(data: bytes, times: int) -> None:
    stream, stored = pack(data * times)
    assert unpack((stream,), stored) == [data * times]
    assert len(stored) <= len(data * times)


def test_a_repeated_byte_takes_one_byte() -> None:
    assert pack(b"\7" * 1000) == (Stream(CONSTANT, 1, 1000), b"\7")
    assert pack(b"") == (Stream(RAW, 0, 0), b"")


@pytest.mark.attack("D01")
def test_d01_a_stream_longer_than_declared_is_refused_without_being_unpacked() -> None:
    press = zlib.compressobj(9, zlib.DEFLATED, -15)
    bomb = press.compress(bytes(64 << 20)) + press.flush()
    with pytest.raises(Malformed, match="at most 1000 bytes"):
        unpack((Stream(DEFLATE, len(bomb), 1000),), bomb)


@pytest.mark.attack("D02")
@pytest.mark.parametrize("length", [999, 1001])
def test_d02_a_stream_of_another_length_than_declared_is_refused(length: int) -> None:
    stored = zlib.compress(bytes(1000), wbits=-15)
    with pytest.raises(Malformed):
        unpack((Stream(DEFLATE, len(stored), length),), stored)


@pytest.mark.parametrize("spoil", [lambda s: s[:-1], lambda s: s + b"\0", lambda s: b"\xff" + s])
def test_a_stream_that_is_no_whole_deflate_is_refused(spoil: object) -> None:
    stored = spoil(zlib.compress(bytes(range(100)) * 9, wbits=-15))  # type: ignore[operator]
    with pytest.raises(Malformed):
        unpack((Stream(DEFLATE, len(stored), 900),), stored)


KINDS: list[tuple[Kind, int]] = [
    ("int", 8), ("int", 16), ("int", 32), ("f16", 16), ("bf16", 16), ("f32", 32),
]  # fmt: skip


@settings(max_examples=150, deadline=None)
@given(st.data(), st.sampled_from(KINDS), st.sampled_from([0.02, 0.3, 0.9]))
def test_every_encoding_of_a_difference_gives_the_new_elements(
    data: st.DataObject, shape: tuple[Kind, int], density: float
) -> None:
    kind, width = shape
    count = data.draw(st.integers(1, 300))
    rng = np.random.default_rng(data.draw(st.integers(0, 2**32)))
    region = Region("w", 0, count, width, kind)
    old = rng.integers(0, 1 << width, count, dtype=np.uint64).astype(f"<u{width // 8}")
    near = old + rng.integers(-4, 5, count).astype(old.dtype)
    far = rng.integers(0, 1 << width, count, dtype=np.uint64).astype(old.dtype)
    new = np.where(rng.random(count) < density, rng.choice([near, far]), old)
    new[rng.integers(count)] ^= 1
    changed = np.flatnonzero(old != new)
    if not len(changed):
        return
    for encoded in encode._tries(region, old, new, changed):
        block = data.draw(st.integers(1, count))
        assert changed_by(encoded, region, old.tobytes(), block) == new.tobytes()


@pytest.mark.parametrize("new", [0, 127, 128, 255, 1])
def test_an_addition_reaches_every_code_from_every_code(
    new: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(encode, "_DENSE_SHARE", 2.0)
    old = np.array([code for code in range(256) if code != new], np.uint8)
    region = BYTES._replace(count=255)
    encoded = next(encode._tries(region, old, np.full(255, new, np.uint8), np.arange(255)))
    assert encoded.op == "add"
    assert changed_by(encoded, region, old.tobytes()) == bytes([new]) * 255


def test_the_ordinal_of_a_float_is_monotone_and_its_own_inverse() -> None:
    half = Region("w", 0, 1, 16, "f16")
    raws = range(1 << 16)
    assert all(ordinal(ordinal(raw, half), half) == raw for raw in raws)
    assert ordinal(np.arange(1 << 16, dtype=np.uint16), half).tolist() == [
        ordinal(raw, half) for raw in raws
    ]
    finite = [raw for raw in raws if raw & 0x7C00 != 0x7C00]
    signed = [(ordinal(raw, half) ^ 0x8000) for raw in finite]
    values = np.array(finite, np.uint16).view(np.float16)
    in_order = values[np.argsort(signed)]
    assert np.all(np.diff(in_order.astype(np.float64)) >= 0)
    assert ordinal(0x8000, half) == 0xFFFF  # -0 lies just below +0


@given(st.binary(max_size=40), st.sampled_from([1, 2, 4]))
def test_planes_are_joined_as_they_were_split(raw: bytes, size: int) -> None:
    raw *= size
    assert plane_join(plane_split(raw, size), BYTES._replace(width=8 * size)) == raw


@pytest.mark.attack("D10")
def test_d10_a_position_at_the_end_is_refused() -> None:
    assert "element 64" in refusal(add_of(1, bytes([16 + 8]), b"\0", b"\0", b"", b"\0"))
    assert changed_by(add_of(1, bytes([16 + 7]), b"\x07", b"\0", b"", b"\0"), BYTES, bytes(64))[63]


@pytest.mark.attack("D10")
def test_d10_gaps_that_overflow_32_and_64_bits_are_refused() -> None:
    greatest = bytes([16 + 28 * 4 - 1])
    said = refusal(add_of(64, greatest * 64, b"\xff" * (64 * 29 // 8), bytes(64), b"", bytes(8)))
    assert str(64 * (2**32 - 1) + 63) in said


@pytest.mark.attack("D10")
def test_d10_an_unknown_token_is_refused() -> None:
    assert "token 128" in refusal(add_of(1, b"\x80", b"", b"\0", b"", b"\0"))
    assert "token 124" in refusal(add_of(1, b"\0", b"", b"\x7c", b"", b"\0"))


def test_no_change_of_zero_or_of_more_than_half_the_codes_can_be_said() -> None:
    assert "change by 129" in refusal(add_of(1, b"\0", b"", b"\x18", b"\0", b"\0"))
    assert changed_by(add_of(1, b"\0", b"", b"\0", b"", b"\0"), BYTES, bytes(64))[0] == 1
    assert changed_by(add_of(1, b"\0", b"", b"\0", b"", b"\1"), BYTES, bytes(64))[0] == 255


@pytest.mark.parametrize("bits", [b"", b"\1\0", b"\xf0"])
def test_raw_bits_that_are_missing_left_over_or_not_zero_are_refused(bits: bytes) -> None:
    token_of_17 = bytes([16])
    assert "raw bits" in refusal(add_of(1, token_of_17, bits, b"\0", b"", b"\0"))
    assert "raw bits" in refusal(add_of(1, b"\0", b"", bytes([12]), bits, b"\0"))


def test_sign_bits_after_the_last_are_refused() -> None:
    assert "raw bits" in refusal(add_of(1, b"\0", b"", b"\0", b"", b"\2"))


def test_a_4_bit_element_above_15_is_refused() -> None:
    region = Region("w", 0, 2, 4, "int", 0, -8, 7)
    encoded = Encoded("set", 0, {"xor": 0}, ((Stream(RAW, 2, 2), b"\x0f\x10"),))
    assert "cannot be 16" in refusal(encoded, region)


def test_the_tokens_of_a_sparse_change_are_close_to_the_entropy() -> None:
    rng, count, share, scale = np.random.default_rng(0), 1 << 20, 0.02, 3
    changed = np.flatnonzero(rng.random(count) < share)
    distance = rng.geometric(1 - np.exp(-1 / scale), len(changed))
    old = rng.integers(0, 256, count).astype(np.uint8)
    new = old.copy()
    new[changed] += (distance * rng.choice([-1, 1], len(changed))).astype(np.uint8)
    stay = np.exp(-1 / scale)
    support = -count * (share * np.log2(share) + (1 - share) * np.log2(1 - share))
    values = np.sum(1 - np.log2((1 - stay) * stay ** (distance - 1.0)))
    bound = (support + values) / 8
    region = BYTES._replace(count=count)
    assert len(encode.smallest(region, old, new, changed).payload) < 1.02 * bound


@pytest.mark.parametrize(("kind", "bias"), [("int", 0), ("int", 128)])
def test_changes_that_follow_magnitude_have_classes_of_sizes_and_few_changes_have_few(
    kind: Kind, bias: int
) -> None:
    rng, count, found = np.random.default_rng(0), 1 << 20, []
    region = Region("w", 0, count, 8, kind, bias, -127, 127)
    code = np.rint(rng.standard_normal(count) * 38).clip(-120, 120).astype(int)
    chance = (np.abs(code) + 1) ** 1.5
    for density in (0.02, 0.2):
        moved = rng.random(count) < density * chance / chance.mean()
        step = moved * rng.choice([-1, 1], count) * (1 + np.abs(code) * rng.random(count) // 20)
        old, new = ((side + bias).astype(np.uint8) for side in (code, code + step.astype(int)))
        encoded = encode.smallest(region, old, new, np.flatnonzero(moved))
        assert encoded.codec == CLASS_GAPS
        table = np.frombuffer(unpack(encoded.streams, encoded.payload)[0], np.uint8).astype(int)
        above, below = (table[(bias + sign * np.arange(128)) % 256] for sign in (1, -1))
        assert (above == below).all()
        assert (np.diff(above) >= 0).all()
        found.append(encoded.params["classes"])
    assert found[0] < found[1]
