import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from tests.release_manager.desk import Desk
from trust.accept import accept_family
from trust.roles import Family, read_family


def family_of(desk: Desk) -> Family:
    body = desk.server.documents[f"{desk.server.newest['family-asr']}.family-asr.json"]
    signed = Metadata[Targets].from_bytes(body).signed
    accept_family("asr", signed, None)
    return read_family("asr", signed)


def make_patch(desk: Desk, base: Path, target: Path, out: Path) -> Path:
    assert desk.run("diff", "make", base, target, "-o", out) == 0, desk.err
    return out


@pytest.fixture
def published(ready: Desk, files: list[Path]) -> Desk:
    """A desk whose model `asr` has the release r1 = files[0]."""
    assert ready.run("release", "publish", "asr", "r1", files[0]) == 0, ready.err
    return ready


@pytest.fixture
def patch(published: Desk, files: list[Path], tmp_path: Path) -> Path:
    return make_patch(published, files[0], files[1], tmp_path / "p12.ndiff")


def nothing_signed(desk: Desk) -> bool:
    return desk.server.newest["family-asr"] == 1 and len(desk.server.artifacts) == 1


def test_a_release_and_its_patch_are_signed_and_uploaded(
    published: Desk, files: list[Path], patch: Path
) -> None:
    done = published.json("release", "publish", "asr", "r2", files[1], "--patch", patch)
    assert (done["seq"], done["published"], done["version"]) == (2, True, 2)
    assert done["patches"] == ["asr/r1_r2.ndiff"]
    family = family_of(published)
    digests = [sha256(file.read_bytes()).hexdigest() for file in (files[0], files[1], patch)]
    assert [family.releases[name].sha256 for name in ("r1", "r2")] == digests[:2]
    (edge,) = family.patches
    assert (edge.from_sha256, edge.to_sha256, edge.sha256) == tuple(digests)
    assert (edge.kind, edge.bytes) == ("sparse", patch.stat().st_size)
    assert set(published.server.artifacts) == set(digests)


def test_publishing_again_changes_nothing(published: Desk, files: list[Path], patch: Path) -> None:
    words = ["release", "publish", "asr", "r2", files[1], "--patch", patch]
    published.json(*words)
    sent = len(published.server.calls("PUT"))
    again = published.json(*words)
    assert (again["published"], again["version"]) == (False, 2)
    assert len(published.server.calls("PUT")) == sent
    assert published.run(*words) == 0
    assert published.out.startswith("already published")


def test_what_the_server_has_is_not_uploaded_again(published: Desk, files: list[Path]) -> None:
    body = files[1].read_bytes()
    published.server.artifacts[sha256(body).hexdigest()] = body
    sent = len(published.server.calls("PUT"))
    assert published.run("release", "publish", "asr", "r2", files[1]) == 0
    assert published.server.calls("PUT")[sent:] == ["/v1/metadata/family-asr"]


def test_an_interrupted_publication_is_finished_by_the_same_command(
    published: Desk, files: list[Path], patch: Path
) -> None:
    words = ["release", "publish", "asr", "r2", files[1], "--patch", patch]
    published.server.lose_replies = ["/v1/metadata/family-asr"]
    done = published.json(*words)
    assert (done["version"], done["published"]) == (2, True)
    published.server.fail = [(503, {})] * 5
    assert published.run("release", "publish", "asr", "r3", files[2]) == 75
    assert published.json("release", "publish", "asr", "r3", files[2])["version"] == 3


def test_a_patch_can_be_added_to_a_release_later(
    published: Desk, files: list[Path], patch: Path
) -> None:
    assert published.json("release", "publish", "asr", "r2", files[1])["back_to"] == []
    done = published.json("release", "publish", "asr", "r2", files[1], "--patch", patch)
    assert (done["seq"], done["version"], done["back_to"]) == (2, 3, ["r1"])


# --- the way back


