"""How strictly a family is read, and what the sign side promises about keys."""

import re
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile, Targets

from tests.unit.signed_world import MODEL, NOW, digest, patch, release
from trust import errors, sign
from trust.errors import CODES, Untrusted
from trust.roles import (
    BYTES_MAX,
    TARGETS_PER_FAMILY_MAX,
    CanaryTarget,
    Release,
    read_family,
)

R1, R2 = release("r1", hardware=("h1", "h2"), rollback_from=("r2",)), release("r2")
CANARY = CanaryTarget("set-1", digest("canary"), 70)


def document(*entries: tuple[str, TargetFile]) -> Targets:
    return sign.next_family(None, entries, NOW).signed


def refused(code: str, *entries: tuple[str, TargetFile]) -> None:
    with pytest.raises(Untrusted) as caught:
        read_family(MODEL, document(*entries))
    assert caught.value.code == code, caught.value


def test_a_family_is_read_as_it_was_written() -> None:
    edge = patch(R1, R2)
    entries = [sign.target_of(MODEL, r) for r in (R1, R2)]
    entries += [sign.target_of(MODEL, edge), sign.target_of(MODEL, CANARY)]
    body = sign.sign(Metadata(document(*entries)), [])
    family = read_family(MODEL, Metadata[Targets].from_bytes(body).signed)
    assert family.releases == {"r1": R1, "r2": R2}
    assert (family.patches, family.canary) == ((edge,), CANARY)
    assert family.release_of(R2.sha256) == R2 and family.release_of(digest("?")) is None


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "an unknown field": lambda c: c.update(more=1),
    "a missing field": lambda c: c.pop("status"),
    "no kind": lambda c: c.pop("kind"),
    "another kind": lambda c: c.update(kind="other"),
    "a kind that is a list": lambda c: c.update(kind=[]),
    "v is two": lambda c: c.update(v=2),
    "v is true": lambda c: c.update(v=True),
    "v is a float": lambda c: c.update(v=1.0),
    "v is text": lambda c: c.update(v="1"),
    "seq is zero": lambda c: c.update(seq=0),
    "seq is true": lambda c: c.update(seq=True),
    "seq is a float": lambda c: c.update(seq=1.0),
    "seq is beyond a double": lambda c: c.update(seq=1 << 53),
    "an unknown status": lambda c: c.update(status="beta"),
    "a status that is a list": lambda c: c.update(status=["active"]),
    "a status in capitals": lambda c: c.update(status="Active"),
    "the id of another": lambda c: c.update(id="r2"),
    "an id with a slash": lambda c: c.update(id="../r1"),
    "an id that is a number": lambda c: c.update(id=1),
    "a format that is null": lambda c: c.update(format=None),
    "hardware that is text": lambda c: c.update(hardware="h1"),
    "hardware that is an object": lambda c: c.update(hardware={"h1": 1}),
    "hardware that is null": lambda c: c.update(hardware=None),
    "hardware that is a number": lambda c: c.update(hardware=[1]),
    "edges that are text": lambda c: c.update(rollback_from="r2"),
    "an end that is text": lambda c: c.update(rollback_until="2026-06-01T12:00:00Z"),
    "an end that is a float": lambda c: c.update(rollback_until=0.0),
    "an end before 1970": lambda c: c.update(rollback_until=-1),
    "an end that is null": lambda c: c.update(rollback_until=None),
    "an edge in capitals": lambda c: c.update(rollback_from=["R2"]),
    "an edge and a line end": lambda c: c.update(rollback_from=["r2\n"]),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_release_that_is_not_understood_is_refused(change: Change) -> None:
    path, target = sign.target_of(MODEL, R1)
    change(target.custom)
    refused("E_NOT_RELEASED", (path, target))


@pytest.mark.parametrize("custom", [None, 5, "release", [], {}, ["kind"]])
def test_an_entry_without_a_custom_object_is_refused(custom: Any) -> None:
    target = TargetFile(1, {"sha256": digest("x")}, "asr/r1.model", {"custom": custom})
    refused("E_NOT_RELEASED", ("asr/r1.model", target))
    refused("E_NOT_RELEASED", ("asr/r1.model", TargetFile(1, target.hashes, "asr/r1.model")))


@pytest.mark.parametrize("length", [0, BYTES_MAX + 1, True, 1.0])
def test_a_file_of_an_impossible_size_is_refused(length: Any) -> None:
    path, target = sign.target_of(MODEL, R1)
    target.length = length
    refused("E_NOT_RELEASED", (path, target))


