"""Golden patch files: whatever was once published stays applicable, for ever, by both decoders.

Files are only ever added here, never remade. `<name>.base` + `<name>.patch` give a file whose
SHA-256 stands in `sha256.json`. They were made by `make_vectors.py` of the version that added them.
"""

import json
from pathlib import Path

import pytest

from neural_diff import stream
from neural_diff.apply import apply

HERE = Path(__file__).parent
WANTED: dict[str, str] = json.loads((HERE / "sha256.json").read_text())


def test_every_golden_patch_has_its_digest() -> None:
    assert sorted(WANTED) == sorted(path.stem for path in HERE.glob("*.patch"))
    assert len(WANTED) >= 5


@pytest.mark.parametrize("numpy", [True, False], ids=["numpy", "standard library"])
@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_golden_patch_still_gives_the_same_file(
    name: str, numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    applied = apply(HERE / f"{name}.base", [HERE / f"{name}.patch"], tmp_path / "target")
    assert applied.sha256 == WANTED[name]
