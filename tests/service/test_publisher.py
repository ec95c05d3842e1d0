"""The publisher believes no row: what nobody signed gets no signature, whoever wrote it."""

import json
from collections.abc import Callable
from dataclasses import replace
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, select, update

from service.db.rollout_tables import Deployment
from service.db.tables import DeviceModel, MetadataFile, Model, Release
from service.signing.keys import Publisher
from service.signing.record import Record
from tests.service.publishing import (
    ALL,
    FAMILY,
    newest,
    offered,
    order_of,
    published,
    troubles,
    write,
)
from tests.service.world import BETTER, MODEL, World, digest
from trust import sign


def forge(world: World, role: str, change: Callable[[Any], None], *, ahead: int = 1) -> None:
    """Add the next version of a document, changed and with the signature of the last one."""
    with world.app.state.database.writer() as session:
        row = session.get_one(MetadataFile, (role, newest(world, role)))
        document = json.loads(row.body)
        document["signed"]["version"] += ahead
        change(document["signed"])
        more = {"expires_at": row.expires_at, "accepted_at": row.accepted_at}
        body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
        session.add(MetadataFile(role=role, version=row.version + ahead, body=body, **more))


def activate(signed: Any) -> None:
    for target in signed["targets"].values():
        if target["custom"]["kind"] == "release":
            target["custom"]["status"] = "active"


@pytest.mark.attack("A24")
def test_a_family_that_nobody_signed_is_not_vouched_for(pinned: World) -> None:
    before = published(pinned)[FAMILY]
    forge(pinned, FAMILY, activate)
    pinned.now += timedelta(days=2)
    assert troubles(pinned.work()) == {("refused", FAMILY)}
    assert published(pinned)[FAMILY] == before
    assert newest(pinned, "timestamp") > 1, "the rest goes on"


@pytest.mark.attack("A24")
def test_a_signed_family_that_was_altered_since_gets_no_order(pinned: World) -> None:
    phone = offered(pinned)
    with pinned.app.state.database.writer() as session:
        row = session.get_one(MetadataFile, (FAMILY, newest(pinned, FAMILY)))
        row.body = row.body.replace(b'"seq":2', b'"seq":9')
    assert ("refused", FAMILY) in troubles(pinned.work())
    assert order_of(pinned, phone) is None


@pytest.mark.attack("A24", "M28")
@pytest.mark.parametrize("wish", ["unsigned", "foreign", "retired", "withdrawn"])
def test_a_forged_wish_gets_no_order(pinned: World, wish: str) -> None:
    phone = offered(pinned)
    with pinned.app.state.database.writer() as session:
        session.add(Model(name="other", canary_salt="", created_at=pinned.now))
    body = pinned.upload(b"a release that this family never signed")
    if wish in ("unsigned", "foreign"):
        more = {"name": "r9", "seq": 9, "status": "active", "sha256": body, "bytes": 39}
        model = MODEL if wish == "unsigned" else "other"
        row = Release(model=model, hardware=[], rollback_from=[], published_at=pinned.now, **more)
        with pinned.app.state.database.writer() as session:
            session.add(row)
        write(pinned, update(Deployment).values(to_sha256=body, release_id=row.id))
    else:
        withdrawn = pinned.release("r2", BETTER, status=wish)
        pinned.seq -= 1
        signed = type(withdrawn)(**{**vars(withdrawn), "seq": 2})
        pinned.sign_family(sign.target_of(MODEL, signed))
        write(pinned, update(Release).values(status="active"))
    assert pinned.work() == []
    assert order_of(pinned, phone) is None
    phone.etag = ""
    assert phone.poll()["order"] is None


@pytest.mark.attack("A24", "M38")
@pytest.mark.parametrize("needs", [{"hardware": ("h2",)}, {"min_agent": "0.10.0"}])
def test_m38_a_device_that_does_not_fit_gets_no_order_whatever_the_rows_say(
    pinned: World, needs: dict[str, Any]
) -> None:
    phone = offered(pinned)
    fits = pinned.release("r2", BETTER, **needs)
    pinned.sign_family(sign.target_of(MODEL, replace(fits, seq=2)))
    write(pinned, update(Release).values(hardware=[], min_agent=""))
    assert pinned.work() == []
    assert order_of(pinned, phone) is None
    phone.etag = ""
    assert phone.poll()["order"] is None


