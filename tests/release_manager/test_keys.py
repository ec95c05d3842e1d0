import stat
from datetime import UTC, datetime
from pathlib import Path

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from release_manager.keys import KeyFolder, make_keys
from tests.release_manager.desk import Desk
from tests.release_manager.fake_server import TOKEN
from trust.accept import accept
from trust.sign import generate_key

ALL = [
    "offline/root.pem",
    "offline/targets.pem",
    "online/director.pem",
    "online/snapshot.pem",
    "online/timestamp.pem",
    "root.json",
]


def contents(folder: Path) -> dict[str, bytes]:
    return {
        str(path.relative_to(folder)): path.read_bytes()
        for path in sorted(folder.rglob("*"))
        if path.is_file() and path.name != "seen.json"
    }


def test_init_makes_every_key_and_a_root_that_the_server_accepts(desk: Desk) -> None:
    done = desk.json("init", "--dev")
    assert sorted(done["made"]) == ALL == list(contents(desk.keys))
    assert done["published"]
    now = datetime.now(UTC)
    root = accept("root", desk.server.documents["1.root.json"], None, None, now)
    targets = desk.server.documents["1.targets.json"]
    accept("targets", targets, root.signed, None, now)
    assert contents(desk.keys)["root.json"] == desk.server.documents["1.root.json"]


def test_keys_are_readable_by_their_owner_only(desk: Desk) -> None:
    assert desk.run("init", "--dev") == 0
    for name in ALL[:-1]:
        assert stat.S_IMODE((desk.keys / name).stat().st_mode) == 0o600


def test_private_keys_are_never_printed_nor_sent(desk: Desk) -> None:
    assert desk.run("init", "--dev", "--json") == 0
    assert desk.run("model", "create", "asr", "--json") == 0
    secrets = [p.read_text().splitlines()[1] for p in desk.keys.rglob("*.pem")]
    sent = b"".join(body for _, _, body in desk.server.seen).decode()
    assert len(secrets) == 6
    assert not [s for s in secrets if s in desk.everything or s in sent]


def test_init_again_changes_nothing(desk: Desk) -> None:
    assert desk.run("init", "--dev") == 0
    before = contents(desk.keys)
    again = desk.json("init", "--dev")
    assert (again["made"], again["published"]) == ([], False)
    assert contents(desk.keys) == before


@pytest.mark.parametrize("made", range(6))
def test_init_finishes_what_a_power_cut_left(desk: Desk, made: int) -> None:
    generated = [desk.keys / name for name in ALL[:made] if name.endswith(".pem")]
    for path in generated:
        generate_key(path)
    before = contents(desk.keys)
    assert desk.run("init", "--dev") == 0, desk.err
    after = contents(desk.keys)
    assert list(after) == ALL
    assert {name: after[name] for name in before} == before


def test_init_does_not_use_keys_that_root_does_not_name(desk: Desk, tmp_path: Path) -> None:
    assert desk.run("init", "--dev") == 0
    (desk.keys / "offline/targets.pem").unlink()
    generate_key(desk.keys / "offline/targets.pem")
    before = contents(desk.keys)
    assert desk.run("init", "--dev") == 1
    assert "targets.pem" in desk.err
    assert contents(desk.keys) == before


@pytest.mark.parametrize("damage", [b"", b"{}", b"not json", b"\xff"])
def test_init_refuses_a_root_it_cannot_read(desk: Desk, damage: bytes) -> None:
    desk.keys.mkdir()
    (desk.keys / "root.json").write_bytes(damage)
    assert desk.run("init", "--dev") == 1
    assert contents(desk.keys) == {"root.json": damage}


def test_init_refuses_half_a_key(desk: Desk) -> None:
    (desk.keys / "offline").mkdir(parents=True)
    (desk.keys / "offline/root.pem").write_bytes(b"")
    assert desk.run("init", "--dev") == 1
    assert "root.pem" in desk.err
    assert not (desk.keys / "root.json").exists()


def test_without_a_server_init_says_what_to_run_later(
    desk: Desk, monkeypatch: pytest.MonkeyPatch
) -> None:
    for name in ("SERVER", "TOKEN"):
        monkeypatch.delenv(f"FLEETDIFF_{name}")
    assert desk.run("init", "--dev") == 0
    assert f"fleetdiff init --publish --keys {desk.keys}" in desk.out
    assert desk.server.seen == []
    words = ["init", "--publish", "--server", desk.server.address, "--token", TOKEN]
    assert desk.json(*words)["published"]
    assert desk.server.newest == {"root": 1, "targets": 1}


def test_keys_outlive_a_server_that_is_away(desk: Desk) -> None:
    desk.server.fail = [(503, {})] * 5
    assert desk.run("init", "--dev") == 75
    assert "the keys are made" in desk.err
    assert desk.json("init", "--publish")["published"]


