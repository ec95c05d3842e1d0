"""Signed lies in the codecs: every decoder refuses them, all in the same way.

The patches have right digests, as those of a stolen key would: only the rules of the codecs hold.
"""

from collections.abc import Callable

import pytest

from neural_diff.packed import pack
from neural_diff.region import Region
from tests.unit.ways import (
    RANKED,
    answer,
    decoded,
    drafted,
    lying,
    raws,
    said,
    sections_of,
    with_raws,
)

OLD = bytes(range(64))
REGION = Region("w", 0, 64, 8, "int")
NIBBLES = Region("q", 0, 128, 4, "int")
HIT = {1: 9, 7: 200, 8: 3, 40: 0, 63: 64}


def honest(way: str, region: Region = REGION, classes: int = 2) -> bytes:
    """Five changes; `honest` so far as `answer` agrees that they lead to the new file."""
    values = [HIT.get(place, OLD[place]) for place in range(64)]
    new = bytes(values)
    if region is NIBBLES:
        new = with_raws(NIBBLES, OLD, [15, 14, 13, 12, 11])
    patch = drafted(list(sections_of(region, OLD, new, way, classes)), OLD, new)
    assert answer(OLD, patch) == new
    return patch


def refusal(patch: bytes) -> str:
    said = answer(OLD, patch)
    assert isinstance(said, str)
    return said


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", [*RANKED, "values by class", "blocks32 by class"])
def test_d10_a_table_naming_a_class_that_does_not_exist_is_refused(way: str) -> None:
    patch = honest(way)
    table, *rest = decoded(patch)
    assert "names class 2" in refusal(lying(patch, [table[:255] + b"\2", *rest]))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", RANKED)
def test_d10_ranks_beyond_the_elements_of_a_class_are_refused(way: str) -> None:
    patch = honest(way)
    table, first, second, _, *values = decoded(patch)
    assert "are needed" in refusal(lying(patch, [bytes(255) + b"\1", first, second, _, *values]))
    far = pack(b"\x10")  # a token of 16 and two raw bits
    assert isinstance(refusal(lying(patch, [table, first[:-1], far, b"\3", *values])), str)


# What is said of runs of seven in two classes in turn, the tenth of one element only.
@pytest.mark.attack("D10")
@pytest.mark.parametrize(
    ("stream", "lie", "run", "says"),
    [
        (0, b"\x20\x10\x10\x10\x10", 7, "names class 2"),
        (0, b"\x11\x11\x11\x11\x11", 7, "class 0: 2 are needed, 0 given"),
        (0, b"\x00\x00\x00\x00\x00", 7, "class 1: 29 are needed, 0 given"),
        (2, b"\0\0\x10\x09", 7, "64 elements changes its element 64"),
        (2, b"\0\0\x10\x0f", 7, "class 1: 36 are needed, 35 given"),
        (0, b"\x10\x10\x10\x10\x10", 8, "stream 0 must decode to 4"),
        (0, b"\x10\x10", 22, "a number follows the last of 3"),
        (0, b"\x10\x10\x10\x10\x10", 0, "run: must be"),
        (0, b"\x10\x10\x10\x10\x10", 65, "run: must be"),
    ],
)
def test_d10_a_lie_about_the_classes_of_runs_is_refused(
    stream: int, lie: bytes, run: int, says: str
) -> None:
    patch = honest("runs")
    streams = decoded(patch)
    assert streams[:3] == [b"\x10\x10\x10\x10\x10", b"\1", b"\0\0\x10\x08"]
    streams[stream] = lie
    assert says in refusal(lying(patch, streams, run=run))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", ["gaps", "values by class", "blocks32"])
def test_d10_only_ranks_are_told_by_runs(way: str) -> None:
    patch = honest(way)
    assert "fields must be" in refusal(lying(patch, decoded(patch), run=7))


def moved(streams: list[bytes], one: int, other: int) -> list[bytes]:
    """Takes the last byte of a stream to the end of another."""
    streams[other] += streams[one][-1:]
    streams[one] = streams[one][:-1]
    return streams


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", ["values by class", "blocks32 by class", *RANKED])
@pytest.mark.parametrize("ways_round", [(0, 1), (1, 0)])
def test_d10_values_of_a_class_that_none_takes_are_refused(
    way: str, ways_round: tuple[int, int]
) -> None:
    patch = honest(way)
    streams = decoded(patch)
    first = len(streams) - 4
    assert refusal(lying(patch, moved(streams, *(first + number for number in ways_round))))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", ["values by class", "blocks32 by class", *RANKED])
def test_d10_residues_of_a_class_that_none_takes_are_refused(way: str) -> None:
    patch = honest(way, NIBBLES)
    streams = decoded(patch)
    for one, other in ((-1, -2), (-2, -1)):
        given = list(streams)
        if given[one]:
            assert refusal(lying(patch, moved(given, one, other)))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", ["values by class", "blocks32 by class", *RANKED])
