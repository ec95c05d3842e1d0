"""No damage to a patch goes through: every flipped byte, every truncation, and signed lies.

A flipped byte fails a digest. A lie has right digests of manifest and payload, as a validly signed
but hostile patch has: then the decoders must hold, both in the same way, and the digest of the
section's result decides.
"""

from pathlib import Path

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.errors import Corrupt, NeuralDiffError
from tests.unit.patch_files import everything_in, put_together, sample, spell, take_apart

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


@pytest.fixture(scope="module", params=["sparse", "hashed"])
def files(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> tuple[Path, Path, bytes]:
    base, target, patch = sample(request.param, tmp_path_factory.mktemp(request.param))
    return base, target, patch.read_bytes()


@settings(max_examples=150, deadline=None, suppress_health_check=list(HealthCheck))
@given(st.data())
def test_d22_a_signed_lie_in_a_payload_is_answered_alike_by_both_decoders(
    files: tuple[Path, Path, bytes], data: st.DataObject
) -> None:
    base, target, right = files
    manifest, payloads = take_apart(right)
    which = data.draw(st.integers(0, len(payloads) - 1))
    lie = bytearray(payloads[which])
    for _ in range(data.draw(st.integers(1, 3))):
        lie[data.draw(st.integers(0, len(lie) - 1))] = data.draw(st.integers(0, 255))
    payloads[which] = bytes(lie)
    patch, new = base.parent / "lie", base.parent / "new"
    patch.write_bytes(put_together(manifest, payloads))
    answers = []
    for numpy in (True, False):
        with pytest.MonkeyPatch.context() as patched:
            patched.setattr(stream, "NUMPY", numpy)
            try:
                apply(base, [patch], new)
                answers.append("applied")
                assert new.read_bytes() == target.read_bytes()
                new.unlink()
            except NeuralDiffError as error:
                answers.append(f"{type(error).__name__}: {error}")
    assert answers[0] == answers[1]
    assert not new.exists()


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
