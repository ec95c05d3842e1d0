"""The first root and targets: signed by several people before there is a server."""

import json
import shutil
import stat
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from device_agent.config import read_root
from device_agent.errors import Misconfigured
from tests.release_manager.desk import Desk
from tests.release_manager.town import Machine, Town
from trust.accept import accept


def signing(person: Machine, role: str, file: Path) -> list[str]:
    return ["sign", str(file), "--key", str(person.folder / f"{role}.pem"), "--yes"]


@pytest.fixture
def begun(the_town: Town) -> Town:
    """A town whose root and targets are written and not signed yet."""
    done = the_town.anne.json("init", "--ceremony", the_town.ceremony())
    assert done["made"] == ["root.json", "targets.json"]
    return the_town


def test_two_people_on_two_machines_sign_the_first_root(begun: Town) -> None:
    file = begun.anne.folder / "root.json"
    once = begun.anne.sign("root", file)
    assert (once["missing"], once["published"]) == (1, False)
    carried = begun.ben.folder / "root.json"
    shutil.copy(file, carried)
    assert begun.ben.sign("root", carried)["missing"] == 0
    root = accept("root", carried.read_bytes(), None, None, begun.world.now)
    assert len(root.signatures) == 2
    assert stat.S_IMODE(carried.stat().st_mode) == stat.S_IMODE(file.stat().st_mode) == 0o644
    assert [root.signed.roles[r].threshold for r in ("root", "targets", "timestamp")] == [2, 2, 1]
    assert root.signed.unrecognized_fields == {}


def test_people_see_every_key_that_they_sign(begun: Town) -> None:
    file = begun.anne.folder / "root.json"
    assert begun.ben.run(*signing(begun.ben, "root", file)) == 0
    holders = [(person, role) for person in begun.people for role in ("root", "targets")]
    holders += [(begun.publisher, role) for role in ("snapshot", "timestamp")]
    said = begun.ben.err
    for person, role in holders:
        assert json.loads(person.key(role).read_bytes())["public"] in said


def test_targets_are_signed_after_root(begun: Town) -> None:
    file = begun.anne.folder / "targets.json"
    assert begun.anne.run(*signing(begun.anne, "targets", file)) == 1
    assert "root has 0 of 2 signatures" in begun.anne.err
    for person in (begun.ben, begun.carl):
        person.sign("root", begun.anne.folder / "root.json")
    for person in (begun.ben, begun.carl):
        missing = person.sign("targets", file)["missing"]
    assert missing == 0
    root = Metadata[Root].from_file(str(begun.anne.folder / "root.json"))
    targets = accept("targets", file.read_bytes(), root.signed, None, begun.world.now)
    assert isinstance(targets.signed, Targets)


def test_the_server_gets_root_and_targets_only_when_enough_signed(begun: Town) -> None:
    root, targets = begun.anne.folder / "root.json", begun.anne.folder / "targets.json"
    begun.anne.sign("root", root)
    assert begun.anne.run("init", "--publish") == 1
    assert "root has 1 of 2 signatures" in begun.anne.err
    begun.ben.sign("root", root)
    begun.ben.sign("targets", targets)
    assert begun.anne.run("init", "--publish") == 1
    assert "targets has 1 of 2 signatures" in begun.anne.err
    begun.carl.sign("targets", targets)
    assert begun.anne.json("init", "--publish")["published"]
    assert begun.world.ok("GET", "/v1/metadata") == {"root": 1, "targets": 1}
    assert not begun.anne.json("init", "--publish")["published"]


def test_a_file_that_was_changed_on_its_way_has_lost_its_signatures(begun: Town) -> None:
    file = begun.anne.folder / "root.json"
    begun.anne.sign("root", file)
    body = file.read_bytes()
    file.write_bytes(body.replace(b'"threshold":2', b'"threshold":3', 1))
    assert begun.ben.sign("root", file)["missing"] >= 2
    file.write_bytes(body.replace(b'"threshold":2', b'"threshold":1', 1))
    assert begun.ben.run(*signing(begun.ben, "root", file)) == 1
    assert "E_SIG" in begun.ben.err


