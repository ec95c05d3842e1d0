from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.release_manager.desk import Desk, family_of


def make_patch(desk: Desk, base: Path, target: Path, out: Path) -> Path:
    assert desk.run("diff", "make", base, target, "-o", out) == 0, desk.err
    return out


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


def test_publishing_says_what_devices_will_download(
    published: Desk, files: list[Path], patch: Path
) -> None:
    words = ["release", "publish", "asr", "r2", files[1], "--patch", patch]
    size, full = patch.stat().st_size, files[1].stat().st_size
    assert published.json(*words)["downloads"] == [
        {"from": "r1", "kind": "sparse", "bytes": size, "share": size / full},
        {"from": "any other", "kind": "full", "bytes": full, "share": 1.0},
    ]
    assert published.run(*words) == 0
    table = [line.split() for line in published.out.splitlines()[-3:]]
    assert table[0] == ["FROM", "KIND", "BYTES", "SHARE"]
    assert table[1] == ["r1", "sparse", str(size), "bytes", f"{100 * size / full:.2f}", "%"]


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


@pytest.mark.attack("M27")
def test_the_way_back_ends_when_it_was_asked_to(
    published: Desk, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("release_manager.releases.time", lambda: 1_000_000_000.5)
    words = ["release", "publish", "asr", "r2", files[1], "--rollback-from-here"]
    assert published.json(*words, "--rollback-days", "14")["back_to"] == ["r1"]
    assert family_of(published).releases["r1"].rollback_until == 1_000_000_000 + 14 * 86_400
    signed = family_of(published)
    published.json(*words)  # again, without an end: the edge is there, and stays as it is
    assert family_of(published) == signed
    published.json("release", "withdraw", "asr", "r2", "--fallback", "r1")
    assert family_of(published).releases["r1"].rollback_until == 0  # what has ended opens again


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
    "change",
    [["--hardware", "h1"], ["--format", "gguf"], ["--min-agent", "1.0.0"], "another file"],
    ids=str,
)
def test_a_release_never_changes(published: Desk, files: list[Path], change: Any) -> None:
    words = ["release", "publish", "asr", "r1"]
    words += [files[1]] if change == "another file" else [files[0], *change]
    assert published.run(*words) == 1
    assert "never changes" in published.err
    assert nothing_signed(published)


def test_a_release_asks_for_an_agent(published: Desk, files: list[Path]) -> None:
    words: list[str | Path] = ["release", "publish", "asr", "r2", files[1], "--min-agent"]
    for bad in ("1.2", "v1.2.0", "1.2.0-rc1", "01.2.0", "latest", ""):
        assert published.run(*words, bad) == 2
        assert "is not a version: three numbers, as 1.20.0" in published.err
    assert nothing_signed(published)
    assert published.json(*words, "1.20.0")["published"]
    assert family_of(published).releases["r2"].min_agent == "1.20.0"


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
