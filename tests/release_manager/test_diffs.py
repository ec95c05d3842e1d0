import json
import re
from itertools import pairwise
from pathlib import Path

import numpy as np
import pytest

from tests.release_manager.desk import Desk


@pytest.fixture
def chain(desk: Desk, files: list[Path], tmp_path: Path) -> list[Path]:
    patches = []
    for number, (base, target) in enumerate(pairwise(files)):
        patches.append(tmp_path / f"{number}.ndiff")
        assert desk.run("diff", "make", base, target, "-o", patches[-1]) == 0, desk.err
    return patches


def test_a_chain_of_patches_gives_the_last_file(
    desk: Desk, files: list[Path], chain: list[Path], tmp_path: Path
) -> None:
    done = desk.json("diff", "apply", files[0], *chain, "-o", tmp_path / "out")
    assert (tmp_path / "out").read_bytes() == files[3].read_bytes()
    assert done["bytes"] == files[3].stat().st_size


def test_a_patch_is_described(desk: Desk, chain: list[Path]) -> None:
    found = desk.json("diff", "inspect", chain[0])
    assert (found["kind"], [region["name"] for region in found["regions"]]) == ("sparse", ["w"])
    assert desk.run("diff", "inspect", chain[0]) == 0
    assert re.search(r"share of target +\d+\.\d\d %\n", desk.out)
    assert re.search(r"w +int +8 +\d+ +add by \S+ +\d+ +\d+\.\d\d % +\d+\.\d ", desk.out)


def test_the_wrong_base_is_refused_and_nothing_is_written(
    desk: Desk, files: list[Path], chain: list[Path], tmp_path: Path
) -> None:
    before = sorted(tmp_path.iterdir())
    assert desk.run("diff", "apply", files[1], chain[0], "-o", tmp_path / "out") == 1
    assert desk.run("diff", "apply", files[0], chain[1], chain[0], "-o", tmp_path / "out") == 1
    assert sorted(tmp_path.iterdir()) == before


def test_something_that_is_no_patch_is_refused(desk: Desk, files: list[Path]) -> None:
    assert desk.run("diff", "inspect", files[0]) == 1
    assert str(files[0]) in desk.err
    assert "check that these are the files" in desk.err


def test_an_input_is_never_the_output(desk: Desk, files: list[Path], chain: list[Path]) -> None:
    before = files[1].read_bytes()
    assert desk.run("diff", "make", files[0], files[1], "-o", files[1]) == 2
    assert desk.run("diff", "apply", files[0], chain[0], "-o", files[0]) == 2
    assert files[1].read_bytes() == before


def test_a_hashed_patch_is_made_of_buckets(desk: Desk, files: list[Path], tmp_path: Path) -> None:
    buckets = np.arange(-50, 50, dtype="<i2").tobytes()
    header = json.dumps(
        {
            "__metadata__": {
                "patch_seed": "ab" * 16,
                "fraction_bits": "4",
                "lo": "-127",
                "hi": "127",
            },
            "w.buckets": {"dtype": "I16", "shape": [100], "data_offsets": [0, 200]},
        }
    )
    file = tmp_path / "buckets"
    file.write_bytes(len(header).to_bytes(8, "little") + header.encode() + buckets)
    patch, result = tmp_path / "h.ndiff", tmp_path / "result"
    words = ["diff", "make", "--buckets", file, files[0], "-o", patch, "--result", result]
    assert desk.json(*words)["kind"] == "hashed"
    assert desk.run("diff", "apply", files[0], patch, "-o", tmp_path / "applied") == 0
    assert (tmp_path / "applied").read_bytes() == result.read_bytes() != files[0].read_bytes()


def test_a_chain_becomes_one_patch_and_an_addition_goes_back(
    desk: Desk, files: list[Path], chain: list[Path], tmp_path: Path
) -> None:
    one, undo, out = (tmp_path / name for name in ("one.ndiff", "undo.ndiff", "out"))
    assert desk.json("diff", "squash", files[0], *chain, "-o", one)["kind"] == "sparse"
    assert desk.run("diff", "apply", files[0], one, "-o", out) == 0
    assert out.read_bytes() == files[3].read_bytes()
    assert desk.json("diff", "inspect", chain[0])["goes_back"]
    assert desk.run("diff", "invert", files[1], chain[0], "-o", undo) == 0, desk.err
    assert desk.run("diff", "apply", files[1], undo, "-o", out) == 0
    assert out.read_bytes() == files[0].read_bytes()


def test_diffs_need_no_server(desk: Desk, chain: list[Path]) -> None:
    assert desk.server.seen == []
