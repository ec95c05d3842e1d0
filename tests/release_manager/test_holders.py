"""Who signs for a role: handed over, never to fewer people or weaker keys than allowed."""

import json

import pytest
from tuf.api.metadata import Metadata, Root, Targets

from release_manager.signers import SECRET_VARIABLE
from tests.release_manager.town import Machine, Town, what
from trust import sign


def test_a_release_manager_is_replaced_by_another(both: Town) -> None:
    dora = Machine(both, "dora")
    dora.folder.mkdir()
    (dora.folder / "root.json").write_bytes((both.anne.folder / "root.json").read_bytes())
    gone = json.loads(both.carl.key("family-asr").read_bytes())["keyid"]
    rotate = ["key", "rotate", "family-asr"]
    # What Ben and Carl signed would be left with one signature, and every device would refuse it.
    words = [*rotate, "--add", str(dora.key("family-asr")), "--remove", gone]
    assert both.anne.run(*words) == 1
    assert "1 signature would be missing" in both.anne.err
    assert both.anne.json(*words[:-2])["staged"]["missing"] == 2
    both.anne.sign("targets")
    shown = both.ben.sign("targets")
    assert shown["published"] and "changed delegated role family-asr keyids" in what(shown)
    assert both.anne.run("release", "refresh", "asr") == 0
    dora.sign("family-asr")
    assert both.anne.sign("family-asr")["published"]
    assert both.anne.run(*rotate, "--remove", gone) == 0
    both.anne.sign("targets")
    assert f"removed delegated key {gone}" in what(both.ben.sign("targets"))
    assert both.anne.run("release", "retire", "asr", "r1") == 0
    key = both.carl.folder / "family-asr.pem"
    assert both.carl.run("sign", "family-asr", "--key", key, "--yes") == 1
    dora.sign("family-asr")
    assert both.ben.sign("family-asr")["published"]


def test_online_keys_are_replaced_by_a_new_root(team: Town) -> None:
    before = Metadata[Root].from_bytes(team.newest("root")).signed
    old = before.roles["timestamp"].keyids[0]
    new = Machine(team, "publisher2").key("timestamp")
    words = ["key", "rotate", "timestamp", "--add", str(new), "--remove", old]
    assert team.ben.json(*words)["staged"]["missing"] == 2
    team.anne.sign("root")
    assert team.carl.sign("root")["published"]
    after = Metadata[Root].from_bytes(team.newest("root")).signed
    assert (after.version, old in after.keys) == (2, False)
    director = Machine(team, "publisher3").key("director")
    targets = Metadata[Targets].from_bytes(team.newest("targets")).signed
    gone = targets.get_delegated_role("director").keyids[0]
    assert team.ben.run("key", "rotate", "director", "--add", director, "--remove", gone) == 0
    team.anne.sign("targets")
    assert team.ben.sign("targets")["published"]


@pytest.mark.attack("M31", "M32")
def test_root_is_handed_over_person_by_person_and_machines_follow_from_version_1(
    team: Town,
) -> None:
    """Three roots later the pinned one still leads to the newest; each took old and new keys."""
    dora = Machine(team, "dora")
    dora.folder.mkdir()
    pinned = team.anne.folder / "root.json"
    (dora.folder / "root.json").write_bytes(pinned.read_bytes())
    for round_, gone in enumerate(("anne", "ben", "carl")):
        role = "root" if round_ == 0 else f"root-{round_}"
        public = dora.key(role)
        keyid = json.loads((team.home / gone / "root.pem.pub").read_bytes())["keyid"]
        words = ["key", "rotate", "root", "--add", str(public), "--remove", keyid]
        missing = dora.json(*words)["staged"]["missing"]
        assert missing in (2, 3)
        signers: list[tuple[Machine, str]] = [(p, "root") for p in team.people]
        signers += [(dora, "root"), (dora, "root-1"), (dora, "root-2")]
        for person, name in signers:
            if not team.drafts():
                break
            key = person.folder / f"{name}.pem"
            if key.exists():
                person.run("sign", "root", "--key", key, "--yes")
        assert team.world.ok("GET", "/v1/metadata")["root"] == round_ + 2
    assert team.carl.run("release", "list", "asr") == 0
    assert team.ben.sign("family-asr")["missing"] == 1
    seen = json.loads((team.ben.folder / "seen.json").read_bytes())
    assert seen["root"][0] == 4
    newest = Metadata[Root].from_bytes(team.newest("root")).signed
    held = {k for k in newest.roles["root"].keyids}
    assert not held & {json.loads(p.key("root").read_bytes())["keyid"] for p in team.people}


