"""`fleetdiff audit verify` against a real server whose database somebody changed."""

import re
from collections.abc import Callable, Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from sqlalchemy import text
from tuf.api.metadata import Metadata, Targets

from release_manager import audit as auditing
from release_manager.__main__ import main
from service.db.tables import AuditEntry
from tests.service.served import served
from tests.service.test_access import invitation
from tests.service.test_audit import log_of, told
from tests.service.world import World, refused
from trust.audit import SIGN, Head, entry_digest, follow, head_envelope, signed_head

Verify = Callable[[], tuple[int, str]]


@pytest.fixture
def verify(
    world_sqlite: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> Iterator[Verify]:
    """`fleetdiff audit verify` against the real server; returns its exit code and what it says."""
    with served(world_sqlite.app) as address:
        monkeypatch.setenv("XDG_CONFIG_HOME", str(tmp_path / "auditor"))
        monkeypatch.setenv("FLEETDIFF_SERVER", address)
        monkeypatch.setenv("FLEETDIFF_TOKEN", world_sqlite.token)

        def run() -> tuple[int, str]:
            return main(["audit", "verify"]), "".join(capsys.readouterr())

        yield run


def sql(world: World, statement: str) -> None:
    with world.app.state.database.writer() as session:
        session.execute(text(statement))


TAMPERED = {
    "an actor changed": ("UPDATE audit_entry SET actor = 'nobody' WHERE seq = 7", "7 .* changed"),
    "details changed": ("UPDATE audit_entry SET details = '{}' WHERE seq = 7", "7 .* changed"),
    "done made denied": ("UPDATE audit_entry SET result = 'denied' WHERE seq = 7", "7 .* changed"),
    "an entry removed": ("DELETE FROM audit_entry WHERE seq = 7", "7 .* missing"),
    "the first removed": ("DELETE FROM audit_entry WHERE seq = 1", "1 .* missing"),
    "two swapped": (
        "UPDATE audit_entry SET previous_sha256 = 'ab' WHERE seq = 7",
        "7 .* does not follow entry 6",
    ),
    "the tail cut off": ("DELETE FROM audit_entry WHERE seq >= 7", "ends after entry 6, but its"),
}


@pytest.mark.attack("A27")
@pytest.mark.parametrize("how", TAMPERED)
def test_a_log_that_sql_changed_is_not_verified_and_the_entry_is_named(
    world_sqlite: World, verify: Verify, how: str
) -> None:
    for _ in range(4):
        refused(world_sqlite.client.get("/v1/whoami"), 401)
        invitation(world_sqlite)
    assert verify()[0] == 0
    statement, says = TAMPERED[how]
    sql(world_sqlite, statement)
    code, said = verify()
    assert code == 1 and re.search(f"E_AUDIT: .*{says}", said), said
    assert len(said.splitlines()) == 2


def rewrite(world: World) -> Head:
    """Change who did everything, and make every link of the chain again."""
    head = Head()
    for entry in log_of(world):
        entry["actor"] = "nobody"
        entry["previous_sha256"] = head.sha256
        head = Head(entry["seq"], entry_digest(entry))
        links = f"previous_sha256 = '{entry['previous_sha256']}', sha256 = '{head.sha256}'"
        where = f"WHERE seq = {head.seq}"
        sql(world, f"UPDATE audit_entry SET actor = 'nobody', {links} {where}")
    sql(world, f"UPDATE audit_head SET sha256 = '{head.sha256}'")
    return head


@pytest.mark.attack("A27")
def test_a_log_that_was_written_anew_is_not_the_one_that_this_machine_saw(
    world_sqlite: World, verify: Verify
) -> None:
    assert verify()[0] == 0
    head = rewrite(world_sqlite)
    assert follow(Head(), log_of(world_sqlite)) == head, "the chain itself is whole"
    code, said = verify()
    assert code == 1 and f"entry {head.seq} " in said and "this machine saw before" in said


@pytest.mark.attack("A27")
def test_a_tail_cut_off_with_its_head_is_missed_by_whoever_saw_it(
    world_sqlite: World, verify: Verify
) -> None:
    assert verify()[0] == 0
    seen = log_of(world_sqlite)
    left = seen[-3]
    sql(world_sqlite, f"DELETE FROM audit_entry WHERE seq > {left['seq']}")
    sql(world_sqlite, f"UPDATE audit_head SET seq = {left['seq']}, sha256 = '{left['sha256']}'")
    code, said = verify()
    assert code == 1, said
    assert f"ends after entry {left['seq']}, but this machine saw entry {seen[-1]['seq']}" in said
    assert verify()[0] == 1, "what was seen is not forgotten by looking again"


@pytest.mark.parametrize("memory", [b"[]", b"{", b'{"http://s": 7}', b'{"http://s": ["x", ""]}'])
def test_a_damaged_memory_of_the_log_is_not_taken_for_an_empty_one(
    verify: Verify, tmp_path: Path, memory: bytes
) -> None:
    assert verify()[0] == 0
    (tmp_path / "auditor" / "fleetdiff" / "audit.json").write_bytes(memory)
    code, said = verify()
    assert code == 1 and "audit.json is damaged" in said and "remove it" in said


def test_a_whole_log_of_several_pages_is_verified_and_grows(
    world_sqlite: World, verify: Verify, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(auditing, "PAGE_MAX", 2)
    for _ in range(2):
        invitation(world_sqlite)
        code, said = verify()
        assert code == 0 and log_of(world_sqlite)[-1]["sha256"] in said


@pytest.mark.attack("A27")
def test_the_publisher_vouches_once_a_day_for_how_far_the_log_goes(
    world_sqlite: World, verify: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_sqlite
    keys = tmp_path / "auditors-keys"
    keys.mkdir()
    (keys / "root.json").write_bytes(world.call("GET", "/v1/metadata/1.root.json").content)
    monkeypatch.setenv("FLEETDIFF_KEYS", str(keys))
    assert re.search(r"signed to +0\n", verify()[1])
    world.tick()
    world.tick(60)
    first = told(world, "audit.sign")
    assert len(first) == 1 and re.search(rf"signed to +{first[0]['object']}\n", verify()[1])
    world.tick(86400)
    entry = told(world, "audit.sign")[1]
    assert int(entry["object"]) == entry["seq"] - 1
    assert re.search(rf"signed to +{entry['object']}\n", verify()[1])

    signed = (
        Metadata[Targets]
        .from_bytes(world.call("GET", "/v1/metadata/1.targets.json").content)
        .signed
    )
    head, envelope = Head(entry["seq"] - 1, entry["previous_sha256"]), entry["details"]["envelope"]
    assert signed_head(envelope, signed) == head
    assert signed_head(first[0]["details"]["envelope"], signed) != head
    strangers = head_envelope(head)
    strangers.sign(world.signers["timestamp"])
    other = head_envelope(Head(head.seq + 1, head.sha256)).to_dict()["payload"]
    for wrong in (
        strangers.to_dict(),
        envelope | {"payload": other},
        envelope | {"payloadType": "application/vnd.fleetdiff.order+json"},
        {},
        None,
    ):
        assert signed_head(wrong, signed) is None


@pytest.mark.attack("A27")
def test_a_log_written_anew_keeps_no_signature_that_a_stranger_to_it_could_check(
    world_sqlite: World, verify: Verify, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_sqlite
    world.tick()
    world.enroll("serial-1")
    (tmp_path / "root.json").write_bytes(world.call("GET", "/v1/metadata/1.root.json").content)
    monkeypatch.setenv("FLEETDIFF_KEYS", str(tmp_path))
    rewrite(world)
    assert follow(Head(), log_of(world)), "the chain itself is whole"
    code, said = verify()
    assert code == 1 and "the publisher signed another entry" in said


CHANGED = {  # at how many entries after the signed one, and what
    "changed": (2, "UPDATE audit_entry SET actor = 'nobody' WHERE seq = {}"),
    "removed": (2, "DELETE FROM audit_entry WHERE seq = {}"),
    "cut off": (2, "DELETE FROM audit_entry WHERE seq >= {}"),
    "what was signed is gone": (0, "DELETE FROM audit_entry WHERE seq = {}"),
    "what was signed is another": (0, "UPDATE audit_entry SET sha256 = 'ab' WHERE seq = {}"),
}


@pytest.mark.attack("A27")
@pytest.mark.parametrize("how", CHANGED)
def test_the_publisher_does_not_vouch_for_a_log_that_somebody_changed(
    pinned_sqlite: World, how: str
) -> None:
    world, (after, statement) = pinned_sqlite, CHANGED[how]
    world.tick()
    signed = int(told(world, "audit.sign")[0]["object"])
    world.enroll("serial-1")
    sql(world, statement.format(signed + after))
    world.now += timedelta(days=1)
    for _ in range(2):
        problems = world.work()
        assert [(p["trouble"], p["role"]) for p in problems] == [("refused", "audit")]
    with world.app.state.database.reader() as session:
        assert session.query(AuditEntry).filter_by(action=SIGN).count() == 1, "nothing is signed"


@pytest.mark.attack("A27")
def test_the_publisher_remembers_which_log_it_vouched_for(pinned: World) -> None:
    pinned.tick()
    pinned.enroll("serial-1")
    pinned.now += timedelta(days=1)
    assert pinned.work() == [] and len(told(pinned, "audit.sign")) == 2
    rewrite(pinned)
    pinned.now += timedelta(days=1)
    detail = pinned.work()[0]["detail"]
    assert "is not the one we vouched for" in detail
    assert len(told(pinned, "audit.sign")) == 2, "nothing is signed"