@pytest.mark.parametrize(
    ("options", "with_patch", "back_to"),
    [
        ([], True, ["r1"]),
        ([], False, []),
        (["--no-rollback"], True, []),
        (["--rollback-from-here"], False, ["r2"]),
        (["--rollback-from-here"], True, ["r1", "r2"]),
    ],
)
def test_the_way_back_is_what_was_asked_for(
    published: Desk,
    files: list[Path],
    tmp_path: Path,
    options: list[str],
    with_patch: bool,
    back_to: list[str],
) -> None:
    assert published.run("release", "publish", "asr", "r2", files[1]) == 0
    patch = make_patch(published, files[0], files[2], tmp_path / "p13.ndiff")
    patches: list[str | Path] = ["--patch", patch] if with_patch else []
    words = ["release", "publish", "asr", "r3", files[2], *patches, *options]
    assert sorted(published.json(*words)["back_to"]) == back_to
    releases = family_of(published).releases
    assert sorted(r.name for r in releases.values() if "r3" in r.rollback_from) == back_to


# --- refusals: nothing is signed, nothing is uploaded


def test_a_patch_that_leads_elsewhere_is_refused(
    published: Desk, files: list[Path], patch: Path
) -> None:
    assert published.run("release", "publish", "asr", "r2", files[2], "--patch", patch) == 1
    assert "does not lead to" in published.err
    assert nothing_signed(published)


def test_a_patch_from_bytes_nobody_released_is_refused(
    published: Desk, files: list[Path], tmp_path: Path
) -> None:
    patch = make_patch(published, files[1], files[2], tmp_path / "p23.ndiff")
    assert published.run("release", "publish", "asr", "r3", files[2], "--patch", patch) == 1
    assert "does not start from a published release" in published.err
    assert "r1" in published.err.splitlines()[1]
    assert nothing_signed(published)


@pytest.mark.parametrize("place", [0, 9, 60, -1])
def test_a_damaged_patch_is_refused(
    published: Desk, files: list[Path], patch: Path, place: int
) -> None:
    body = bytearray(patch.read_bytes())
    body[place] ^= 1
    patch.write_bytes(body)
    assert published.run("release", "publish", "asr", "r2", files[1], "--patch", patch) == 1
    assert str(patch) in published.err
    assert nothing_signed(published)


def test_a_base_that_the_server_swapped_is_noticed(
    published: Desk, files: list[Path], patch: Path
) -> None:
    (digest,) = published.server.artifacts
    published.server.artifacts[digest] = files[3].read_bytes()
    assert published.run("release", "publish", "asr", "r2", files[1], "--patch", patch) == 1
    assert "other bytes" in published.err
    assert nothing_signed(published)


def test_a_base_that_came_half_is_fetched_again(
    published: Desk, files: list[Path], patch: Path
) -> None:
    (digest,) = published.server.artifacts
    published.server.cut_replies = [f"/v1/artifacts/{digest}"] * 2  # the HEAD and the GET
    words = ["release", "publish", "asr", "r2", files[1], "--patch", patch]
    assert published.run(*words) == 0, published.err


def test_a_base_that_the_server_lost_is_said_loudly(
    published: Desk, files: list[Path], patch: Path
) -> None:
    published.server.artifacts.clear()
    assert published.run("release", "publish", "asr", "r2", files[1], "--patch", patch) == 0
    assert "checked by its digests only" in published.err


@pytest.mark.parametrize(
    "change", [["--hardware", "h1"], ["--format", "gguf"], "another file"], ids=str
)
def test_a_release_never_changes(published: Desk, files: list[Path], change: Any) -> None:
    words = ["release", "publish", "asr", "r1"]
    words += [files[1]] if change == "another file" else [files[0], *change]
    assert published.run(*words) == 1
    assert "never changes" in published.err
    assert nothing_signed(published)


def test_one_file_has_one_release_name(published: Desk, files: list[Path]) -> None:
    assert published.run("release", "publish", "asr", "r2", files[0]) == 1
    assert "already released as r1" in published.err


def test_a_model_that_is_not_there_is_refused(ready: Desk, files: list[Path]) -> None:
    assert ready.run("release", "publish", "tts", "r1", files[0]) == 1
    assert "fleetdiff model create tts" in ready.err


