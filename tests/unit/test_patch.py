"""The reader of the patch file refuses whatever is not exactly a patch, before payloads are read.

The D-numbers are those of the threat model's list of attacks on the patch file.
"""

import io
import struct
import sys
from pathlib import Path
from typing import Any

import pytest

from neural_diff import limits
from neural_diff.errors import Corrupt, Malformed
from neural_diff.patch import Patch, head_of, read_patch
from tests.unit.patch_files import put_together, sample, spell, take_apart


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small patch file of each kind."""
    rooms = {kind: tmp_path_factory.mktemp(kind) for kind in ("sparse", "hashed", "exact")}
    return {kind: sample(kind, room)[2].read_bytes() for kind, room in rooms.items()}


def read(file: bytes) -> Patch:
    return read_patch(io.BytesIO(file), len(file))


@pytest.mark.parametrize("kind", ["sparse", "hashed", "exact"])
def test_a_patch_is_read_and_spelled_again_to_the_same_bytes(
    made: dict[str, bytes], kind: str
) -> None:
    patch = read(made[kind])
    assert patch.kind == kind
    assert patch.provenance == {"by": "tests"}
    assert made[kind].startswith(head_of(patch))
    assert patch.sections[0].offset % 8 == 0


@pytest.mark.parametrize("kind", ["sparse", "hashed", "exact"])
def test_taking_a_patch_apart_and_together_again_is_accepted(
    made: dict[str, bytes], kind: str
) -> None:
    assert read(put_together(*take_apart(made[kind]))).kind == kind


@pytest.mark.attack("D03")
@pytest.mark.parametrize(
    ("lie", "says"),
    [
        ({"magic": b"\x89FLEETX\n"}, "not a patch"),
        ({"version": 3}, "version 3"),
        ({"version": 0}, "version 0"),
        ({"flags": 1}, "unknown flags"),
    ],
)
def test_d03_another_magic_version_or_flag_is_refused(
    made: dict[str, bytes], lie: dict[str, Any], says: str
) -> None:
    with pytest.raises(Malformed, match=says):
        read(put_together(*take_apart(made["sparse"]), **lie))


@pytest.mark.attack("D06")
@pytest.mark.parametrize("length", [0, 2**31, 2**32 - 1, limits.MANIFEST_BYTES_MAX + 1])
def test_d06_a_manifest_length_of_nothing_or_over_the_limit_is_refused(
    made: dict[str, bytes], length: int
) -> None:
    file = bytearray(made["sparse"])
    file[12:16] = struct.pack("<I", length)
    with pytest.raises(Malformed, match="manifest of"):
        read(bytes(file))


@pytest.mark.attack("D04")
def test_d04_a_patch_that_ends_in_its_manifest_is_refused(made: dict[str, bytes]) -> None:
    with pytest.raises(Malformed, match="ends inside"):
        read(made["sparse"][:60])


@pytest.mark.attack("D05")
@pytest.mark.parametrize("kind", ["sparse", "hashed", "exact"])
def test_d05_trailing_bytes_are_refused(made: dict[str, bytes], kind: str) -> None:
    with pytest.raises(Malformed, match="the file has"):
        read(made[kind] + b"\0")


def test_padding_that_is_not_zero_is_refused(made: dict[str, bytes]) -> None:
    file = put_together(*take_apart(made["sparse"]), padding=b"\1")
    with pytest.raises(Malformed, match="are not zero"):
        read(file)


def test_a_manifest_with_another_digest_is_corrupt(made: dict[str, bytes]) -> None:
    file = bytearray(made["sparse"])
    file[20] ^= 1
    with pytest.raises(Corrupt, match="manifest"):
        read(bytes(file))


@pytest.mark.attack("D01")
def test_d01_a_manifest_that_inflates_over_the_limit_is_refused() -> None:
    bomb = b" " * (50 << 20)
    with pytest.raises(Malformed, match="does not inflate"):
        read(put_together(bomb, []))


@pytest.mark.attack("D22")
@pytest.mark.parametrize(
    "spelled",
    [
        b"{}",
        b"[]",
        b"null",
        b'{"a":1,"a":1}',
        b'{"b":1, "a":1}',
        b"[" * 100_000,
        b"[1.0]",
        b"[NaN]",
        b"[1e9]",
        b"[" + b"9" * 10_000 + b"]",
        b'["\xff"]',
        b'["\\ud800"]',
        b"",
    ],
    ids=repr,
)
def test_d22_a_manifest_that_is_not_canonical_json_is_refused(spelled: bytes) -> None:
    with pytest.raises(Malformed):
        read(put_together(spelled, []))


@pytest.mark.attack("D22")
@pytest.mark.parametrize("field", ["capabilities", "sections.0.params", "regions.0.layout"])
def test_d22_a_value_nested_to_any_depth_is_refused(made: dict[str, bytes], field: str) -> None:
    manifest, payloads = take_apart(made["sparse"])
    told(manifest, field, "nest")
    for depth in range(1, sys.getrecursionlimit()):
        nest = b"[" * depth + b"]" * depth
        with pytest.raises(Malformed):
            read(put_together(spell(manifest).replace(b'"nest"', nest), payloads))


def test_a_manifest_with_spaces_is_refused(made: dict[str, bytes]) -> None:
    manifest, payloads = take_apart(made["exact"])
    with pytest.raises(Malformed, match="canonical"):
        read(put_together(spell(manifest).replace(b":", b": ", 1), payloads))


GONE = object()
S1 = "sections.1"
INT, F32 = "regions.1", "regions.2"
HASHED = "sections.0.params"
BLOCK = {"stride": 4, "first": 0, "per_block": 4, "nibble_order": "low"}

# sentence, kind of the patch, field, what it is made to say, what the refusal says
LIES: list[tuple[str, str, str, object, str]] = [
    ("an unknown field is refused", "exact", "more", 1, "fields must be"),
    ("a missing field is refused", "exact", "limits", GONE, "fields must be"),
    ("D03 an unknown capability is refused", "sparse", "capabilities", 2, "capabilities"),
    ("a hashed patch says its capability", "hashed", "capabilities", 0, "capabilities"),
    ("a limit that is too low is refused", "sparse", "limits.changes", 0, "limits must"),
    ("a limit that is too high is refused", "sparse", "limits.changes", 99, "limits must"),
    ("D06 a negative size is refused", "exact", "from.size", -1, "from: size"),
    ("D15 a huge size is refused", "exact", "to.size", 2**40, "to: size"),
    ("D15 a size of zero is refused", "exact", "to.size", 0, "to: size"),
    ("D15 growth that nothing gives is refused", "exact", "to.size", 2**30, "lacks"),
    ("a digest in capitals is refused", "exact", "to.sha256", "A" * 64, "SHA-256"),
    ("a digest of a byte less is refused", "exact", "to.sha256", "a" * 62, "SHA-256"),
    ("provenance of numbers is refused", "exact", "provenance", {"a": 1}, "provenance"),
    ("provenance with escapes is refused", "exact", "provenance", {"a": "\x1b["}, "printable"),
    ("a name with a line end is refused", "sparse", "regions.0.name", "a\nb", "printable"),
    ("D03 an unknown kind is refused", "sparse", INT + ".kind", "f64", "kind: must be"),
    ("D03 a kind that is a list is refused", "sparse", INT + ".kind", [], "kind: must be"),
    ("D03 a width of another kind is refused", "sparse", INT + ".width", 7, "width: must be"),
    ("D03 a bool for a number is refused", "sparse", INT + ".bias", False, "bias: must be"),
    ("D07 a region beyond the file is refused", "sparse", INT + ".count", 400, "outside"),
    ("D07 an offset that wraps is refused", "sparse", INT + ".file_offset", 2**64 - 8, "offset"),
    ("D07 a negative offset is refused", "sparse", INT + ".file_offset", -8, "offset"),
    ("D08 a count that overflows is refused", "sparse", INT + ".count", 2**62, "count"),
    ("D08 count times width is not wrapped", "sparse", F32 + ".count", 2**30, "outside"),
    ("D09 a region of no element is refused", "sparse", INT + ".count", 0, "count"),
    ("D09 regions that overlap are refused", "sparse", F32 + ".file_offset", 140, "overlap"),
    ("D09 regions out of order are refused", "sparse", F32 + ".file_offset", 0, "overlap"),
    ("D18 regions over the limit are refused", "exact", "regions", [1] * 4097, "at most 4096"),
    ("D18 sections over the limit are refused", "exact", "sections", [1] * 4097, "at most 4096"),
    ("lo above hi is refused", "hashed", "regions.0.hi", -128, "hi: must be"),
    ("lo outside the width is refused", "hashed", "regions.0.lo", -129, "lo: must be"),
    ("another bias is refused", "hashed", "regions.0.bias", 7, "bias: must be"),
    ("D03 an unknown layout is refused", "sparse", INT + ".layout", "tiled", "layout"),
    ("blocks of bytes are refused", "sparse", "regions.0.layout", BLOCK, "region 0"),
    ("a stride of zero is refused", "sparse", INT + ".layout", BLOCK | {"stride": 0}, "stride"),
    ("a stride below its block is refused", "sparse", INT + ".layout", BLOCK | {"stride": 2},
     "fit"),
    ("a block over its stride is refused", "sparse", INT + ".layout", BLOCK | {"first": 1}, "fit"),
    ("half a block is refused", "sparse", F32 + ".layout", BLOCK | {"per_block": 3}, "fit"),
    ("an unknown nibble order is refused", "sparse", INT + ".layout",
     BLOCK | {"nibble_order": "both"}, "nibble_order"),
    ("D03 a reserved codec is refused", "sparse", S1 + ".codec", 5, "codec: must be"),
    ("D03 an unknown operation is refused", "sparse", S1 + ".op", "mul", "op: must be"),
    ("D03 an operation without this codec is refused", "sparse", S1 + ".codec", 4, "no codec"),
    ("D12 bytes change only exactly", "exact", "sections.0.op", "set", "bytes"),
    ("D12 tensors are not changed as bytes", "exact", "regions.0.kind", "int", "does not go"),
    ("a region that is not there is refused", "sparse", "sections.0.region", 9, "region: must"),
    ("D10 a section beyond its region is refused", "sparse", S1 + ".start", 1, "count: must"),
    ("D10 a section of no element is refused", "sparse", S1 + ".count", 0, "count: must"),
    ("D10 a negative start is refused", "sparse", S1 + ".start", -1, "start: must"),
    ("D10 more changes than elements are refused", "sparse", S1 + ".params.changes", 129,
     "changes"),
    ("D10 a section of no change is refused", "sparse", S1 + ".params.changes", 0, "changes"),
    ("an unknown parameter is refused", "sparse", S1 + ".params.more", 1, "fields must be"),
    ("exact bytes are not mixed with the base", "exact", HASHED + ".xor", 1, "xor"),
    ("D11 no bucket is refused", "hashed", HASHED + ".buckets", 0, "buckets"),
    ("D11 more buckets than elements are refused", "hashed", HASHED + ".buckets", 129, "buckets"),
    ("D11 a missing seed is refused", "hashed", HASHED + ".seed", GONE, "fields must be"),
    ("D11 fewer buckets than said are refused", "hashed", HASHED + ".buckets", 26, "13 bytes"),
    ("D11 a seed over 32 bits is refused", "hashed", HASHED + ".seed", 2**32, "seed"),
    ("nine fraction bits are refused", "hashed", HASHED + ".fraction_bits", 9, "fraction_bits"),
    ("a hashed section of a part is refused", "hashed", "sections.0.count", 100, "whole region"),
    ("D02 a lying stream length is refused", "sparse", S1 + ".streams.0.2", 2**40, "decoded"),
    ("D01 a stream of another length is refused", "sparse", S1 + ".streams.0.2", 5, "cannot be 5"),
    ("D03 an unknown stream coding is refused", "sparse", S1 + ".streams.0.0", 3, "coding"),
    ("a deflated stream that did not shrink is refused", "sparse", S1 + ".streams.0.0", 2,
     "cannot"),
    ("a stream of two numbers is refused", "sparse", S1 + ".streams.0", [1, 4], "must be .coding"),
    ("a missing stream is refused", "sparse", S1 + ".streams.2", GONE, "sum"),
    ("payload bytes unlike its streams' are refused", "sparse", S1 + ".payload_bytes", 1, "sum"),
]  # fmt: skip


def told(manifest: Any, field: str, value: object) -> None:
    """Makes a field of the manifest say something."""
    *way, last = (int(step) if step.isdigit() else step for step in field.split("."))
    for step in way:
        manifest = manifest[step]
    if value is GONE:
        del manifest[last]
    else:
        manifest[last] = value


@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        pytest.param(*lie, id=name, marks=[pytest.mark.attack(name[:3])] if name[0] == "D" else [])
        for name, *lie in LIES
    ],
)
def test_a_manifest_that_breaks_a_rule_is_refused(
    made: dict[str, bytes], kind: str, field: str, value: object, says: str
) -> None:
    manifest, payloads = take_apart(made[kind])
    told(manifest, field, value)
    with pytest.raises(Malformed, match=says) as refused:
        read(put_together(spell(manifest), payloads))
    assert len(str(refused.value)) < 600


@pytest.mark.attack("D09")
def test_d09_a_section_of_a_region_finished_before_is_refused(made: dict[str, bytes]) -> None:
    manifest, payloads = take_apart(made["sparse"])
    manifest["sections"].append(manifest["sections"][0])
    with pytest.raises(Malformed, match="finished before"):
        read(put_together(manifest, [*payloads, payloads[0]]))


@pytest.mark.attack("D09")
def test_d09_two_sections_of_one_operation_must_not_overlap(made: dict[str, bytes]) -> None:
    manifest, payloads = take_apart(made["exact"])
    manifest["sections"].append(manifest["sections"][0])
    with pytest.raises(Malformed, match="overlaps or precedes"):
        read(put_together(manifest, payloads * 2))


def test_a_section_over_the_limit_of_elements_is_refused(made: dict[str, bytes]) -> None:
    manifest, payloads = take_apart(made["exact"])
    count = limits.SECTION_ELEMENTS_MAX + 1
    manifest["to"]["size"] = count
    manifest["regions"][0]["count"] = manifest["sections"][0]["count"] = count
    with pytest.raises(Malformed, match="count"):
        read(put_together(manifest, payloads))


def test_a_patch_over_the_manifest_limit_is_not_written(tmp_path: Path) -> None:
    patch = read(sample("exact", tmp_path)[2].read_bytes())
    provenance = {str(number): "x" * 4096 for number in range(300)}
    greater = Patch(
        patch.from_size, patch.from_sha256, patch.to_size, patch.to_sha256,
        patch.regions, patch.sections, provenance,
    )  # fmt: skip
    with pytest.raises(Malformed, match="over the limit"):
        head_of(greater)
