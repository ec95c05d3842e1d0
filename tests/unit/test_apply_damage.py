"""No damage to a patch goes through: every flipped byte, every truncation, and signed lies.

A flipped byte fails a digest. A lie has right digests of manifest and payload, as a validly signed
but hostile patch has: then the decoders must hold, both in the same way, and the digest of the
section's result decides.
"""

from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.errors import Corrupt, NeuralDiffError
from neural_diff.region import Region
from tests.unit.patch_files import everything_in, put_together, sample, spell, take_apart
from tests.unit.ways import (
    ALL_WAYS,
    WAYS,
    answer,
    changed,
    decoded,
    drafted,
    lying,
    raws,
    sections_of,
    with_raws,
)

KINDS = ["sparse", "hashed", "exact"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_flipped_byte_is_refused_and_nothing_is_written(kind: str, tmp_path: Path) -> None:
    base, target, patch = sample(kind, tmp_path)
    target.unlink()
    right = patch.read_bytes()
    files = sorted(everything_in(tmp_path))
    for place in range(len(right)):
        wrong = bytearray(right)
        wrong[place] ^= 1 << place % 8
        patch.write_bytes(wrong)
        with pytest.raises(NeuralDiffError):
            apply(base, [patch], target)
    assert sorted(everything_in(tmp_path)) == files


@pytest.mark.attack("D04")
@pytest.mark.parametrize("kind", KINDS)
def test_d04_a_patch_cut_anywhere_is_refused_and_nothing_is_written(
    kind: str, tmp_path: Path
) -> None:
    base, target, patch = sample(kind, tmp_path)
    target.unlink()
    right = patch.read_bytes()
    files = sorted(everything_in(tmp_path))
    for length in range(len(right)):
        patch.write_bytes(right[:length])
        with pytest.raises(NeuralDiffError):
            apply(base, [patch], target)
    assert sorted(everything_in(tmp_path)) == files


CODECS = [
    *(f"{way} of {kind}" for way in ALL_WAYS for kind in ("int 8", "f32 32")),
    *(f"{way} of int 4" for way in WAYS),
    *("sparse", "hashed"),
]


@pytest.fixture(scope="module", params=CODECS)
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[bytes, bytes, bytes]:
    """An old file, the new one, and a patch with what is said in the codec as its first section."""
    if request.param in KINDS:
        paths = sample(request.param, tmp_path_factory.mktemp(request.param))
        return paths[0].read_bytes(), paths[1].read_bytes(), paths[2].read_bytes()
    way, of = request.param.split(" of ")
    kind, width = of.split()
    rng = np.random.default_rng(3)
    region, old = Region("w", 1, 90, int(width), kind), rng.bytes(1 + 90 * 4)
    moved = changed(rng, raws(region, old), region.width, 0.2, "anywhere", far=True)
    new = with_raws(region, old, moved)
    return old, new, drafted(list(sections_of(region, old, new, way, 3)), old, new)


@pytest.mark.attack("D22")
@settings(max_examples=60, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data(), st.booleans())
def test_d22_a_signed_lie_in_a_payload_is_answered_alike_by_all_decoders(
    files: tuple[bytes, bytes, bytes], data: st.DataObject, packed: bool
) -> None:
    """The lie is in the stored bytes or, to get further, in a stream before it is deflated."""
    base, target, right = files
    manifest, payloads = take_apart(right)
    lies = payloads if packed else decoded(right)
    which = data.draw(st.sampled_from([n for n, lie in enumerate(lies) if lie]))
    lie = bytearray(lies[which])
    for _ in range(data.draw(st.integers(1, 3))):
        lie[data.draw(st.integers(0, len(lie) - 1))] = data.draw(st.integers(0, 255))
    lies[which] = bytes(lie)
    patch = put_together(manifest, payloads) if packed else lying(right, lies)
    said = answer(base, patch)
    assert said == target or isinstance(said, str)


@pytest.mark.parametrize("kind", KINDS)
def test_a_payload_with_another_digest_is_not_decoded(
    kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    base, _, patch = sample(kind, tmp_path)
    manifest, payloads = take_apart(patch.read_bytes())
    lie = manifest | {"sections": [s | {"payload_sha256": "0" * 64} for s in manifest["sections"]]}
    patch.write_bytes(put_together(spell(lie), payloads))
    monkeypatch.setattr(stream.codec, "unpack", None)
    with pytest.raises(Corrupt, match="section 0: its bytes"):
        apply(base, [patch], tmp_path / "target")
