"""Rounds of publishers: keys that are replaced, two at once, power cuts."""

import threading
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import delete, event, select, update
from tuf.api.metadata import Metadata

from service.db.tables import DeviceModel, MetadataFile
from service.signing import orders, publisher
from service.signing.keys import OnlineKeys, Publisher
from service.signing.record import Record
from tests.service.publishing import (
    ALL,
    FAMILY,
    newest,
    offered,
    order_of,
    troubles,
    trusted_by,
    write,
)
from tests.service.world import BASE, MODEL, World, digest
from trust import sign
from trust.errors import Untrusted
from trust.floors import Floors
from trust.order import read_envelope, read_order
from trust.verify import check_order


def rotate_in_root(world: World, folder: Path, *roles: str) -> None:
    """Have the next root name new keys for these roles."""
    with world.app.state.database.reader() as session:
        root = Metadata[Any].from_bytes(session.get_one(MetadataFile, ("root", 1)).body)
    for role in roles:
        key = sign.generate_key(folder / f"{role}.pem")
        root.signed.revoke_key(root.signed.roles[role].keyids[0], role)
        root.signed.add_key(key, role)
    root.signed.version += 1
    world.put_metadata("root", sign.sign(root, [world.signers["root"]]))


def rotate_online(world: World, folder: Path) -> OnlineKeys:
    """Have root and targets name new online keys; returns them."""
    rotate_in_root(world, folder, "snapshot", "timestamp")
    new = {"director": sign.generate_key(folder / "director.pem")}
    with world.app.state.database.reader() as session:
        targets = Metadata[Any].from_bytes(session.get_one(MetadataFile, ("targets", 1)).body)
    document = sign.next_targets(targets.signed, new, world.now)
    world.put_metadata("targets", sign.sign(document, [world.signers["targets"]]))
    return OnlineKeys.load(folder)


@pytest.mark.attack("M25")
def test_a_publisher_whose_keys_were_replaced_says_so_and_with_the_new_ones_signs_at_once(
    pinned: World, tmp_path: Path
) -> None:
    phone = offered(pinned)
    pinned.tick()
    _, floors = trusted_by(pinned, phone, tmp_path / "tuf", Floors())
    with pinned.app.state.database.reader() as session:
        old = session.get_one(DeviceModel, phone.id).order_body
    keys = rotate_online(pinned, tmp_path / "new")
    assert troubles(pinned.work()) == {("wrong_key", "snapshot"), ("wrong_key", "director")}
    with pytest.raises(Untrusted, match="E_SIG"):
        trusted_by(pinned, phone, tmp_path / "tuf", floors)

    pinned.publisher = Publisher(keys, pinned.publisher.root, pinned.publisher.record)
    assert pinned.work() == []
    trusted, floors = trusted_by(pinned, phone, tmp_path / "tuf", floors)
    assert trusted.versions["root"] == 2
    with pinned.app.state.database.reader() as session:
        new = session.get_one(DeviceModel, phone.id).order_body
    assert old is not None and new is not None
    told = {"device_id": phone.id, "model": MODEL, "now": pinned.now, "floors": floors}
    with pytest.raises(Untrusted, match="E_SIG"):
        check_order(trusted, old, **told)
    assert check_order(trusted, new, **told)[0].seq == 2


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_a_key_that_only_root_replaced_signs_at_once_and_no_document_waits_to_grow_old(
    pinned: World, tmp_path: Path, role: str
) -> None:
    phone = pinned.enroll("s1", runs=digest(BASE))
    before = newest(pinned, role)
    rotate_in_root(pinned, tmp_path / "new", role)
    keys = pinned.publisher.keys
    signer = sign.load_signer(tmp_path / "new" / f"{role}.pem")
    held = {"snapshot": keys.snapshot, "timestamp": keys.timestamp, role: signer}
    own = pinned.publisher
    pinned.publisher = Publisher(OnlineKeys(**held, director=keys.director), own.root, own.record)
    assert pinned.work() == []
    assert newest(pinned, role) == before + 1
    trusted, _ = trusted_by(pinned, phone, tmp_path / "tuf", Floors())
    assert trusted.versions["root"] == 2
    pinned.work()
    assert newest(pinned, role) == before + 1, "once is enough"


def test_what_a_replaced_key_signs_counts_no_more(pinned: World, tmp_path: Path) -> None:
    """It may have been replaced because it was stolen; what was signed with it before stays."""
    stolen, version = pinned.publisher.keys, newest(pinned, "snapshot")
    keys = rotate_online(pinned, tmp_path / "new")
    pinned.publisher = Publisher(keys, pinned.publisher.root, pinned.publisher.record)
    with pinned.app.state.database.writer() as session:
        row = session.get_one(MetadataFile, ("snapshot", version))
        forged = Metadata[Any].from_bytes(row.body)
        forged.signed.version += 5
        forged.signed.meta[f"{FAMILY}.json"].version += 100
        body = sign.sign(forged, [stolen.snapshot])
        more = {"expires_at": row.expires_at, "accepted_at": row.accepted_at}
        session.add(MetadataFile(role="snapshot", version=version + 5, body=body, **more))
    assert troubles(pinned.work()) == {("refused", "snapshot")}
    with pinned.app.state.database.reader() as session:
        row = session.get_one(MetadataFile, ("snapshot", version + 1))
    assert Metadata[Any].from_bytes(row.body).signed.meta[f"{FAMILY}.json"].version < 100


