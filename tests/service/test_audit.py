"""The audit log: what is written down, that no secret is, and that nobody can unwrite it."""

import json
import re
from collections.abc import Callable, Iterator
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import text
from tuf.api.metadata import Metadata, Targets

from release_manager import audit as auditing
from release_manager.__main__ import main
from service.core import access
from service.core.errors import WrongState
from tests.service.served import served
from tests.service.test_access import introduce, invitation
from tests.service.world import MODEL, World, outcomes, refused
from trust import sign
from trust.audit import Head, entry_digest, follow, head_envelope, is_vouched_for
from trust.roles import read_family


def log_of(world: World) -> list[dict[str, Any]]:
    """Return the whole log, having followed its chain."""
    entries: list[dict[str, Any]] = []
    while True:
        cursor = entries[-1]["seq"] if entries else 0
        page = world.ok("GET", "/v1/audit", params={"cursor": cursor, "limit": 100})
        entries += page["items"]
        if page["next"] is None:
            assert follow(Head(), entries) == Head(**page["head"])
            return entries


def told(world: World, action: str) -> list[dict[str, Any]]:
    return [entry for entry in log_of(world) if entry["action"] == action]


def test_whatever_people_and_devices_do_is_written_down(world: World) -> None:
    rollout = world.ready()
    phone = world.enroll("serial-1")
    for verb in ("pause", "resume", "halt"):
        world.ok("POST", f"/v1/rollouts/{rollout}/{verb}", json={"reason": f"to {verb}"})
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    r2 = read_family(MODEL, world.family).releases["r2"]  # type: ignore[arg-type]
    world.sign_family(sign.release_target(MODEL, replace(r2, status="withdrawn")))
    found = [(entry["action"], entry["object"]) for entry in log_of(world)]
    for action, thing in (
        ("metadata.publish", "1.root.json"),
        ("metadata.publish", f"1.family-{MODEL}.json"),
        ("metadata.publish", "1.timestamp.json"),
        ("release.withdrawn", f"{MODEL}/r2"),
        ("rollout.create", rollout),
        ("rollout.start", rollout),
        ("rollout.pause", rollout),
        ("rollout.resume", rollout),
        ("rollout.halt", rollout),
        ("device.enroll", phone.id),
        ("device.quarantined", phone.id),
    ):
        assert found.count((action, thing)) == 1, (action, found)
    assert [action for action, _ in found].count("token.create") == 1
    assert [action for action, _ in found].count("invitation.create") == 1
    halt = told(world, "rollout.halt")[0]
    assert re.fullmatch(r"tester \(fd_[0-9a-f]{16}\)", halt["actor"])
    assert halt["details"]["reason"] == "to halt" and halt["result"] == "done"
    assert halt["ip"] == "testclient" and re.fullmatch("[0-9a-f]{16}", halt["request_id"])
    by = {entry["object"]: entry["actor"] for entry in told(world, "metadata.publish")}
    assert by["1.root.json"] == halt["actor"] and by["1.timestamp.json"] == "server"


def test_what_is_refused_is_written_down_and_who_tried(world_sqlite: World) -> None:
    world = world_sqlite
    reader = world.token_with("devices:read")
    phone = world.enroll("serial-1")
    refused(world.call("GET", "/v1/whoami", token=reader[:-43] + "A" * 43), 401)
    refused(world.call("POST", "/v1/models?x=1", token=reader, json={"name": "m"}), 403)
    refused(world.client.get("/v1/models/%00a\ud7ff"), 401)
    refused(introduce(world, "fe_" + "0" * 16 + "_" + "A" * 43), 401)
    refused(introduce(world, invitation(world)), 409)
    assert world.client.get("/", headers={"Authorization": "Basic eDp5"}).status_code == 401
    denied = [entry for entry in log_of(world) if entry["result"] == "denied"]
    assert [(e["action"], e["object"], e["details"]["why"]) for e in denied] == [
        ("GET", "/v1/whoami", "Unauthorized"),
        ("POST", "/v1/models", "Forbidden"),
        ("GET", "/v1/models/%00a%ED%9F%BF", "Unauthorized"),
        ("POST", "/device/v1/enroll", "Unauthorized"),
        ("POST", "/device/v1/enroll", "SerialTaken"),
        ("GET", "/", "Unauthorized"),
    ]
    assert denied[0]["details"]["tried"] == reader[:19] and denied[0]["actor"] == "anyone"
    assert denied[1]["actor"] == f"tester ({reader[:19]})"
    assert phone.request("GET", "/poll").status_code == 200