def test_files_that_cannot_be_read_are_named(ready: Desk, tmp_path: Path) -> None:
    assert ready.run("release", "publish", "asr", "r1", tmp_path / "none") == 1
    assert str(tmp_path / "none") in ready.err
    (tmp_path / "empty").touch()
    assert ready.run("release", "publish", "asr", "r1", tmp_path / "empty") == 1
    assert "is empty" in ready.err
    assert ready.run("release", "publish", "asr", "r1", tmp_path) == 1


# --- canary sets


def canary_set(folder: Path, name: str = "en-1", **changes: Any) -> Path:
    folder.mkdir()
    shards = []
    for number in range(3):
        body = f"recordings {name} {number}".encode()
        (folder / f"shard-{number}.zip").write_bytes(body)
        shards.append(
            {
                "id": number,
                "file": f"shard-{number}.zip",
                "sha256": sha256(body).hexdigest(),
                "bytes": len(body),
                "utterances": 20,
                "ref_words": 90,
            }
        )
    shards[0] |= changes
    (folder / "canary.json").write_text(json.dumps({"name": name, "shards": shards}))
    return folder


def test_a_canary_set_is_uploaded_and_signed(ready: Desk, tmp_path: Path) -> None:
    folder = canary_set(tmp_path / "set")
    done = ready.json("canary", "publish", "asr", folder)
    assert (done["canary"], done["shards"], done["published"]) == ("en-1", 3, True)
    canary = family_of(ready).canary
    assert canary is not None
    manifest = (folder / "canary.json").read_bytes()
    assert (canary.id, canary.sha256) == ("en-1", sha256(manifest).hexdigest())
    assert len(ready.server.artifacts) == 4
    assert not ready.json("canary", "publish", "asr", folder)["published"]


def test_a_new_canary_set_takes_the_place_of_the_old(
    ready: Desk, tmp_path: Path, files: list[Path]
) -> None:
    assert ready.run("release", "publish", "asr", "r1", files[0]) == 0
    for name in ("en-1", "en-2"):
        assert ready.run("canary", "publish", "asr", canary_set(tmp_path / name, name)) == 0
    family = family_of(ready)
    assert family.canary is not None
    assert (family.canary.id, list(family.releases)) == ("en-2", ["r1"])


def test_a_canary_set_never_changes_under_one_name(ready: Desk, tmp_path: Path) -> None:
    assert ready.run("canary", "publish", "asr", canary_set(tmp_path / "a")) == 0
    assert ready.run("canary", "publish", "asr", canary_set(tmp_path / "b", ref_words=91)) == 1
    assert "new name" in ready.err
    assert ready.server.newest["family-asr"] == 1


@pytest.mark.parametrize(
    "changes",
    [
        {"sha256": "0" * 64},
        {"bytes": 1},
        {"file": "../set/shard-0.zip"},
        {"file": ".."},
        {"file": "nothing.zip"},
        {"id": 1},
        {"utterances": 0},
        {"ref_words": "90"},
        {"extra": 1},
    ],
    ids=str,
)
def test_a_canary_set_that_does_not_fit_is_refused(
    ready: Desk, tmp_path: Path, changes: dict[str, Any]
) -> None:
    assert ready.run("canary", "publish", "asr", canary_set(tmp_path / "set", **changes)) == 1
    assert ready.server.artifacts == {}
    assert "family-asr" not in ready.server.newest


@pytest.mark.parametrize("text", ["", "[]", "{}", '{"shards": []}', '{"shards": [1]}', "\x00"])
def test_a_manifest_that_is_none_is_refused(ready: Desk, tmp_path: Path, text: str) -> None:
    (tmp_path / "set").mkdir()
    (tmp_path / "set/canary.json").write_text(text)
    assert ready.run("canary", "publish", "asr", tmp_path / "set") == 1
    assert "canary.json" in ready.err


@pytest.mark.parametrize("name", ["canary/en/1", "", "EN", None])
def test_a_canary_set_needs_a_name(ready: Desk, tmp_path: Path, name: Any) -> None:
    assert ready.run("canary", "publish", "asr", canary_set(tmp_path / "set", name)) == 1
    assert "for example en-1" in ready.err