@pytest.mark.parametrize(
    "hashes",
    [{"sha512": "ab" * 64}, {"sha256": "AB" * 32}, {"sha256": "ab"}, {"sha256": "ab" * 32 + "\n"}],
)
def test_a_file_without_a_sha256_is_refused(hashes: dict[str, str]) -> None:
    path, target = sign.target_of(MODEL, R1)
    target.hashes = hashes
    refused("E_NOT_RELEASED", (path, target))


@pytest.mark.parametrize(
    "change",
    [
        {"from": "x"},
        {"to": None},
        {"from": R2.sha256},
        {"codec": "zip"},
        {"codec": []},
        {"more": 1},
        {"v": True},
    ],
)
def test_a_patch_that_is_not_understood_is_refused(change: dict[str, Any]) -> None:
    path, target = sign.target_of(MODEL, patch(R1, R2))
    target.custom.update(change)
    refused("E_NOT_RELEASED", (path, target))


def test_a_canary_set_under_another_name_and_a_second_one_are_refused() -> None:
    path, target = sign.target_of(MODEL, CANARY)
    refused("E_NOT_RELEASED", ("asr/set-2.canary", target))
    second = sign.target_of(MODEL, replace(CANARY, id="set-2"))
    refused("E_EQUIVOCATION", (path, target), second)


@pytest.mark.parametrize("twin", [release("r2", seq=1), release("r2", sha256=R1.sha256)])
def test_two_releases_with_one_number_or_one_content_are_refused(twin: Release) -> None:
    refused("E_EQUIVOCATION", *(sign.target_of(MODEL, r) for r in (R1, twin)))


@pytest.mark.attack("M52")
def test_m52_a_family_lists_300_files_and_not_one_more() -> None:
    entries = [
        sign.target_of(MODEL, release(f"r{n}")) for n in range(1, TARGETS_PER_FAMILY_MAX + 2)
    ]
    assert len(read_family(MODEL, document(*entries[:-1])).releases) == TARGETS_PER_FAMILY_MAX
    refused("E_SIZE", *entries)


def test_an_untrusted_without_a_known_code_is_a_mistake() -> None:
    with pytest.raises(ValueError, match="E_WHAT"):
        Untrusted("E_WHAT", "")
    assert str(Untrusted("E_SIG", "no")) == "E_SIG: no" and "E_SIG" in CODES
    assert set(re.findall(r"^    (E_[A-Z_]+) ", errors.__doc__ or "", re.MULTILINE)) == CODES


# Keys


def test_a_new_key_is_readable_by_its_owner_only_and_signs(tmp_path: Path) -> None:
    path = tmp_path / "new" / "root.pem"
    public = sign.generate_key(path)
    assert path.stat().st_mode & 0o777 == 0o600
    signer = sign.load_signer(path)
    assert signer.public_key == public
    public.verify_signature(signer.sign(b"x"), b"x")


def test_a_key_is_never_overwritten(tmp_path: Path) -> None:
    path = tmp_path / "root.pem"
    sign.generate_key(path)
    before = path.read_bytes()
    with pytest.raises(FileExistsError):
        sign.generate_key(path)
    link = tmp_path / "link.pem"
    link.symlink_to(path)
    with pytest.raises(FileExistsError):
        sign.generate_key(link)
    assert path.read_bytes() == before


@pytest.mark.parametrize("body", [b"", b"x", b"-----BEGIN PRIVATE KEY-----\n-----END"])
def test_a_file_that_is_no_key_is_refused_by_name(tmp_path: Path, body: bytes) -> None:
    path = tmp_path / "odd.pem"
    path.write_bytes(body)
    with pytest.raises(ValueError, match="odd"):
        sign.load_signer(path)


def test_the_next_targets_keep_the_families_and_drop_the_keys_that_nobody_uses() -> None:
    keys = {n: CryptoSigner.generate_ed25519().public_key for n in ("a", "b", "a2", "d", "d2")}
    of = {"family-a": keys["a"], "family-b": keys["b"], "director": keys["d"]}
    first = sign.next_targets(None, of, NOW).signed
    second = sign.next_targets(first, {"family-a": keys["a2"], "director": keys["d2"]}, NOW).signed
    assert second.version == 2 and second.delegations is not None
    assert set(second.delegations.roles or {}) == {"director", "family-a", "family-b"}
    assert set(second.delegations.keys) == {keys[n].keyid for n in ("a2", "b", "d2")}
    # A model of the director's name is not taken for the director: the server can refuse it.
    odd = sign.next_targets(first, {"family-director": keys["a2"]}, NOW).signed
    assert odd.delegations is not None
    assert {"director", "family-director"} <= set(odd.delegations.roles or {})
    assert first.delegations is not None
    assert set(first.delegations.keys) == {keys[n].keyid for n in ("a", "b", "d")}
