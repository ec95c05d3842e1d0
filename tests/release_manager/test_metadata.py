"""The server is hostile here: whatever it shows, nothing false is ever signed."""

import json
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from release_manager import metadata
from release_manager.keys import KeyFolder, make_keys
from tests.release_manager.desk import Desk
from trust.roles import Release, read_family
from trust.sign import load_signer, next_family, sign, target_of

EVIL = Release("r0", 9, "active", "e" * 64, 666, "safetensors", (), ())


@pytest.fixture
def published(ready: Desk, files: list[Path]) -> Desk:
    assert ready.run("release", "publish", "asr", "r1", files[0]) == 0, ready.err
    return ready


def refused(desk: Desk, file: Path, code: str) -> None:
    """Try to publish; it must fail with the code, sign nothing and upload nothing."""
    before = len(desk.server.calls("PUT"))
    assert desk.run("release", "publish", "asr", "r2", file) == 1, desk.out
    assert desk.err.startswith(f"fleetdiff: {code}: ")
    assert len(desk.err.splitlines()) == 2
    assert len(desk.server.calls("PUT")) == before


def family_signer(desk: Desk) -> Any:
    return load_signer(desk.keys / "offline/family-asr.pem")


def test_an_entry_that_the_server_slips_in_is_noticed(published: Desk, files: list[Path]) -> None:
    document = json.loads(published.server.documents["1.family-asr.json"])
    path, target = target_of("asr", EVIL)
    document["signed"]["targets"][path] = target.to_dict()
    published.server.documents["1.family-asr.json"] = json.dumps(document).encode()
    refused(published, files[1], "E_SIG")


def test_an_entry_signed_by_a_key_of_the_servers_own_is_noticed(
    published: Desk, files: list[Path]
) -> None:
    previous = Metadata[Targets].from_bytes(published.server.documents["1.family-asr.json"]).signed
    forged = next_family(previous, [target_of("asr", EVIL)], datetime.now(UTC))
    online = load_signer(published.keys / "online/snapshot.pem")
    published.server.documents["2.family-asr.json"] = sign(forged, [online])
    published.server.newest["family-asr"] = 2
    refused(published, files[1], "E_SIG")


def flip(body: bytes) -> bytes:
    return body.replace(b'"version":1', b'"version":3')


def retype(body: bytes) -> bytes:
    return body.replace(b'"_type":"targets"', b'"_type":"snapshot"')


@pytest.mark.parametrize(
    "damage", [flip, retype, lambda _: b"", lambda _: b"{}", lambda _: b"[" * 100_000]
)
@pytest.mark.parametrize("name", ["2.targets.json", "1.family-asr.json"])
def test_damaged_metadata_is_refused(
    published: Desk, files: list[Path], name: str, damage: Callable[[bytes], bytes]
) -> None:
    changed = damage(published.server.documents[name].replace(b'"version":2', b'"version":1'))
    published.server.documents[name] = changed
    refused(published, files[1], "E_SIG")


def test_a_family_that_went_back_is_noticed(published: Desk, files: list[Path]) -> None:
    assert published.run("release", "publish", "asr", "r2", files[1]) == 0
    published.server.newest["family-asr"] = 1
    refused(published, files[2], "E_ROLLBACK_META")


@pytest.mark.parametrize("role", ["family-asr", "targets"])
def test_metadata_that_vanished_is_noticed(published: Desk, files: list[Path], role: str) -> None:
    del published.server.newest[role]
    refused(published, files[1], "E_ROLLBACK_META")


def test_another_document_of_the_same_version_is_noticed(
    published: Desk, files: list[Path]
) -> None:
    twin = next_family(None, [target_of("asr", EVIL)], datetime.now(UTC))
    published.server.documents["1.family-asr.json"] = sign(twin, [family_signer(published)])
    refused(published, files[1], "E_EQUIVOCATION")


def test_a_document_under_a_wrong_number_is_noticed(published: Desk, files: list[Path]) -> None:
    documents = published.server.documents
    documents["2.family-asr.json"] = documents["1.family-asr.json"]
    published.server.newest["family-asr"] = 2
    refused(published, files[1], "E_MIX")


def test_a_tampered_pinned_root_is_refused(published: Desk, files: list[Path]) -> None:
    file = published.keys / "root.json"
    file.write_bytes(file.read_bytes().replace(b'"version":1', b'"version":2'))
    refused(published, files[1], "E_SIG")


