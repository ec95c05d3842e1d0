"""Golden patch files: whatever was once published stays applicable, for ever, by both decoders.

Files are only ever added here, never remade. `<name>.base` + `<name>.patch` give a file whose
SHA-256 stands in `sha256*.json`. They were made by `make_vectors.py`, `make_more.py` and
`make_second.py` of the version that added them.
"""

import hashlib
import json
from pathlib import Path

import pytest

from neural_diff import stream
from neural_diff.apply import apply
from neural_diff.errors import NeuralDiffError
from tests.unit import reference
from tests.unit.patch_files import take_apart
from tests.unit.reference_manifest import PARAMS
from tests.unit.ways import KINDS

HERE = Path(__file__).parent
WANTED: dict[str, str] = {
    name: digest
    for path in sorted(HERE.glob("sha256*.json"))
    for name, digest in json.loads(path.read_text()).items()
}


def test_every_golden_patch_has_its_digest() -> None:
    assert sorted(WANTED) == sorted(path.stem for path in HERE.glob("*.patch"))
    assert len(WANTED) >= 20


@pytest.mark.parametrize("numpy", [True, False], ids=["numpy", "standard library"])
@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_golden_patch_still_gives_the_same_file(
    name: str, numpy: bool, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(stream, "NUMPY", numpy)
    applied = apply(HERE / f"{name}.base", [HERE / f"{name}.patch"], tmp_path / "target")
    assert applied.sha256 == WANTED[name]


@pytest.mark.parametrize("name", sorted(WANTED))
def test_a_golden_patch_gives_what_the_page_of_the_format_says(name: str) -> None:
    base, patch = ((HERE / f"{name}.{side}").read_bytes() for side in ("base", "patch"))
    assert hashlib.sha256(reference.applied(base, patch)).hexdigest() == WANTED[name]


@pytest.mark.attack("D04")
@pytest.mark.parametrize("name", sorted(WANTED))
def test_d04_a_golden_patch_cut_off_or_flipped_is_refused(name: str, tmp_path: Path) -> None:
    whole = (HERE / f"{name}.patch").read_bytes()
    flipped = [
        whole[:at] + bytes([whole[at] ^ 4]) + whole[at + 1 :] for at in range(5, len(whole), 37)
    ]
    for number, wrong in enumerate([*flipped, *(whole[:at] for at in range(0, len(whole), 41))]):
        (tmp_path / "patch").write_bytes(wrong)
        with pytest.raises(NeuralDiffError):
            apply(HERE / f"{name}.base", [tmp_path / "patch"], tmp_path / "target")
        assert [path.name for path in tmp_path.iterdir()] == ["patch"], number


def test_the_golden_patches_use_every_operation_codec_and_parameter() -> None:
    used = set()
    for path in HERE.glob("*.patch"):
        manifest, _ = take_apart(path.read_bytes())
        used |= {field for field in manifest if field == "moves"}
        for section in manifest["sections"]:
            region = manifest["regions"][section["region"]]
            used.add((section["op"], section["codec"], *sorted(section["params"])))
            used |= {
                (region["kind"], region["width"]),
                *(coding for coding, *_ in section["streams"]),
            }
    wanted = {
        (op, codec, *sorted(f"{needed} {more}".split()))
        for (op, codec), (needed, may) in PARAMS.items()
        for more in ("", *may.split())
    }
    assert wanted | {"moves", 0, 1, 2} | set(KINDS) <= used