def test_a_server_with_another_root_is_refused(desk: Desk, tmp_path: Path) -> None:
    other = KeyFolder(tmp_path / "other")
    make_keys(other, datetime.now(UTC))
    desk.server.documents["1.root.json"] = other.pinned_root()
    desk.server.newest["root"] = 1
    assert desk.run("init", "--dev") == 1
    assert "E_EQUIVOCATION" in desk.err
    assert "targets" not in desk.server.newest


def test_init_without_dev_says_what_is_missing(desk: Desk) -> None:
    assert desk.run("init") == 2
    assert "ceremony" in desk.err
    assert not desk.keys.exists()


def test_a_root_is_marked_as_one_for_development(desk: Desk) -> None:
    assert desk.run("init", "--dev") == 0
    root = Metadata[Root].from_file(str(desk.keys / "root.json")).signed
    assert root.unrecognized_fields == {"x-fleetdiff-profile": "dev"}


@pytest.mark.parametrize("role", ["timestamp", "director", "family-asr"])
def test_in_development_one_command_replaces_a_key(ready: Desk, tmp_path: Path, role: str) -> None:
    folder = "offline" if role.startswith("family") else "online"
    old = ready.json("key", "show", ready.keys / folder / f"{role}.pem")
    assert ready.run("key", "make", tmp_path / "new.pem") == 0
    words = ["--add", tmp_path / "new.pem.pub", "--remove", old["keyid"]]
    done = ready.json("key", "rotate", role, *words)
    assert done["published"] and old["keyid"] not in done["keys"]
    document = "root" if role == "timestamp" else "targets"
    assert (document, done["version"]) in ready.server.newest.items()


# --- models


def families(desk: Desk) -> list[str]:
    newest = desk.server.documents[f"{desk.server.newest['targets']}.targets.json"]
    delegations = Metadata[Targets].from_bytes(newest).signed.delegations
    assert delegations is not None
    return sorted(delegations.roles or {})


def test_a_model_gets_a_key_and_a_delegation(ready: Desk) -> None:
    assert (ready.keys / "offline/family-asr.pem").exists()
    assert families(ready) == ["director", "family-asr"]
    assert ready.run("model", "create", "tts") == 0
    assert families(ready) == ["director", "family-asr", "family-tts"]


def test_a_model_that_is_there_stays_as_it_is(ready: Desk) -> None:
    before = contents(ready.keys)
    again = ready.json("model", "create", "asr")
    assert (again["made"], again["delegated"]) == (False, False)
    assert contents(ready.keys) == before
    assert ready.server.newest["targets"] == 2


def test_a_model_whose_delegation_was_interrupted_is_finished(desk: Desk) -> None:
    assert desk.run("init", "--dev") == 0
    desk.server.models.append("asr")
    generate_key(desk.keys / "offline/family-asr.pem")
    assert desk.json("model", "create", "asr") == {
        "model": "asr",
        "made": False,
        "delegated": True,
        "key": str(desk.keys / "offline/family-asr.pem"),
    }


def test_a_lost_reply_is_not_taken_for_a_conflict(desk: Desk) -> None:
    assert desk.run("init", "--dev") == 0
    desk.server.lose_replies = ["/v1/metadata/targets"]
    assert desk.run("model", "create", "asr") == 0, desk.err
    assert desk.server.newest["targets"] == 2


def test_a_family_key_that_is_elsewhere_is_not_made_again(ready: Desk) -> None:
    key = ready.keys / "offline/family-asr.pem"
    key.unlink()
    assert ready.run("model", "create", "asr") == 0
    assert not key.exists()
    assert ready.server.newest["targets"] == 2


def test_a_family_key_is_not_replaced_silently(ready: Desk) -> None:
    key = ready.keys / "offline/family-asr.pem"
    key.unlink()
    generate_key(key)
    assert ready.run("model", "create", "asr") == 1
    assert "family-asr.pem" in ready.err
    assert ready.server.newest["targets"] == 2


def test_a_model_needs_a_root_on_the_server(desk: Desk, monkeypatch: pytest.MonkeyPatch) -> None:
    assert desk.run("model", "create", "asr") == 1
    assert "fleetdiff init" in desk.err
    make_keys(KeyFolder(desk.keys), datetime.now(UTC))
    assert desk.run("model", "create", "asr") == 1
    assert "fleetdiff init --publish" in desk.err
    assert desk.server.models == []


def test_the_director_may_live_elsewhere_once_it_is_delegated(ready: Desk) -> None:
    for path in (ready.keys / "online").iterdir():
        path.unlink()
    assert ready.run("model", "create", "tts") == 0, ready.err
    assert ready.run("init", "--dev") == 0, ready.err
    assert not list((ready.keys / "online").iterdir())