def next_root(desk: Desk, change: Callable[[Root], None], by: list[Path]) -> None:
    root = Metadata[Root].from_file(str(desk.keys / "root.json")).signed
    root.version += 1
    change(root)
    body = sign(Metadata(root), [load_signer(path) for path in by])
    desk.server.documents[f"{root.version}.root.json"] = body


def test_a_root_that_the_old_root_did_not_sign_is_refused(
    published: Desk, files: list[Path], tmp_path: Path
) -> None:
    other = KeyFolder(tmp_path / "other")
    make_keys(other, datetime.now(UTC))
    key = other.signer("root").public_key

    def take_over(root: Root) -> None:
        root.revoke_key(root.roles["root"].keyids[0], "root")
        root.add_key(key, "root")

    next_root(published, take_over, [other.key_file("root")])
    refused(published, files[1], "E_SIG")


def test_a_root_that_its_own_keys_did_not_sign_is_refused(
    published: Desk, files: list[Path], tmp_path: Path
) -> None:
    other = KeyFolder(tmp_path / "other")
    make_keys(other, datetime.now(UTC))

    def hand_over(root: Root) -> None:
        root.revoke_key(root.roles["root"].keyids[0], "root")
        root.add_key(other.signer("root").public_key, "root")

    next_root(published, hand_over, [published.keys / "offline/root.pem"])
    refused(published, files[1], "E_SIG")


def test_a_new_root_is_followed_and_never_left_again(published: Desk, files: list[Path]) -> None:
    next_root(published, lambda root: None, [published.keys / "offline/root.pem"])
    assert published.run("release", "publish", "asr", "r2", files[1]) == 0, published.err
    del published.server.documents["2.root.json"]
    refused(published, files[2], "E_ROLLBACK_META")


def test_one_key_under_two_names_is_refused(published: Desk, files: list[Path]) -> None:
    def double(root: Root) -> None:
        key = root.get_key(root.roles["targets"].keyids[0])
        twin = type(key).from_dict("f" * 64, key.to_dict())
        root.keys["f" * 64] = twin
        root.roles["targets"].keyids.append("f" * 64)

    next_root(published, double, [published.keys / "offline/root.pem"])
    refused(published, files[1], "E_SIG")


def test_an_expired_root_is_refused(
    published: Desk, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    later = datetime.now(UTC) + timedelta(days=366)
    monkeypatch.setattr(metadata, "utc_now", lambda: later)
    refused(published, files[1], "E_FREEZE")


def test_a_family_about_to_expire_is_signed_again(
    published: Desk, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["release", "publish", "asr", "r1", files[0]]
    later = datetime.now(UTC) + timedelta(days=19)
    monkeypatch.setattr(metadata, "utc_now", lambda: later)
    assert published.json(*words)["version"] == 1
    later += timedelta(days=2)
    again = published.json(*words)
    assert (again["version"], again["published"]) == (2, True)
    renewed = Metadata[Targets].from_bytes(published.server.documents["2.family-asr.json"]).signed
    assert list(read_family("asr", renewed).releases) == ["r1"]
    assert renewed.expires > later + timedelta(days=29)


def test_a_release_of_somebody_else_meanwhile_is_kept(published: Desk, files: list[Path]) -> None:
    """The other publishes after our look at the family: the server answers 409, we look again."""
    server = published.server
    previous = Metadata[Targets].from_bytes(server.documents["1.family-asr.json"]).signed
    theirs = Release("theirs", 2, "active", "a" * 64, 5, "safetensors", (), ())
    body = next_family(previous, [target_of("asr", theirs)], datetime.now(UTC))
    signed = sign(body, [family_signer(published)])

    def publish_first() -> None:
        server.documents["2.family-asr.json"] = signed
        server.newest["family-asr"] = 2

    server.before_put["/v1/metadata/family-asr"] = publish_first
    done = published.json("release", "publish", "asr", "r2", files[1])
    assert (done["seq"], done["version"]) == (3, 3)
    newest = Metadata[Targets].from_bytes(server.documents["3.family-asr.json"]).signed
    assert set(read_family("asr", newest).releases) == {"r1", "theirs", "r2"}


def test_a_damaged_memory_is_not_taken_for_an_empty_one(published: Desk, files: list[Path]) -> None:
    (published.keys / "seen.json").write_text("[]")
    assert published.run("release", "publish", "asr", "r2", files[1]) == 1
    assert "seen.json is damaged" in published.err