@pytest.mark.parametrize("role", ["snapshot", "timestamp"])
def test_a_snapshot_and_a_timestamp_that_do_not_belong_together_are_signed_again(
    pinned: World, role: str
) -> None:
    pinned.publisher = Publisher(pinned.publisher.keys)  # without a record
    version = newest(pinned, role)
    write(pinned, delete(MetadataFile).filter_by(role=role, version=version))
    pinned.work()
    assert newest(pinned, role) == version
    stamp = pinned.call("GET", "/v1/metadata/timestamp.json").json()["signed"]
    assert stamp["meta"]["snapshot.json"]["version"] == newest(pinned, "snapshot")


@pytest.mark.attack("A24")
def test_no_more_orders_are_given_in_an_hour_than_the_publisher_was_set_up_for(
    pinned: World,
) -> None:
    phones = pinned.fleet(5, digest(BASE))
    pinned.start_rollout("r2", "all", stages=ALL)
    for phone in phones:
        phone.poll()
    own = pinned.publisher
    for most in (2, 2, 1):  # whoever lowers it takes nothing back
        pinned.publisher = Publisher(own.keys, own.root, own.record, orders_max=most)
        assert troubles(pinned.work()) == {("limit", "director")}
        assert orders_given(pinned) == 2
    pinned.now += timedelta(hours=1)
    assert troubles(pinned.work()) == {("limit", "director")}
    assert orders_given(pinned) == 3
    pinned.publisher = own
    assert pinned.work() == []
    assert orders_given(pinned) == 5


def orders_given(world: World) -> int:
    with world.app.state.database.reader() as session:
        return sum(row.order_body is not None for row in session.scalars(select(DeviceModel)))


def test_an_order_that_another_publisher_gave_meanwhile_stays(
    pinned: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    phone = offered(pinned)
    other = Publisher(pinned.publisher.keys, pinned.publisher.root, Record(tmp_path / "other.db"))

    def slowly(order: Any, signer: Any) -> bytes:
        monkeypatch.setattr(orders, "sign_order", sign.sign_order)
        publisher.work(pinned.app.state.database, other, pinned.now + timedelta(seconds=1))
        return sign.sign_order(order, signer)

    monkeypatch.setattr(orders, "sign_order", slowly)
    pinned.work()
    order = order_of(pinned, phone)
    assert order is not None
    assert order.issued == (pinned.now + timedelta(seconds=1)).replace(microsecond=0)


def test_two_publishers_at_once_do_no_harm(pinned: World, tmp_path: Path) -> None:
    phones = pinned.fleet(20, digest(BASE))
    pinned.start_rollout("r2", "all", stages=ALL)
    for phone in phones:
        phone.poll()
    pinned.now += timedelta(days=2)
    before = newest(pinned, "timestamp")
    own = pinned.publisher
    other = Publisher(own.keys, own.root, Record(tmp_path / "other.db"))
    start, failures = threading.Barrier(2), []

    def run(which: Publisher) -> None:
        start.wait()
        try:
            for _ in range(3):
                publisher.work(pinned.app.state.database, which, pinned.now)
        except Exception as error:
            failures.append(error)

    threads = [threading.Thread(target=run, args=(which,)) for which in (own, other)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not failures
    assert newest(pinned, "timestamp") == before + 1
    with pinned.app.state.database.reader() as session:
        rows = session.scalars(select(DeviceModel)).all()
        assert {row.order_seq for row in rows} == {1}
        for row in rows:
            assert row.order_body is not None
            assert read_order(read_envelope(row.order_body).payload).seq == 1


class Cut(BaseException):
    """The power goes."""


def test_a_power_cut_before_any_write_leaves_what_devices_trust_and_the_next_round_ends_it(
    pinned_sqlite: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world, cuts = pinned_sqlite, 0
    phone = offered(world)
    _, floors = trusted_by(world, phone, tmp_path / "tuf", Floors())
    left = [0]
    engine, took = world.app.state.database.writing, Record.take

    def spend(*_: Any) -> None:
        left[0] -= 1
        if left[0] < 0:
            raise Cut

    def before_statement(_c: Any, _k: Any, statement: str, *_: Any) -> None:
        if statement.startswith(("INSERT", "UPDATE", "COMMIT")):
            spend()

    def take(self: Record, numbers: Any) -> None:
        spend()
        took(self, numbers)

    monkeypatch.setattr(Record, "take", take)
    event.listen(engine, "before_cursor_execute", before_statement)
    event.listen(engine, "commit", spend)
    while True:
        left[0] = 1 << 30
        world.now += timedelta(hours=25)
        world.sign_family()
        write(world, update(DeviceModel).values(order_keyid=None))
        given, left[0] = newest_order(world), cuts
        try:
            world.work()
            break
        except Cut:
            cuts, left[0] = cuts + 1, 1 << 30
        _, floors = trusted_by(world, phone, tmp_path / f"{cuts}", floors)
        root, keys = world.publisher.root, world.publisher.keys
        world.publisher = Publisher(keys, root, Record(tmp_path / "record.db"))
        assert world.work() == []
        trusted, floors = trusted_by(world, phone, tmp_path / "tuf", floors)
        assert trusted.versions["timestamp"] == newest(world, "timestamp")
        assert trusted.versions[FAMILY] == newest(world, FAMILY)
        assert newest_order(world) > given
    left[0] = 1 << 30  # the power is back: the server notes whom it saw when it ends
    assert cuts >= 7


def newest_order(world: World) -> int:
    with world.app.state.database.reader() as session:
        return max(session.scalars(select(DeviceModel.order_seq)))