def test_no_secret_gets_into_the_log(world_sqlite: World) -> None:
    world = world_sqlite
    token, phone = invitation(world), world.enroll("serial-1")
    refused(introduce(world, token, model="other"), 401)
    refused(world.call("GET", "/device/v1/poll", token=world.token), 401)
    refused(world.call("GET", "/v1/devices", token=phone.credential), 401)
    everything = json.dumps(log_of(world))
    for secret in (token, phone.credential, world.token):
        assert secret[3:19] in everything and secret[-43:] not in everything


def test_what_is_rolled_back_is_not_in_the_log(world_sqlite: World) -> None:
    world, before = world_sqlite, log_of(world_sqlite)
    with pytest.raises(WrongState), world.app.state.database.writer() as session:
        access.create_token(session, "t", ["devices:read"], access.TOKEN_LIFETIME_MAX, world.now)
        raise WrongState("and then something went wrong")
    assert log_of(world) == before


def test_the_chain_is_one_line_however_many_write_at_once(world: World) -> None:
    def create(number: int) -> Any:
        return world.call("POST", "/v1/enrollment-tokens", json={"model": MODEL, "uses": number})

    def strange(_number: int) -> Any:
        return world.client.get("/v1/whoami")

    before = len(log_of(world))
    calls: list[Callable[[], Any]] = [partial(create, n) for n in range(1, 21)]
    calls += [partial(strange, n) for n in range(20)]
    assert outcomes(calls) == [201] * 20 + [401] * 20
    entries = log_of(world)[before:]
    assert sorted(e["details"].get("uses", 0) for e in entries) == [0] * 20 + list(range(1, 21))


def test_the_log_is_read_in_pages_from_either_end(world_sqlite: World) -> None:
    world = world_sqlite
    for name in "abcdef":
        world.ok("POST", "/v1/models", json={"name": name})
        invitation(world, model=name)
    first = world.ok("GET", "/v1/audit", params={"limit": 2})
    assert [e["seq"] for e in first["items"]] == [1, 2] and first["next"] == 2
    last = first["head"]["seq"]
    newest = {"limit": 2, "newest_first": True}
    page = world.ok("GET", "/v1/audit", params=newest)
    assert [e["seq"] for e in page["items"]] == [last, last - 1]
    page = world.ok("GET", "/v1/audit", params=newest | {"cursor": page["next"]})
    assert [e["seq"] for e in page["items"]] == [last - 2, last - 3]
    assert world.ok("GET", "/v1/audit", params={"cursor": last})["items"] == []
    for wrong in ({"limit": 501}, {"limit": 0}, {"cursor": -1}, {"cursor": "x"}):
        refused(world.call("GET", "/v1/audit", params=wrong), 422)


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


@pytest.mark.attack("A27")
def test_a_log_that_was_written_anew_is_not_the_one_that_this_machine_saw(
    world_sqlite: World, verify: Verify
) -> None:
    assert verify()[0] == 0
    seen, head = log_of(world_sqlite), Head()
    for entry in seen:
        entry["actor"] = "nobody"
        entry["previous_sha256"] = head.sha256
        head = Head(entry["seq"], entry_digest(entry))
        links = f"previous_sha256 = '{entry['previous_sha256']}', sha256 = '{head.sha256}'"
        where = f"WHERE seq = {head.seq}"
        sql(world_sqlite, f"UPDATE audit_entry SET actor = 'nobody', {links} {where}")
    sql(world_sqlite, f"UPDATE audit_head SET sha256 = '{head.sha256}'")
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
    assert is_vouched_for(head, envelope, signed)
    strangers = head_envelope(head)
    strangers.sign(world.signers["timestamp"])
    for other, mark in (
        (Head(head.seq, "0" * 64), envelope),
        (Head(head.seq + 1, head.sha256), envelope),
        (head, first[0]["details"]["envelope"]),
        (head, strangers.to_dict()),
        (head, envelope | {"payloadType": "application/vnd.fleetdiff.order+json"}),
        (head, {}),
        (head, None),
    ):
        assert not is_vouched_for(other, mark, signed)
