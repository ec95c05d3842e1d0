"""Moves: what the new file takes of the old one. Lies in them, and in what else is new."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_diff import apply as applying
from neural_diff import encode, limits, stream
from neural_diff.apply import apply
from neural_diff.errors import Malformed, NeuralDiffError, WrongBase
from neural_diff.make import make_patch
from neural_diff.packed import Encoded
from neural_diff.patch import Move
from neural_diff.region import Region
from tests.unit.patch_files import put_together, sample, save_safetensors, take_apart
from tests.unit.ways import answer, drafted, made, with_limits

OLD = bytes(range(100))
NEW = OLD[40:80] + b"seven.." + OLD[:30]
MOVES = (Move(0, 40, 40), Move(47, 0, 30))


def exact(start: int, data: bytes) -> tuple[Region, int, int, Encoded]:
    region = Region("bytes", start, len(data), 8, "bytes")
    return region, 0, len(data), encode.literal(data)


def honest() -> bytes:
    patch = drafted([exact(40, b"seven..")], OLD, NEW, MOVES)
    assert answer(OLD, patch) == NEW
    return patch


def told(moves: Any) -> str:
    """Gives what is said of other moves."""
    manifest, payloads = take_apart(honest())
    said = answer(OLD, put_together(manifest | {"moves": moves}, payloads))
    assert isinstance(said, str)
    return said


@pytest.mark.attack("D09")
@pytest.mark.parametrize(
    ("moves", "says"),
    [
        ([[0, 40, 40], [39, 0, 38]], "overlaps the one before"),
        ([[0, 40, 40], [0, 40, 40]], "overlaps the one before"),
        ([[47, 0, 30], [0, 40, 40]], "overlaps the one before"),
        ([[0, 61, 40], [47, 0, 30]], "leaves the old file"),
        ([[0, 40, 40], [47, 2**33, 1]], "leaves the old file"),
        ([[0, 40, 40], [47, 0, 31]], "more bytes than the new file has"),
        ([[0, 40, 40], [47, 0, 29]], "lacks 8 bytes"),
        ([[0, 40, 39], [47, 0, 30]], "lacks 8 bytes"),
        ([[0, 40, 40]], "lacks 37 bytes"),
        ([[0, 40, 40], [47, 0, 0]], "length: must be"),
        ([[0, 40, 40], [47, -1, 30]], "from_offset: must be"),
        ([[2**64 - 8, 0, 8]], "to_offset: must be"),
        ([[0, 40, 40], [47, 0, 2**63]], "length: must be"),
        ([[0, 40, 40], [47, 0]], "must be [to offset"),
        ([[0, 40, 40], [47, 0, True]], "length: must be"),
        ([[0, 40, 40], 7], "must be [to offset"),
        ({"0": 1}, "must be a list"),
        ([], "capabilities must be"),  # the old bytes are then where they were
    ],
    ids=str,
)
def test_d09_moves_that_do_not_fit_are_refused(moves: Any, says: str) -> None:
    assert says in told(moves)


@pytest.mark.attack("D18")
def test_d18_a_million_moves_are_refused() -> None:
    assert "at most 8192" in told([[at, at, 1] for at in range(60_000)])
    manifest, payloads = take_apart(honest())
    manifest["moves"] = [[0, 0, 1]] * 1_000_000
    assert "inflate to at most" in str(answer(OLD, put_together(manifest, payloads)))


@pytest.mark.attack("D15")
def test_d15_moves_that_repeat_the_old_file_more_than_twice_are_refused() -> None:
    twice = drafted([], OLD, OLD * 2, [Move(0, 0, 100), Move(100, 0, 100)])
    assert answer(OLD, twice) == OLD * 2
    manifest, payloads = take_apart(twice)
    manifest["moves"].append([200, 0, 1])
    manifest["to"]["size"] = 201
    assert "twice the old one" in str(answer(OLD, put_together(manifest, payloads)))
    manifest["from"] = {"size": 0, "sha256": manifest["from"]["sha256"]}
    assert "leaves the old file" in str(answer(b"", put_together(manifest, payloads)))


@pytest.mark.attack("D15")
def test_d15_a_hole_that_only_an_addition_covers_is_refused() -> None:
    region = Region("w", 40, 7, 8, "int", lo=-128, hi=127)
    before, after = (np.frombuffer(side, np.uint8) for side in (bytes(7), b"seven.."))
    added = encode.smallest(region, before, after, np.arange(7))
    with pytest.raises(Malformed, match="lacks 7 bytes"):
        drafted([(region, 0, 7, added)], OLD, NEW, MOVES)


def test_sections_see_moved_bytes_as_the_old_ones() -> None:
    region = Region("w", 47, 30, 8, "int", lo=-128, hi=127)
    changed = np.frombuffer(NEW, np.uint8).copy()
    changed[[50, 70]] += 100
    added = encode.smallest(
        region, np.frombuffer(NEW[47:], np.uint8), changed[47:], np.array([3, 23])
    )
    sections = [exact(40, b"seven.."), (region, 0, 30, added)]
    for pieces in (7, 32, 1 << 18):
        patch = drafted(sections, OLD, changed.tobytes(), MOVES)
        assert answer(OLD, patch, pieces=pieces) == changed.tobytes()


def test_8192_moves_are_applied_in_any_cut() -> None:
    old = bytes(np.random.default_rng(1).integers(0, 256, 20_000, np.uint8))
    moves = [Move(2 * at, 20_000 - 2 * (at + 1), 2) for at in range(limits.MOVES_MAX)]
    new = b"".join(old[m.from_offset :][: m.length] for m in moves)
    for pieces in (1000, 1 << 18):
        assert answer(old, drafted([], old, new, moves), pieces=pieces) == new


@pytest.mark.parametrize("between", [2_000, 40_000])
def test_pieces_of_a_file_that_are_far_apart_in_a_longer_one_are_found(between: int) -> None:
    rng = np.random.default_rng(between)
    parts = [rng.bytes(3000) for _ in range(8)]
    new = b"".join(part + rng.bytes(between) for part in parts[::-1])
    patch = made(b"".join(parts), new)
    assert answer(b"".join(parts), patch) == new
    assert len(take_apart(patch)[0]["moves"]) == 8
    assert len(patch) < len(new) - 8 * 2500


def test_tensors_that_moved_apart_from_each_other_make_a_patch(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    old = {name: ("I8", rng.integers(-127, 128, 100, np.int8)) for name in "abcd"}
    big = ("I8", rng.integers(-127, 128, 5000, np.int8))
    names = [*old, "big", *(name.upper() for name in old)]
    old |= {name: ("I8", rng.integers(-127, 128, 100, np.int8)) for name in "ABCD"}
    before = {name: old.get(name, big) for name in names}
    after: dict[str, Any] = {}
    for name in "abcd":
        gap = before_gap(names, name)
        after |= {name: old[name], f"new {name}": ("I8", np.zeros(gap, np.int8))}
        after |= {name.upper(): old[name.upper()]}
    base, target, patch = (tmp_path / name for name in ("base", "target", "patch"))
    save_safetensors(base, before)
    save_safetensors(target, after)
    make_patch(base, target, patch)
    assert answer(base.read_bytes(), patch.read_bytes()) == target.read_bytes()


def before_gap(names: list[str], name: str) -> int:
    """The bytes between a tensor and its partner in the old file: "big" has 5000, the rest 100."""
    between = names[names.index(name) + 1 : names.index(name.upper())]
    return sum(5000 if other == "big" else 100 for other in between)


@pytest.mark.attack("D20")
@pytest.mark.parametrize("numpy", [True, False])
def test_d20_a_base_cut_short_while_it_is_moved_is_the_wrong_base(
    numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    monkeypatch.setattr(stream, "PIECE_BYTES", 16)
    monkeypatch.setattr(applying, "open_regular", lambda path, _: path.open("rb", buffering=0))
    (tmp_path / "base").write_bytes(OLD)
    (tmp_path / "patch").write_bytes(honest())
    with pytest.raises(WrongBase, match="shorter while it was read"):
        apply(
            tmp_path / "base",
            [tmp_path / "patch"],
            tmp_path / "target",
            progress=lambda *_: (tmp_path / "base").write_bytes(OLD[:10]),
        )
    assert sorted(path.name for path in tmp_path.iterdir()) == ["base", "patch"]


@pytest.mark.attack("D20")
@pytest.mark.parametrize("kind", ["sparse", "hashed", "exact"])
@pytest.mark.parametrize("left", [0, 20, 400])
def test_d20_a_patch_cut_short_after_it_was_checked_is_refused(
    kind: str, left: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, target, patch = sample(kind, tmp_path)
    target.unlink()
    check_space = applying._check_space

    def cut(*given: Any) -> None:
        check_space(*given)
        patch.write_bytes(patch.read_bytes()[:left])

    monkeypatch.setattr(applying, "_check_space", cut)
    monkeypatch.setattr(applying, "open_regular", lambda path, _: path.open("rb", buffering=0))
    for numpy in (True, False):
        monkeypatch.setattr(stream, "NUMPY", numpy)
        whole = patch.read_bytes()
        with pytest.raises(NeuralDiffError, match="section 0"):
            apply(base, [patch], target)
        patch.write_bytes(whole)
    assert not target.exists()


@pytest.mark.attack("D16")
@pytest.mark.parametrize("given", [[], ["result_sha256", "prefix_sha256"]])
def test_d16_a_section_of_both_digests_or_of_none_is_refused(given: list[str]) -> None:
    manifest, payloads = take_apart(honest())
    digest = manifest["sections"][0].pop("prefix_sha256")
    manifest["sections"][0] |= dict.fromkeys(given, digest)
    said = answer(OLD, put_together(manifest, payloads))
    assert "one of result_sha256 and prefix_sha256" in str(said)


@pytest.mark.attack("D16")
@pytest.mark.parametrize("name", ["result_sha256", "prefix_sha256"])
def test_d16_a_digest_of_a_section_that_lies_is_corrupt(name: str) -> None:
    manifest, payloads = take_apart(honest())
    del manifest["sections"][0]["prefix_sha256"]
    manifest["sections"][0][name] = "5" * 64
    said = answer(OLD, put_together(manifest, payloads))
    assert "section 0: does not lead to" in str(said)


@pytest.mark.attack("D18")
@pytest.mark.parametrize("count", [9, 10, 1000])
def test_d18_a_chain_of_more_than_eight_patches_is_refused(count: int, tmp_path: Path) -> None:
    (tmp_path / "base").write_bytes(OLD)
    (tmp_path / "patch").write_bytes(drafted([], OLD, OLD))
    apply(tmp_path / "base", [tmp_path / "patch"] * 8, tmp_path / "target")
    with pytest.raises(Malformed, match=f"{count} patches were given; a chain has 1 to 8"):
        apply(tmp_path / "base", [tmp_path / "patch"] * count, tmp_path / "target")


@pytest.mark.parametrize("parts", [[["a", 3], ["b", 3]], [["a", 8]], [["a", 0], ["b", 7]], [["a"]]])
def test_parts_that_do_not_add_up_to_their_region_are_refused(parts: Any) -> None:
    manifest, payloads = take_apart(honest())
    manifest["regions"][0]["parts"] = [["a", 3], ["b", 4]]
    assert answer(OLD, put_together(manifest, payloads)) == NEW
    manifest["regions"][0]["parts"] = parts
    assert "part" in str(answer(OLD, put_together(with_limits(manifest), payloads)))
