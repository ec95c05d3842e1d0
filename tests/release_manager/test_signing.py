"""Two people on two machines sign one document, and what one could be made to sign."""

from datetime import timedelta
from hashlib import sha256
from io import StringIO
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from release_manager import metadata
from release_manager.client import Client
from service.db.tables import MetadataFile
from service.publishing.drafts import draft_of
from tests.release_manager.town import Town, what
from trust import sign
from trust.accept import canonical
from trust.roles import Release

EVIL = Release("r0", 9, "active", "e" * 64, 666, "safetensors", (), ())


def test_the_second_signature_publishes(team: Town) -> None:
    assert "family-asr" not in team.world.ok("GET", "/v1/metadata")
    once = team.ben.sign("family-asr")
    assert (once["missing"], once["published"]) == (1, False)
    assert [draft["signed_by"] for draft in team.drafts()] == [[once["keyid"]]]
    twice = team.carl.sign("family-asr")
    assert (twice["missing"], twice["published"], twice["version"]) == (0, True, 1)
    assert list(team.family().releases) == ["r1"] and team.drafts() == []


def test_each_person_is_shown_what_the_signature_changes(
    team: Town, files: list[Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    first = team.ben.sign("family-asr")
    assert "added target asr/r1.model" in what(first)
    team.carl.sign("family-asr")
    later = metadata.utc_now() + timedelta(hours=1)
    monkeypatch.setattr(metadata, "utc_now", lambda: later)
    words = ("release", "publish", "asr", "r2", files[1], "--rollback-from-here")
    assert team.anne.run(*words) == 0
    assert "staged; signatures missing: 2; its holders sign it with" in team.anne.out
    key = team.ben.folder / "family-asr.pem"
    assert team.ben.run("sign", "family-asr", "--key", key, "--yes") == 0
    lines = team.ben.err.splitlines()
    assert lines[0] == "family-asr 2, signatures missing: 2"
    assert "changed  version: 1 -> 2" in lines
    assert 'changed  target asr/r1.model custom rollback_from: [] -> ["r2"]' in lines
    assert any(line.startswith("added    target asr/r2.model: ") for line in lines)
    assert any(line.startswith("changed  expires: ") for line in lines)
    assert len(lines) == 5
    assert team.ben.out == "signed family-asr 2; missing: 1\n"


@pytest.mark.attack("M49")
def test_each_person_is_shown_the_components_and_the_agent_that_a_release_asks_for(
    team: Town, files: list[Path], tmp_path: Path
) -> None:
    team.ben.sign("family-asr")
    team.carl.sign("family-asr")
    tokens = tmp_path / "tokens"
    tokens.write_bytes(b"tokens")
    needs = ["--component", f"tokenizer.json={tokens}", "--min-agent", "1.20.0"]
    assert team.anne.run("release", "publish", "asr", "r2", files[1], *needs) == 0, team.anne.err
    key = team.ben.folder / "family-asr.pem"
    assert team.ben.run("sign", "family-asr", "--key", key, "--yes") == 0
    digest = sha256(b"tokens").hexdigest()
    lines = team.ben.err.splitlines()
    (release,) = (line for line in lines if "target asr/r2.model" in line)
    named = f'[{{"length": 6, "name": "tokenizer.json", "sha256": "{digest}"}}]'
    assert f"custom.components={named}" in release
    assert 'custom.min_agent="1.20.0"' in release
    (listed,) = (line for line in lines if line.startswith(f"added    target asr/{digest}"))
    assert "length=6" in listed and digest in listed.split(":", 1)[1]
    assert team.carl.sign("family-asr")["published"]
    assert [c.name for c in team.family().releases["r2"].components] == ["tokenizer.json"]


def test_a_draft_that_waits_is_not_staged_twice_nor_replaced(team: Town, files: list[Path]) -> None:
    team.ben.sign("family-asr")
    again = team.anne.json("release", "publish", "asr", "r1", files[0])
    assert (again["published"], again["staged"]["missing"]) == (False, 1)
    assert team.carl.run("release", "publish", "asr", "r9", files[1]) == 1
    assert "another draft of family-asr waits" in team.carl.err
    assert [draft["missing"] for draft in team.drafts()] == [1]
    assert team.carl.json("draft", "drop", "family-asr")["dropped"]
    assert team.carl.json("release", "publish", "asr", "r9", files[1])["staged"]["missing"] == 2


def test_nobody_is_asked_where_nobody_is(team: Town, monkeypatch: pytest.MonkeyPatch) -> None:
    words = ["sign", "family-asr", "--key", str(team.ben.folder / "family-asr.pem")]
    assert team.ben.run(*words) == 2
    assert "--yes" in team.ben.err and "added    target asr/r1.model" in team.ben.err
    for answer, code, missing in (("n", 1, 2), ("", 1, 2), ("y", 0, 1)):
        typed = StringIO(f"{answer}\n")
        typed.isatty = lambda: True  # type: ignore[method-assign]
        monkeypatch.setattr("sys.stdin", typed)
        assert team.ben.run(*words, "--json") == code
        assert "sign this? [y/N]" in team.ben.err and "sign this" not in team.ben.out
        assert team.drafts()[0]["missing"] == missing


def test_a_key_of_somebody_else_does_not_sign(team: Town) -> None:
    for name in ("targets", "root"):
        key = team.ben.folder / f"{name}.pem"
        assert team.ben.run("sign", "family-asr", "--key", key, "--yes") == 1
        assert "may not sign this" in team.ben.err
    assert team.publisher.run("key", "make", team.publisher.folder / "x.pem") == 0
    assert (
        team.ben.run("sign", "family-asr", "--key", team.publisher.folder / "x.pem", "--yes") == 1
    )
    assert team.drafts()[0]["missing"] == 2


def test_what_does_not_wait_is_not_signed(team: Town) -> None:
    assert team.ben.run("sign", "root", "--key", team.ben.folder / "root.pem", "--yes") == 1
    assert "no draft of root waits" in team.ben.err
    assert team.ben.run("sign", "family-tts", "--yes") == 1
    assert team.ben.run("draft", "drop", "root") == 1


def forge(town: Town, document: Metadata[Any]) -> None:
    """Put a document in the place of the draft, as whoever owns the server can."""
    with town.world.app.state.database.writer() as session:
        draft_of(session, "family-asr").body = canonical(document)


@pytest.mark.attack("A16")
def test_a_server_that_changes_the_draft_between_two_people_wins_nothing(team: Town) -> None:
    team.ben.sign("family-asr")
    body = team.world.call("GET", "/v1/drafts/family-asr").content
    honest = Metadata[Targets].from_bytes(body)
    evil = sign.next_family(None, [sign.target_of("asr", EVIL)], team.world.now)
    evil.signatures = honest.signatures
    forge(team, evil)
    # Carl is shown what he would sign; Ben's signature is not one of this document.
    assert team.carl.run("sign", "family-asr", "--key", team.carl.folder / "family-asr.pem") == 2
    assert team.carl.err.splitlines()[0] == "family-asr 1, signatures missing: 2"
    assert "asr/r0.model" in team.carl.err and "e" * 64 in team.carl.err
    assert "family-asr" not in team.world.ok("GET", "/v1/metadata")


@pytest.mark.attack("A16")
def test_a_name_with_a_line_break_makes_no_line_of_its_own(team: Town) -> None:
    body = team.world.call("GET", "/v1/drafts/family-asr").content
    document = Metadata[Targets].from_bytes(body)
    document.signed.unrecognized_fields["x\nremoved  target asr/r1.model"] = 1
    forge(team, document)
    assert team.ben.run("sign", "family-asr", "--key", team.ben.folder / "family-asr.pem") == 2
    lines = team.ben.err.splitlines()
    assert any(r"x\nremoved  target" in line for line in lines)
    assert not any(line.startswith("removed") for line in lines)


@pytest.mark.attack("A15", "A16")
def test_a_draft_that_breaks_a_rule_is_not_even_shown(team: Town, files: list[Path]) -> None:
    team.ben.sign("family-asr")
    team.carl.sign("family-asr")
    assert team.anne.run("release", "withdraw", "asr", "r1") == 0
    team.ben.sign("family-asr")
    team.carl.sign("family-asr")
    assert team.anne.run("release", "publish", "asr", "r2", files[1]) == 0
    current = Metadata[Targets].from_bytes(team.newest("family-asr")).signed
    revived = team.family().releases["r1"]
    back = Release(**{**vars(revived), "status": "active"})
    cases = [
        (
            sign.next_family(current, [sign.target_of("asr", back)], team.world.now),
            "E_WITHDRAWN",
        )
    ]
    skipped = sign.next_family(current, [], team.world.now)
    skipped.signed.version += 1
    cases.append((skipped, "E_ROLLBACK_META"))
    vanished = sign.next_family(current, [], team.world.now)
    vanished.signed.targets = {}
    cases.append((vanished, "E_EQUIVOCATION"))
    eternal = sign.next_family(current, [], team.world.now)
    eternal.signed.expires = eternal.signed.expires.replace(year=2050)
    cases.append((eternal, "E_CLOCK"))
    for document, code in cases:
        forge(team, document)
        words = ("sign", "family-asr", "--key", team.ben.folder / "family-asr.pem", "--yes")
        assert team.ben.run(*words) == 1
        assert team.ben.err.startswith(f"fleetdiff: {code}: "), team.ben.err


def test_a_server_that_hides_the_newest_version_gets_no_signature(
    team: Town, files: list[Path]
) -> None:
    """Else it could collect signatures for a branch in which a withdrawal never happened."""
    team.ben.sign("family-asr")
    team.carl.sign("family-asr")
    assert team.anne.run("release", "publish", "asr", "r2", files[1]) == 0
    with team.world.app.state.database.writer() as session:
        session.delete(session.get(MetadataFile, ("family-asr", 1)))
    # Both saw version 1 before they signed nothing more; only Anne fetched it since.
    assert team.anne.run("sign", "family-asr", "--key", team.anne.folder / "family-asr.pem") == 1
    assert team.anne.err.startswith("fleetdiff: E_ROLLBACK_META: ")


def test_a_reply_that_is_lost_after_the_last_signature_is_no_failure(
    team: Town, monkeypatch: pytest.MonkeyPatch
) -> None:
    team.ben.sign("family-asr")
    put = Client.put

    def lose(client: Client, path: str, body: Any) -> Any:
        put(client, path, body)
        return put(client, path, body)  # as after a lost reply: sent again

    monkeypatch.setattr(Client, "put", lose)
    done = team.carl.sign("family-asr")
    assert (done["missing"], done["published"]) == (0, True)