def test_d10_values_of_which_there_are_none_are_refused(way: str) -> None:
    patch = honest(way)
    *places, _, _, _, signs = decoded(patch)
    assert refusal(lying(patch, [*places, b"", b"", b"", signs]))
    if way in RANKED:
        assert refusal(lying(patch, [places[0], b"", b"", b"", b"", b"", b"", signs]))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", RANKED)
def test_d10_more_changes_than_said_are_refused(way: str) -> None:
    patch = honest(way)
    table, first, second, bits, one, two, more, signs = decoded(patch)
    assert refusal(
        lying(patch, [table, first + b"\0", second, bits, one + b"\0", two, more, signs])
    )
    assert refusal(lying(patch, [table, first, second, bits, one, two, more, signs], changes=4))
    assert refusal(lying(patch, [table, first, second, bits, one, two, more, signs], changes=6))


@pytest.mark.attack("D10")
@pytest.mark.parametrize("way", ["gaps", "blocks32", *RANKED])
def test_d10_a_residue_of_zero_is_refused(way: str) -> None:
    patch = honest(way, NIBBLES)
    streams = decoded(patch)
    for place in range(len(streams)):
        given = list(streams)
        if given[place] and place >= len(streams) - (2 if way in RANKED else 1):
            given[place] = bytes([given[place][0] & 0xF0]) + given[place][1:]
            assert "changes nothing" in refusal(lying(patch, given))


@pytest.mark.attack("D10")
def test_d10_an_odd_residue_whose_last_half_is_not_zero_is_refused() -> None:
    patch = honest("gaps", NIBBLES)
    *places, residues = decoded(patch)
    spoiled = residues[:-1] + bytes([residues[-1] | 0x10])
    assert "residues are not 5" in refusal(lying(patch, [*places, spoiled]))
    assert "have 5 changes" in refusal(lying(patch, [*places, residues + b"\0"]))


@pytest.mark.attack("D10")
def test_d10_a_residue_too_few_in_one_class_and_too_many_in_another_is_refused() -> None:
    new = with_raws(NIBBLES, OLD, [1, 1, 2])
    patch = drafted(list(sections_of(NIBBLES, OLD, new, "class-gaps", 2)), OLD, new)
    *places, even, odd = decoded(patch)
    fewer, more = even[:-1] + bytes([even[-1] & 15]), odd[:-1] + bytes([odd[-1] | 0x10])
    assert "places as values" in refusal(lying(patch, [*places, fewer, more]))


def bitmaps(spoil: Callable[[bytearray], None]) -> str:
    patch = honest("blocks32")
    tokens, bits, maps, *values = decoded(patch)
    spoiled = bytearray(maps)
    spoil(spoiled)
    return refusal(lying(patch, [tokens, bits, bytes(spoiled), *values]))


@pytest.mark.attack("D10")
def test_d10_a_bitmap_of_no_bit_or_of_another_number_of_bits_is_refused() -> None:
    def empty(maps: bytearray) -> None:
        maps[:] = b"\x1f" + bytes(7)

    def more(maps: bytearray) -> None:
        maps[3] |= 1

    assert "or an empty one" in bitmaps(empty)
    assert "bitmaps of 6 changes where 5" in bitmaps(more)


@pytest.mark.attack("D10")
def test_d10_a_bit_or_a_block_beyond_the_section_is_refused() -> None:
    region, old = REGION._replace(count=40), OLD
    new = bytes([1]) + old[1:39] + bytes([7]) + old[40:]
    patch = drafted(list(sections_of(region, old, new, "blocks32")), old, new)
    tokens, bits, maps, *values = decoded(patch)
    for bit in (8, 31):
        beyond = maps[:4] + (1 << bit).to_bytes(4, "little")
        assert f"element {32 + bit}" in refusal(lying(patch, [tokens, bits, beyond, *values]))
    for token in (1, 9):
        far = tokens[:1] + bytes([token])
        assert "changes its element" in refusal(lying(patch, [far, bits, maps, *values]))
    with_far_bits = [tokens[:1] + b"\x7f", (2**29 - 1).to_bytes(4, "little"), maps, *values]
    assert "changes its element" in refusal(lying(patch, with_far_bits))


@pytest.mark.attack("D10")
def test_d10_of_two_lies_in_one_section_all_decoders_name_the_same() -> None:
    patch = honest("blocks32")
    tokens, _, maps, *values = decoded(patch)
    assert "bitmaps of" in refusal(lying(patch, [tokens, b"\1", b"\xff" + maps[1:], *values]))


@pytest.mark.attack("D10")
def test_d10_a_value_beyond_half_the_codes_of_4_bits_is_refused() -> None:
    new = with_raws(NIBBLES, OLD, [9])
    encoded = said("gaps", NIBBLES, raws(NIBBLES, OLD), raws(NIBBLES, new), paired=False)
    patch = drafted([(NIBBLES, 0, 128, encoded)], OLD, new)
    assert answer(OLD, patch) == new
    tokens, bits, _, _, signs = decoded(patch)
    assert "change by 9" in refusal(lying(patch, [tokens, bits, pack(b"\x08"), b"\0", signs]))
