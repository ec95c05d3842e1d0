"""Bombs: small patches that ask for much memory or much work. They end soon, within a bound.

They run in a process of its own, with limits of address space and of time, by both decoders.
"""

import subprocess
import sys
from collections.abc import Sequence
from itertools import pairwise
from pathlib import Path

import pytest

from neural_diff import limits
from neural_diff.errors import Malformed
from neural_diff.packed import Encoded, pack
from neural_diff.region import Blocked, Region
from neural_diff.section import DEFLATE, Op, Stream
from tests.unit.ways import ALL_WAYS, decoded, drafted, lying, raws, said

SECTIONS = 3200  # of which the manifest has room for hardly more
PROGRAM = """
import resource, sys
from pathlib import Path
decoder, mib, base, target, *chains = sys.argv[1:]
if decoder == "numpy":
    import numpy
from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.errors import NeuralDiffError
stream.NUMPY = decoder == "numpy"
resource.setrlimit(resource.RLIMIT_AS, (int(mib) << 20,) * 2)
resource.setrlimit(resource.RLIMIT_CPU, (20, 20))
for chain in chains:
    try:
        apply(Path(base), [Path(patch) for patch in chain.split(":")], Path(target))
        print("applied")
    except NeuralDiffError as error:
        print(type(error).__name__, error)
"""


def fates(room: Path, base: bytes, *chains: Sequence[bytes], mib: int = 256) -> list[str]:
    """Applies chains of patches within bounds; gives what becomes of each, by either decoder."""
    (room / "base").write_bytes(base)
    given = []
    for number, chain in enumerate(chains):
        paths = [room / f"{number}-{link}" for link in range(len(chain))]
        for path, patch in zip(paths, chain, strict=True):
            path.write_bytes(patch)
        given.append(":".join(map(str, paths)))
    found = []
    for decoder in ("numpy", "plain"):
        ended = subprocess.run(
            [sys.executable, "-c", PROGRAM, decoder, str(mib), room / "base", room / "to", *given],
            capture_output=True,
            check=False,
            env={"OPENBLAS_NUM_THREADS": "1", "PYTHONPATH": str(Path.cwd())},
        )
        assert ended.returncode == 0, ended.stderr.decode()[-600:]
        found.append(ended.stdout.decode().splitlines())
    assert found[0] == found[1]
    return found[0]


