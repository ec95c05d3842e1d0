import json
from hashlib import sha256
from pathlib import Path
from typing import Any

import pytest

from tests.release_manager.desk import Desk, family_of


def canary_set(folder: Path, name: str = "en-1", **changes: Any) -> Path:
    folder.mkdir()
    shards = []
    for number in range(3):
        body = f"recordings {name} {number}".encode()
        (folder / f"shard-{number}.zip").write_bytes(body)
        shards.append(
            {
                "id": f"{number:02}",
                "file": f"shard-{number}.zip",
                "sha256": sha256(body).hexdigest(),
                "bytes": len(body),
                "utterances": 20,
                "ref_words": 90,
            }
        )
    shards[0] |= changes
    document = {"name": name, "normaliser": "nfkc-casefold/1", "unit": "word", "shards": shards}
    (folder / "canary.json").write_text(json.dumps(document))
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
        {"id": "01"},
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


@pytest.mark.parametrize(
    "change",
    [
        {"normaliser": "whisper/1"},
        {"normaliser": None},
        {"unit": "words"},
        {"expires": "2020-01-01T00:00:00Z"},
        {"expires": "next year"},
        {"expires": 7},
    ],
)
def test_a_set_that_every_device_would_refuse_is_not_published(
    ready: Desk, tmp_path: Path, change: dict[str, Any]
) -> None:
    folder = canary_set(tmp_path / "set")
    file = folder / "canary.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | change))
    assert ready.run("canary", "publish", "asr", folder) == 1
    assert "is not a canary manifest" in ready.err
    assert not ready.server.artifacts