def test_a_key_of_another_role_does_not_sign_the_root(begun: Town) -> None:
    file = begun.anne.folder / "root.json"
    before = file.read_bytes()
    for role in ("targets", "family-asr"):
        begun.ben.key(role)
        words = ["sign", str(file), "--key", str(begun.ben.folder / f"{role}.pem"), "--yes"]
        assert begun.ben.run(*words) == 1
        assert "may not sign this" in begun.ben.err
    assert begun.ben.run("sign", file, "--yes") == 2
    assert file.read_bytes() == before


def test_a_ceremony_is_not_begun_over_another(begun: Town) -> None:
    before = (begun.anne.folder / "root.json").read_bytes()
    assert begun.anne.run("init", "--ceremony", begun.ceremony()) == 1
    assert "there already" in begun.anne.err
    assert (begun.anne.folder / "root.json").read_bytes() == before


def one_key(town: Town, role: str, of: str, threshold: int = 1) -> str:
    return f"threshold = {threshold}\nkeys = {json.dumps([str(town.anne.key(of))])}"


@pytest.mark.attack("M34", "M35")
@pytest.mark.parametrize(
    ("role", "of", "threshold", "said"),
    [
        ("root", "root", 1, "at least 2"),
        ("root", "root", 2, "asks for 2 of 1"),
        ("targets", "targets", 1, "at least 2"),
        ("targets", "targets", 0, "asks for 0 of 1"),
        ("snapshot", "snapshot", 2, "asks for 2 of 1"),
        ("snapshot", "snapshot", 0, "asks for 0 of 1"),
        ("snapshot", "root", 1, "another role"),
        ("timestamp", "targets", 1, "another role"),
        ("director", "root", 1, "another role"),
        ("director", "targets", 1, "another role"),
    ],
)
def test_a_ceremony_that_breaks_a_rule_makes_nothing(
    the_town: Town, role: str, of: str, threshold: int, said: str
) -> None:
    file = the_town.ceremony(**{role: one_key(the_town, role, of, threshold)})
    assert the_town.anne.run("init", "--ceremony", file) == 1
    assert said in the_town.anne.err
    assert not (the_town.anne.folder / "root.json").exists()


@pytest.mark.parametrize(
    "text", ["", "[root]", "root = 1", "not toml", 'x = "\udcff"', "[root]\nkeys = [1]"]
)
def test_a_file_that_is_no_ceremony_is_refused(the_town: Town, tmp_path: Path, text: str) -> None:
    file = tmp_path / "bad.toml"
    file.write_text(text, errors="surrogateescape")
    assert the_town.anne.run("init", "--ceremony", file) == 1
    assert "bad.toml is no ceremony" in the_town.anne.err


@pytest.mark.parametrize("body", [b"", b"{}", b"[1]", b'{"signed": 1}', b"\xff", b"[" * 60_000])
def test_a_file_that_is_no_document_is_not_signed(
    the_town: Town, tmp_path: Path, body: bytes
) -> None:
    (tmp_path / "root.json").write_bytes(body)
    assert the_town.anne.run("sign", tmp_path / "root.json", "--key", "x.pem") == 1
    assert "is no signed document" in the_town.anne.err


def test_a_device_of_a_product_refuses_a_root_for_development(
    begun: Town, desk: Desk, tmp_path: Path
) -> None:
    assert desk.run("init", "--dev") == 0

    def config(root: Path, dev_root: bool = False) -> Any:
        return SimpleNamespace(root=root, dev_root=dev_root)

    with pytest.raises(Misconfigured, match="development root"):
        read_root(config(desk.keys / "root.json"))
    read_root(config(desk.keys / "root.json", dev_root=True))
    for person in (begun.anne, begun.ben):
        person.sign("root", begun.anne.folder / "root.json")
    read_root(config(begun.anne.folder / "root.json"))
