"""Version 2 of the patch file says in fewer bytes what version 1 says, and refuses as much."""

import io
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from neural_diff.describe import describe
from neural_diff.errors import Malformed
from neural_diff.make import make_patch
from neural_diff.patch import ENVELOPE, Patch, read_patch
from neural_diff.region import Region
from tests.unit import reference_manifest
from tests.unit.patch_files import (
    as_second,
    put_together,
    sample,
    save_safetensors,
    spell,
    take_apart,
)
from tests.unit.reference_values import Refused
from tests.unit.test_patch import GONE, LIES, S1, told
from tests.unit.ways import answer, drafted, sections_of, with_raws

KINDS = ["sparse", "hashed", "exact"]
# What version 2 says in other words, or does not say.
FIRST_ONLY = ("limits", "from.", "to.", S1 + ".streams", S1 + ".payload_bytes")


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> dict[str, bytes]:
    """One small patch file of each kind."""
    rooms = {kind: tmp_path_factory.mktemp(kind) for kind in KINDS}
    return {kind: sample(kind, room)[2].read_bytes() for kind, room in rooms.items()}


def read(file: bytes) -> Patch:
    return read_patch(io.BytesIO(file), len(file))


def heads(patch: bytes) -> tuple[dict[str, Any], bytes, list[bytes]]:
    """Gives manifest, digests and payloads of a patch of version 2, as they stand in it."""
    manifest, payloads = take_apart(patch)
    return *as_second(manifest), payloads


@pytest.mark.parametrize("kind", KINDS)
def test_what_is_made_is_of_version_2_and_both_versions_say_the_same(
    made: dict[str, bytes], kind: str
) -> None:
    manifest, payloads = take_apart(made[kind])
    first, second = (read(put_together(manifest, payloads, version=n)) for n in (1, 2))
    assert ENVELOPE.unpack(made[kind][: ENVELOPE.size])[1] == 2
    assert read(made[kind]) == second
    assert first._replace(sections=()) == second._replace(sections=())
    for one, other in zip(first.sections, second.sections, strict=True):
        assert one._replace(offset=0) == other._replace(offset=0)


def test_the_head_of_a_patch_holds_each_digest_once_and_as_bytes(made: dict[str, bytes]) -> None:
    patch = read(made["sparse"])
    digests = [patch.from_sha256, patch.to_sha256]
    for section in patch.sections:
        digests += section.payload_sha256, section.prefix_sha256
    length = ENVELOPE.unpack(made["sparse"][: ENVELOPE.size])[3]
    head = made["sparse"][ENVELOPE.size : ENVELOPE.size + length]
    assert head.endswith(bytes.fromhex("".join(digests)))
    assert b"sha256" not in zlib.decompressobj(-15).decompress(head)


@pytest.mark.attack("D22")
@pytest.mark.parametrize(
    ("kind", "field", "value", "says"),
    [
        pytest.param(*lie, id=name)
        for name, *lie in LIES
        if lie[1] != "sections" and not str(lie[1]).startswith(FIRST_ONLY)
    ],
)
def test_d22_a_manifest_of_version_2_that_breaks_a_rule_is_refused(
    made: dict[str, bytes], kind: str, field: str, value: object, says: str
) -> None:
    manifest, digests, payloads = heads(made[kind])
    told(manifest, field, value)
    with pytest.raises(Malformed, match=says):
        read(put_together(spell(manifest), payloads, version=2, digests=digests))


STREAM = S1 + ".streams.0"
SHORT_LIES: list[tuple[str, str, object, str]] = [
    ("limits are not told", "limits", {}, "fields must be"),
    ("a field of version 1 is unknown", S1 + ".payload_bytes", 1, "fields must be"),
    ("a digest in the manifest is unknown", S1 + ".payload_sha256", "a" * 64, "fields must be"),
    ("a digest of a result is unknown", S1 + ".result_sha256", "a" * 64, "fields must be"),
    ("a file of version 1 is no size", "from", {"size": 1, "sha256": "a" * 64}, "from: must be"),
    ("a negative size", "from", -1, "from: must be"),
    ("a huge size", "to", 2**40, "to: must be"),
    ("a size of zero", "to", 0, "to: size"),
    ("a size that is a bool", "from", True, "from: must be"),
    ("a missing size", "to", GONE, "fields must be"),
    ("a stream of version 1", STREAM, [1, 4, 4], "must be .coding"),
    ("a stream of nothing", STREAM, [], "must be .coding"),
    ("a stream of one number", STREAM, [4], "must be .coding"),
    ("a stream that is a text", STREAM, "4", "stored bytes: must be an integer"),
    ("a stream that is a bool", STREAM, True, "stored bytes: must be an integer"),
    ("a raw stream in two numbers", STREAM, [4, 4], "cannot be 4"),
    ("a stream of no stored byte", STREAM, [0, 4], "cannot be 4"),
    ("a stream that grew when stored", STREAM, [5, 4], "cannot be 4"),
    ("a stream of a negative length", STREAM, -4, "stored bytes: must be"),
    ("a stream over the limit", STREAM, [2, 2**40], "decoded"),
    ("a stream of another length", STREAM, 5, "stream 0 must decode to 4"),
    ("a constant of true bytes", STREAM, [True, 4], "must be an integer"),
    ("a missing stream", S1 + ".streams.2", GONE, "has 4"),
]


