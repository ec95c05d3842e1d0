"""A publisher as in its own process, what an attacker can write, and what a device makes of it."""

import json
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from sqlalchemy import select

from service.core.rollout_limits import read_limits
from service.db.rollout_tables import Cohort, Deployment, Rollout, Stage
from service.db.tables import DeviceModel, Release
from service.signing.keys import Publisher
from service.signing.record import Record
from tests.service import tally
from tests.service.phone import Phone
from tests.service.world import BASE, MODEL, World, digest
from tests.unit.signed_world import tuf_clock
from trust.approval import approval
from trust.floors import Floors
from trust.order import Order, read_envelope, read_order
from trust.roles import family_role
from trust.verify import Trusted, refresh

FAMILY = family_role(MODEL)
ALL = [{"share_bp": 10_000}]


def pin(world: World, folder: Path) -> World:
    root = world.call("GET", "/v1/metadata/1.root.json").content
    world.publisher = Publisher(world.publisher.keys, root, Record(folder / "record.db"))
    world.publish_all()
    return world


def write(world: World, *statements: Any) -> None:
    """What whoever took the API and its database can do."""
    with world.app.state.database.writer() as session:
        for statement in statements:
            session.execute(statement)


def newest(world: World, role: str) -> int:
    return int(world.ok("GET", "/v1/metadata")[role])


def published(world: World) -> dict[str, int]:
    """Role -> version, of what the newest snapshot vouches for."""
    body = world.call("GET", f"/v1/metadata/{newest(world, 'snapshot')}.snapshot.json").content
    meta = json.loads(body)["signed"]["meta"]
    return {name.removesuffix(".json"): file["version"] for name, file in meta.items()}


def troubles(problems: list[dict[str, str]]) -> set[tuple[str, str]]:
    return {(problem["trouble"], problem["role"]) for problem in problems}


def trusted_by(world: World, phone: Phone, cache: Path, floors: Floors) -> tuple[Trusted, Floors]:
    """What a device with these floors takes from a fresh poll."""
    phone.etag = ""
    files = {name: body.encode() for name, body in phone.poll()["metadata"].items()}
    root = files["1.root.json"]
    with tuf_clock(world.now):
        return refresh(cache, root, files, MODEL, world.now, floors)


def order_of(world: World, phone: Phone) -> Order | None:
    with world.app.state.database.reader() as session:
        body = session.get_one(DeviceModel, phone.id).order_body
    return read_order(read_envelope(body).payload) if body else None


def offered(world: World) -> Phone:
    """A device that was just offered r2, whose order is not signed yet."""
    phone = world.enroll("s1", runs=digest(BASE))
    world.start_rollout("r2", "all", stages=ALL)
    assert phone.poll()["hold"] == "order_pending"
    return phone


NO_BOUNDS = {"first_share_bp": 10_000, "step_share_bp": 10_000, "soak_s": 0}


def limit(
    world: World, folder: Path, *approvers: CryptoSigner, server: bool = True, **numbers: int
) -> None:
    """Give the publisher, and the server unless it was taken, a file of limits."""
    names = []
    for number, signer in enumerate(approvers):
        key = signer.public_key
        public = {"keyid": key.keyid, "keytype": key.keytype, "scheme": key.scheme}
        (folder / f"{number}.pub").write_text(json.dumps(public | key.keyval))
        names.append(f"{number}.pub")
    file = folder / "limits.toml"
    told = {**NO_BOUNDS, "approval_above_bp": 10_000, **numbers, "approvers": names}
    file.write_text("\n".join(f"{name} = {json.dumps(value)}" for name, value in told.items()))
    world.publisher = replace(world.publisher, limits=read_limits(file))
    if server:
        world.app.state.rollout_limits = world.publisher.limits


def approve(world: World, rollout: str, token: str, *signers: CryptoSigner, **more: Any) -> Any:
    """Approve what a rollout is now, as a person with this token, and a key if there is one."""
    seen = world.ok("GET", f"/v1/rollouts/{rollout}/plan")
    body = {"plan": seen["sha256"]}
    for signer in signers:
        signed = approval(seen["plan"]).sign(signer)
        body |= {"keyid": signed.keyid, "sig": signed.signature}
    return world.call("POST", f"/v1/rollouts/{rollout}/approve", token, json=body | more)


def ordered(world: World) -> int:
    """Return how many devices have an order."""
    with world.app.state.database.reader() as session:
        given = select(DeviceModel).where(DeviceModel.order_body.is_not(None))
        return len(session.scalars(given).all())


def forge_rollout(
    world: World, phones: Sequence[Phone], name: str = "forged", to: str = "r2"
) -> None:
    """Write a running rollout, and a wish of each of these devices, by SQL alone."""
    with world.app.state.database.writer() as session:
        release = session.scalars(select(Release).filter_by(name=to)).one()
        cohort = session.scalars(select(Cohort).filter_by(name="all")).one()
        fields = {"model": MODEL, "salt": "", "gate": {}, "gate_sha256": "", "waiting_for": ""}
        fields |= {"state": "running", "on_halt": "keep", "created_by": "anne", "devices": 1000}
        times = {"created_at": world.now, "started_at": world.now}
        rollout = Rollout(id=name, release_id=release.id, cohort_id=cohort.id, **fields, **times)
        rollout.stages = [Stage(number=1, share_bp=10_000, soak_s=0, state="running")]
        session.add(rollout)
        session.flush()
        for phone in phones:
            row = session.get_one(DeviceModel, phone.id)
            ends = {"from_sha256": row.running_sha256, "to_sha256": release.sha256}
            times = dict.fromkeys(("created_at", "updated_at", "deadline_at"), world.now)
            wish = Deployment(id=f"{name}-{phone.id}", rollout_id=name, device_id=phone.id)
            for field, value in ({"direction": "forward", "stage": 1} | ends | times).items():
                setattr(wish, field, value)
            wish.release_id = release.id
            session.add(wish)
            session.flush()
            row.deployment_id = wish.id
        tally.recount(session)
