"""Sections of a chain are decoded ahead by a thread: it changes nothing else, and none is left."""

import threading
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from neural_diff import decode_numpy, stream
from neural_diff.apply import apply
from neural_diff.region import Region
from tests.unit.patch_files import everything_in
from tests.unit.ways import answer, changed, drafted, lying, raws, said, with_raws

REGION = Region("w", 0, 400, 8, "int", 0, -128, 127)
STEP = 40
OLD = np.random.default_rng(5).bytes(REGION.count)


def chain(links: int) -> tuple[list[bytes], bytes]:
    """Patches of ten sections each, and what they lead to."""
    rng, old, patches = np.random.default_rng(6), OLD, []
    for _ in range(links):
        before = raws(REGION, old)
        new = with_raws(REGION, old, changed(rng, before, 8, 0.2, "anywhere", True))
        pairs = [(old[at : at + STEP], new[at : at + STEP]) for at in range(0, len(old), STEP)]
        codes = [[np.frombuffer(side, np.uint8) for side in pair] for pair in pairs]
        given = enumerate(
            said("gaps", REGION, *pair) for pair in codes if (pair[0] != pair[1]).any()
        )
        patches.append(drafted([(REGION, n * STEP, STEP, one) for n, one in given], old, new))
        old = new
    return patches, old


def written(room: Path, patches: Sequence[bytes]) -> tuple[Path, list[Path]]:
    (room / "base").write_bytes(OLD)
    paths = [room / f"patch {number}" for number in range(len(patches))]
    for path, patch in zip(paths, patches, strict=True):
        path.write_bytes(patch)
    return room / "base", paths


@pytest.fixture(autouse=True)
def small_pieces(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(stream, "PIECE_BYTES", 16)


@pytest.mark.parametrize("stop", [1, 2, 10, 25])
def test_a_chain_that_is_cancelled_leaves_no_thread_and_no_file(stop: int, tmp_path: Path) -> None:
    patches, new = chain(3)
    base, paths = written(tmp_path, patches)
    threads, steps, kept = threading.active_count(), 0, everything_in(tmp_path)

    class Cancelled(BaseException):
        pass

    def cancel(done: int, total: int) -> None:
        nonlocal steps
        assert threading.active_count() == threads + 1
        steps += 1
        if steps == stop:
            raise Cancelled

    with pytest.raises(Cancelled):
        apply(base, paths, tmp_path / "new", progress=cancel)
    assert (everything_in(tmp_path), threading.active_count()) == (kept, threads)
    apply(base, paths, tmp_path / "new")
    assert ((tmp_path / "new").read_bytes(), threading.active_count()) == (new, threads)


@pytest.mark.attack("D10")
@pytest.mark.parametrize("link", [0, 1, 2])
def test_d10_a_lie_in_any_link_is_refused_as_without_a_thread(link: int) -> None:
    patches, _ = chain(3)
    patches[link] = lying(patches[link], [b"\x80", b"", b"\0", b"", b"\0"], changes=1)
    refused = answer(OLD, *patches, pieces=16)
    assert f"patch {link}: section 0: token 128 does not exist" in str(refused)


def test_one_section_of_each_patch_is_decoded_ahead_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    patches, new = chain(2)
    base, paths = written(tmp_path, patches)
    ahead, real = [], decode_numpy.change_of
    decoded = carried_out = 0

    def change_of(*given: Any) -> Callable[[bytearray, int], None]:
        nonlocal decoded
        decoded += 1
        ahead.append(decoded - carried_out)
        change = real(*given)

        def first(elements: bytearray, at: int) -> None:
            nonlocal carried_out
            carried_out += at == 0
            change(elements, at)

        return first

    monkeypatch.setattr(decode_numpy, "change_of", change_of)
    apply(base, paths, tmp_path / "new")
    assert (tmp_path / "new").read_bytes() == new
    assert decoded == carried_out == 20
    assert max(ahead) <= 2 * len(patches)