@pytest.mark.attack("D01")
@pytest.mark.parametrize("width", [4, 16])
def test_d01_a_bomb_in_any_stream_of_any_codec_is_refused_before_it_is_unpacked(
    width: int, tmp_path: Path
) -> None:
    count = 1 << 18
    region, old = Region("w", 0, count, width, "int"), bytes(range(256)) * (count * width // 2048)
    new = bytes(byte ^ 0x11 if place % 3 else byte for place, byte in enumerate(old))
    before, after = raws(region, old), raws(region, new)
    stored = pack(bytes(16 << 20) + b"1")[1]
    bombs = []
    for way in ALL_WAYS:
        patch = drafted([(region, 0, count, said(way, region, before, after))], old, new)
        streams: list[bytes | tuple[Stream, bytes]] = list(decoded(patch))
        for number, stream in enumerate(streams):
            if len(stream) > len(stored):
                bomb = Stream(DEFLATE, len(stored), len(stream)), stored
                bombs.append([lying(patch, [*streams[:number], bomb, *streams[number + 1 :]])])
    assert len(bombs) > 20
    for fate in fates(tmp_path, old, *bombs, mib=160):
        assert "does not inflate to at most" in fate


def one_up(op: Op = "add") -> Encoded:
    """Says that the first element becomes one more, or 1."""
    if op == "hashed":
        params = {"buckets": 1, "fraction_bits": 0, "seed": 0}
        return Encoded(op, 4, params, (pack(b"\0"), pack(b""), pack(b"")))
    values = (pack(b"\1"),) if op == "set" else (pack(b"\0"), pack(b""), pack(b"\0"))
    return Encoded(op, 1, {"changes": 1}, (pack(b"\0"), pack(b""), *values))


@pytest.mark.attack("D18")
def test_d18_two_patches_of_3200_sections_of_one_element_end_soon(tmp_path: Path) -> None:
    region = Region("w", 0, SECTIONS, 8, "int")
    sections = [(region, start, 1, one_up()) for start in range(SECTIONS)]
    versions = [bytes([version]) * SECTIONS for version in range(3)]
    chain = [drafted(sections, *pair) for pair in pairwise(versions)]
    assert fates(tmp_path, versions[0], chain) == ["applied"]


@pytest.mark.attack("D18")
def test_d18_sections_that_cut_what_others_cover_end_soon(tmp_path: Path) -> None:
    """Every region of the same blocks is open in every piece that the last one's sections cut."""
    blocks = SECTIONS - 3 * (limits.SHARING_MAX - 1)
    shared = [
        Region(str(n), 0, blocks, 8, "int", 0, 0, 127, Blocked(8, n, 1, "low"))
        for n in range(limits.SHARING_MAX)
    ]
    ops: tuple[Op, ...] = ("hashed", "set", "add")
    sections = [(region, 0, blocks, one_up(op)) for region in shared[:-1] for op in ops]
    sections += [(shared[-1], block, 1, one_up()) for block in range(blocks)]
    new = bytes([2] * 7 + [1]) + bytes([0] * 7 + [1]) * (blocks - 1)
    assert fates(tmp_path, bytes(8 * blocks), [drafted(sections, bytes(8 * blocks), new)]) == [
        "applied"
    ]


@pytest.mark.attack("D18")
def test_d18_more_than_eight_regions_that_share_blocks_are_refused() -> None:
    shared = [Region(str(n), 0, 4, 8, "int", layout=Blocked(9, n, 1, "low")) for n in range(9)]
    for count in (8, 9):
        sections = [(region, 0, 4, one_up()) for region in shared[:count]]
        new = bytes([1] * count + [0] * (9 - count)) + bytes(27)
        if count == 9:
            with pytest.raises(Malformed, match="more than 8 share its blocks"):
                drafted(sections, bytes(36), new)
        else:
            drafted(sections, bytes(36), new)


@pytest.mark.attack("D01")
def test_d01_sections_that_together_need_too_much_at_the_same_place_are_refused(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    region = Region("w", 0, 8, 8, "int", lo=-128, hi=127)
    after_each_other = [(region, 0, 4, one_up()), (region, 4, 4, one_up())]
    over_each_other = [(region, 0, 8, one_up()), (region, 3, 4, one_up("set"))]
    monkeypatch.setattr(limits, "WORKING_BYTES_MAX", 9)
    drafted(after_each_other, bytes(8), bytes(8))
    with pytest.raises(Malformed, match="open together need 10 bytes"):
        drafted(over_each_other, bytes(8), bytes(8))


@pytest.mark.attack("D18")
def test_d18_numbers_that_a_stored_byte_repeats_stay_within_memory(tmp_path: Path) -> None:
    count = 1 << 17
    old = bytes(4 * count)
    floats = Region("f", 0, count, 32, "f32")
    codes = Region("w", 0, 4 * count, 8, "int")
    streams = [b"\0" * count, b"", b"\x70" * count, b"\xff" * (count * 27 // 8), bytes(count // 8)]
    far = Encoded("add", 1, {"changes": count}, tuple(pack(stream) for stream in streams))
    buckets = [b"\x34" * count, b"\xff" * (count * 12 // 8), b"\xff" * (count // 8)]
    params = {"buckets": count, "fraction_bits": 0, "seed": 1}
    hashed = Encoded("hashed", 4, params, tuple(pack(stream) for stream in buckets))
    patches = [
        drafted([(floats, 0, count, far)], old, old),
        drafted([(codes, 0, 4 * count, hashed)], old, old),
    ]
    assert max(map(len, patches)) < 500
    found = fates(tmp_path, old, *([patch] for patch in patches))
    assert "does not lead to" in found[0]
    assert "applied" in found[1]  # its bounds are 0 and 0: every code stays