@pytest.mark.attack("D02", "D22")
@pytest.mark.parametrize(
    ("field", "value", "says"), [pytest.param(*lie, id=name) for name, *lie in SHORT_LIES]
)
def test_d22_a_lie_in_the_short_spelling_is_refused_by_kernel_and_page(
    made: dict[str, bytes], field: str, value: object, says: str
) -> None:
    manifest, digests, payloads = heads(made["sparse"])
    told(manifest, field, value)
    file = put_together(spell(manifest), payloads, version=2, digests=digests)
    with pytest.raises(Malformed, match=says.replace(" bytes:", "_bytes:")):
        read(file)
    if "stream 0 must" not in says and "has 4" not in says:  # what the page leaves to decoders
        with pytest.raises(Refused):
            reference_manifest.opened(file)


@pytest.mark.attack("D04", "D05")
@pytest.mark.parametrize("change", [-32, -1, 1, 32, 64])
def test_d05_digests_too_few_or_too_many_are_refused(made: dict[str, bytes], change: int) -> None:
    manifest, digests, payloads = heads(made["sparse"])
    wrong = digests[:change] if change < 0 else digests + bytes(change)
    file = put_together(spell(manifest), payloads, version=2, digests=wrong)
    with pytest.raises(Malformed, match="bytes of digests follow the manifest"):
        read(file)
    with pytest.raises(Refused):
        reference_manifest.opened(file)


@pytest.mark.attack("D05")
def test_d05_nothing_follows_the_manifest_of_version_1(made: dict[str, bytes]) -> None:
    manifest, payloads = take_apart(made["exact"])
    with pytest.raises(Malformed, match="1 bytes of digests follow the manifest, not 0"):
        read(put_together(spell(manifest), payloads, digests=b"\0"))


@pytest.mark.attack("D03")
def test_d03_one_version_is_not_read_as_the_other(made: dict[str, bytes]) -> None:
    for version in (1, 2):
        file = bytearray(put_together(*take_apart(made["sparse"]), version=version))
        file[8] = 3 - version
        with pytest.raises(Malformed):
            read(bytes(file))


REGION, OLD = Region("w", 0, 64, 8, "int"), bytes(range(64))
NEW = with_raws(REGION, OLD, [raw + (raw % 7 == 2) for raw in range(64)])
IN_RUNS = drafted(list(sections_of(REGION, OLD, NEW, "runs", 3)), OLD, NEW)
ODD = [0, 1, -1, 2, 7, 32, 64, 2**32, True, None, "", [], [1], [1, 1], [1, 4], [3, 9], {}]


def places_in(thing: Any) -> Iterator[tuple[Any, Any]]:
    """Gives every place in a value of JSON, as what holds it and where there."""
    for key in thing if isinstance(thing, dict) else range(len(thing)):
        yield thing, key
        if isinstance(thing[key], dict | list):
            yield from places_in(thing[key])


@pytest.mark.attack("D22")
@settings(max_examples=200, deadline=None)
@given(st.data())
def test_d22_a_changed_manifest_is_answered_alike_by_kernel_and_page(data: st.DataObject) -> None:
    manifest, digests, payloads = heads(IN_RUNS)
    holder, key = data.draw(st.sampled_from(list(places_in(manifest))))
    holder[key] = data.draw(st.sampled_from(ODD))
    file = put_together(spell(manifest), payloads, version=2, digests=digests)
    assert isinstance(answer(OLD, file), str | bytes)


def test_who_goes_back_from_runs_needs_no_base() -> None:
    assert answer(OLD, IN_RUNS) == NEW
    assert read(IN_RUNS).sections[0].runs == 10
    assert read(IN_RUNS).back.to_size == 64


def test_rows_that_change_at_their_own_rates_have_classes(tmp_path: Path) -> None:
    base, target, patch = (tmp_path / name for name in ("base", "target", "patch"))
    rng = np.random.default_rng(0)
    rates = rng.choice([0.06, 0.18], (600, 1))
    old = rng.integers(-100, 100, (600, 192)).astype(np.int8)
    moved = old + (rng.random(old.shape) < rates).astype(np.int8)
    for path, codes in ((base, old), (target, moved)):
        save_safetensors(path, {"w": ("I8", codes)})
    made = make_patch(base, target, patch)
    assert {section.params["run"] for section in made.sections} == {192}
    given = answer(base.read_bytes(), patch.read_bytes())
    assert given == target.read_bytes()
    (row,) = describe(patch)["regions"]  # type: ignore[misc,attr-defined]
    assert row["changed"] == np.count_nonzero(old != moved)
    assert "of runs of 192" in row["how"][0]