def test_targets_pass_into_other_hands_in_three_steps(team: Town) -> None:
    """As after a theft: new keys are added, they sign what shall be, the old ones are dropped."""
    new = [Machine(team, name) for name in ("dora", "emil")]
    for person in new:
        person.folder.mkdir()
        (person.folder / "root.json").write_bytes((team.anne.folder / "root.json").read_bytes())
    added = [word for person in new for word in ("--add", str(person.key("targets")))]
    ids = [json.loads(person.key("targets").read_bytes())["keyid"] for person in team.people]
    dropped = [word for keyid in ids for word in ("--remove", keyid)]
    assert team.anne.run("key", "rotate", "targets", *added, *dropped) == 1
    assert "first let those sign targets again" in team.anne.err
    steps = [("root", added, team.people), ("targets", [], new), ("root", dropped, team.people)]
    for role, words, holders in steps:
        assert team.anne.json("key", "rotate", "targets", *words)["staged"]["role"] == role
        assert [person.sign(role)["published"] for person in holders[:2]] == [False, True]
    assert team.anne.run("key", "rotate", "targets") == 0
    key = team.anne.folder / "targets.pem"
    assert team.anne.run("sign", "targets", "--key", key, "--yes") == 1
    assert [person.sign("targets")["published"] for person in new] == [False, True]


@pytest.mark.parametrize("role", ["root", "targets"])
def test_root_and_targets_are_signed_again_as_they_are(team: Town, role: str) -> None:
    before = team.world.ok("GET", "/v1/metadata")
    staged = team.anne.json("key", "rotate", role)["staged"]
    assert (staged["role"], staged["missing"]) == (role, 2)
    team.anne.sign(role)
    shown = team.ben.sign(role)
    assert shown["published"] and set(what(shown)) <= {"changed version", "changed expires"}
    assert team.world.ok("GET", "/v1/metadata") == before | {role: before[role] + 1}


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["root", "--threshold", "1"], "at least 2"),
        (["targets", "--threshold", "4"], "asks for 4 of 3"),
        (["family-asr", "--threshold", "1"], "at least 2"),
        (["family-asr", "--remove", "0" * 64], "has no key"),
        (["family-tts"], "nobody signs"),
        (["root", "--threshold", "9"], "asks for 9 of 3"),
    ],
)
@pytest.mark.attack("M35")
def test_a_rule_about_keys_is_broken_by_nobody(team: Town, words: list[str], said: str) -> None:
    before = team.drafts()
    assert team.anne.run("key", "rotate", *words) == 1
    assert said in team.anne.err
    assert team.drafts() == before


def test_a_key_that_serves_elsewhere_is_not_added(team: Town) -> None:
    for role, other in (("family-asr", "root"), ("root", "family-asr"), ("timestamp", "targets")):
        public = team.carl.key(other)
        assert team.anne.run("key", "rotate", role, "--add", public) == 1
        assert "serves in another role" in team.anne.err


def test_a_key_is_not_added_twice(team: Town) -> None:
    for role in ("root", "family-asr"):
        assert team.anne.run("key", "rotate", role, "--add", team.carl.key(role)) == 1
        assert "asks for 2 of 3 different keys" in team.anne.err
    words = ["--add", team.ben.key("family-tts")] * 2
    assert team.anne.run("model", "create", "tts", *words, "--threshold", "2") == 1
    assert "asks for 2 of 1 different keys" in team.anne.err


def test_a_family_that_others_sign_is_not_taken_over_by_making_it_again(team: Town) -> None:
    mine = Machine(team, "eve").key("family-asr")
    assert team.anne.run("model", "create", "asr", "--add", mine) == 1
    assert "others sign asr already" in team.anne.err


def test_one_person_alone_does_not_make_a_model_of_a_product(team: Town) -> None:
    assert team.anne.run("model", "create", "tts") == 1
    assert "at least 2" in team.anne.err


def test_a_passphrase_is_asked_for_where_a_key_has_one(
    team: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sign, "BCRYPT_ROUNDS", 1)
    file = team.ben.folder / "secret.pem"
    monkeypatch.setenv(SECRET_VARIABLE, "correct horse")
    assert team.ben.run("key", "make", file, "--passphrase") == 0
    gone = json.loads(team.ben.key("family-asr").read_bytes())["keyid"]
    words = ["key", "rotate", "family-asr", "--add", f"{file}.pub", "--remove", gone]
    assert team.anne.run(*words) == 0
    team.anne.sign("targets")
    team.ben.sign("targets")
    signing = ("sign", "family-asr", "--key", file, "--yes")
    monkeypatch.setenv(SECRET_VARIABLE, "wrong")
    assert team.ben.run(*signing) == 1
    monkeypatch.delenv(SECRET_VARIABLE)
    assert team.ben.run(*signing) == 2
    assert SECRET_VARIABLE in team.ben.err
    monkeypatch.setattr("sys.stdin.isatty", lambda: True)
    monkeypatch.setattr("getpass.getpass", lambda _: "correct horse")
    assert team.ben.run(*signing) == 0
    assert team.drafts()[0]["missing"] == 1
