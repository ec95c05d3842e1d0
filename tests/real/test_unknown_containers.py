"""Weights in a container that nobody knows: never more bytes than `zstd --patch-from` takes."""

import subprocess
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from neural_diff.apply import apply
from neural_diff.make import make_patch
from tests.real.installed import command

pytestmark = pytest.mark.real
RNG = np.random.default_rng(11)
WEIGHTS = RNG.normal(0, 30, 1 << 19).clip(-127, 127).astype(np.int8)
MORE = RNG.bytes(20_000)


def moved(share: float) -> bytes:
    """The weights, a share of them changed a little."""
    steps = RNG.integers(-3, 4, WEIGHTS.size) * (RNG.random(WEIGHTS.size) < share)
    return (WEIGHTS + steps).astype(np.int8).tobytes()


def floats(factor: float) -> bytes:
    values = WEIGHTS[: 1 << 17].astype(np.float32) / 77
    values[:: 7 if factor < 1 else 1] *= np.float32(factor)
    return values.tobytes()


CASES: dict[str, Callable[[], tuple[bytes, bytes]]] = {
    "changed": lambda: (moved(0), moved(0.02)),
    "changed much": lambda: (moved(0), moved(0.6)),
    "grown in the middle": lambda: (moved(0), moved(0.02)[:100_001] + MORE + moved(0.02)[100_001:]),
    "shrunk in the middle": lambda: (moved(0), moved(0.02)[:90_000] + moved(0.02)[130_003:]),
    "turned around": lambda: (moved(0), moved(0.05)[200_000:] + moved(0.05)[:200_000]),
    "some floats": lambda: (floats(1.0), floats(0.99)),
    "all floats": lambda: (floats(1.0), floats(1.0001)),
    "something else": lambda: (moved(0), RNG.bytes(300_000)),
}


@pytest.fixture
def zstd() -> str:
    return command("zstd", "zstd")


@pytest.mark.parametrize("case", CASES)
def test_a_patch_is_no_larger_than_the_one_of_zstd(case: str, zstd: str, tmp_path: Path) -> None:
    base, target, patch, other = (tmp_path / name for name in ("base", "target", "patch", "zstd"))
    for path, held in zip((base, target), CASES[case](), strict=True):
        path.write_bytes(b"PK\3\4" + held)
    make_patch(base, target, patch)
    apply(base, [patch], tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == target.read_bytes()
    words = [zstd, "-q", "-19", "--long=27", f"--patch-from={base}", target, "-o", other]
    subprocess.run(words, check=True, capture_output=True)
    # What both cannot press is told by the frames around it: 600 bytes for our manifest.
    assert patch.stat().st_size <= other.stat().st_size + 600