@pytest.mark.attack("A24")
def test_a_device_is_not_sent_back_without_a_signed_edge_whatever_the_rows_say(
    pinned: World,
) -> None:
    pinned.publish("r3", b"the third model", after="r2")
    phone = pinned.enroll("s1", runs=digest(b"the third model"))
    rollout = pinned.start_rollout("r2", "all", stages=ALL)
    phone.poll()
    with pinned.app.state.database.writer() as session:
        release = session.scalars(select(Release).filter_by(name="r1")).one()
        row = session.get_one(DeviceModel, phone.id)
        times = {"created_at": pinned.now, "updated_at": pinned.now, "deadline_at": pinned.now}
        fields = {"rollout_id": rollout, "device_id": phone.id, "direction": "back", "stage": 1}
        ends = {"from_sha256": row.running_sha256, "to_sha256": release.sha256}
        session.add(Deployment(id="forged", release_id=release.id, **fields, **ends, **times))
        session.flush()
        row.deployment_id = "forged"
    write(pinned, update(Release).values(rollback_from=["r2", "r3"]))
    pinned.work()
    assert order_of(pinned, phone) is None


@pytest.mark.attack("A24")
@pytest.mark.parametrize("forged", [0, (1 << 53) - 1])
def test_numbers_of_orders_come_from_the_publishers_own_record(pinned: World, forged: int) -> None:
    phone = offered(pinned)
    pinned.tick()
    assert (first := order_of(pinned, phone)) is not None
    write(pinned, update(DeviceModel).values(order_seq=forged, order_body=None, order_keyid=None))
    pinned.tick()
    assert (second := order_of(pinned, phone)) is not None
    assert second.seq == first.seq + 1


def test_a_publisher_that_lost_its_record_goes_on_from_the_numbers_that_are_stored(
    pinned: World,
) -> None:
    phone = offered(pinned)
    pinned.tick()
    pinned.publisher = Publisher(pinned.publisher.keys, pinned.publisher.root, Record())
    write(pinned, update(DeviceModel).values(order_keyid=None))
    pinned.tick()
    order = order_of(pinned, phone)
    assert order is not None and order.seq == 2


@pytest.mark.attack("M32")
def test_a_root_that_the_one_before_did_not_sign_is_not_followed(pinned: World) -> None:
    forge(pinned, "root", lambda signed: signed.update(consistent_snapshot=True))
    assert troubles(pinned.work()) == {("refused", "root")}
    assert pinned.publisher.record.highest("root") == 1


def test_a_publisher_with_another_pinned_root_signs_nothing(pinned: World, tmp_path: Path) -> None:
    keys = {n: sign.generate_key(tmp_path / f"{n}.pem") for n in ("root", "targets")}
    keys |= {n: pinned.public[n] for n in ("snapshot", "timestamp")}
    other = sign.new_root(keys, pinned.now, dev=True)
    body = sign.sign(other, [sign.load_signer(tmp_path / "root.pem")])
    pinned.publisher = Publisher(pinned.publisher.keys, body, Record())
    before = newest(pinned, "timestamp")
    pinned.now += timedelta(days=2)
    assert ("refused", "targets") in troubles(pinned.work())
    assert newest(pinned, "timestamp") == before


def test_what_was_published_is_not_forgotten_when_its_rows_are(pinned: World) -> None:
    """Without a record, removing rows would have a withdrawn release vouched for again."""
    version = newest(pinned, FAMILY)
    with pinned.app.state.database.reader() as session:
        kept = session.get_one(MetadataFile, (FAMILY, version)).body
    gone = [(FAMILY, version), ("snapshot", newest(pinned, "snapshot"))]
    gone.append(("timestamp", newest(pinned, "timestamp")))
    for role, number in gone:
        write(pinned, delete(MetadataFile).filter_by(role=role, version=number))
    assert ("refused", FAMILY) in troubles(pinned.work())
    assert newest(pinned, "timestamp") == gone[2][1] - 1, "nothing was signed"
    pinned.put_metadata(FAMILY, kept)
    assert pinned.work() == []
    assert published(pinned)[FAMILY] == version
    assert newest(pinned, "snapshot") > gone[1][1], "its number is not used again"


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_a_version_that_is_taken_is_an_error_and_not_overwritten(pinned: World, role: str) -> None:
    forge(pinned, role, lambda signed: None)
    with pinned.app.state.database.reader() as session:
        taken = session.get_one(MetadataFile, (role, newest(pinned, role))).body
    version = newest(pinned, role)
    pinned.now += timedelta(days=8)
    assert ("version_taken", "snapshot") in troubles(pinned.work())
    with pinned.app.state.database.reader() as session:
        assert session.get_one(MetadataFile, (role, version)).body == taken
    pinned.work()
    assert newest(pinned, role) == version + 1


def test_a_publisher_without_anything_to_publish_waits(unpublished: World) -> None:
    assert unpublished.work() == []
    assert unpublished.ok("GET", "/v1/metadata") == {}


def test_a_device_row_that_names_another_model_gets_no_order_of_it(pinned: World) -> None:
    phone = offered(pinned)
    with pinned.app.state.database.writer() as session:
        session.add(Model(name="other", canary_salt="", created_at=pinned.now))
        session.flush()
        session.get_one(DeviceModel, phone.id).model = "other"
    assert pinned.work() == []
    assert order_of(pinned, phone) is None
