"""A line of releases of 200 kB with patches between them, as plans are made of them."""

import random
from dataclasses import replace
from functools import cache
from typing import Any

from service.db.tables import DeviceModel
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import MODEL, World, digest, patch_between
from trust import sign
from trust.roles import PatchTarget, patch_path, read_family

KB = 1000


@cache
def file(number: int) -> bytes:
    """The model file of a release: 200 kB that differ from the one before in a few places."""
    if number == 1:
        return random.Random(1).randbytes(200 * KB)
    before = bytearray(file(number - 1))
    for place in random.Random(number).sample(range(len(before)), 50):
        before[place] ^= 255
    return bytes(before)


@cache
def patch(source: int, target: int) -> bytes:
    return patch_between(file(source), file(target))


def release(world: World, number: int, *bases: int, back: bool = False) -> None:
    """Publish a release with patches from earlier ones, to which one may go back or not."""
    name, body = f"r{number}", file(number)
    world.upload(body)
    made = world.release(name, body)
    entries = [sign.target_of(MODEL, made)]
    for base in bases:
        if back and world.family:
            before = read_family(MODEL, world.family).releases[f"r{base}"]
            edges = (*before.rollback_from, name)
            entries.append(sign.target_of(MODEL, replace(before, rollback_from=edges)))
        world.upload(patch(base, number))
        path, blob = patch_path(MODEL, f"r{base}", name), patch(base, number)
        edge = PatchTarget(path, digest(blob), len(blob), digest(file(base)), made.sha256, "sparse")
        entries.append(sign.target_of(MODEL, edge))
    world.sign_family(*entries)
    world.tick()


def started(world: World, name: str = "r3") -> str:
    return world.start_rollout(name, "all", stages=ALL)


def ops(plan: Any) -> list[list[str]]:
    return [[step["op"] for step in way] for way in plan["pipelines"]]


def explained(world: World, **query: Any) -> Any:
    return world.ok("GET", f"/v1/models/{MODEL}/plan", params=query)


def arrive(phone: Phone, plan: Any, way: str) -> None:
    """Do as an agent does that went this way."""
    phone.say("applied", plan["deployment"], detail=way)
    phone.runs, phone.etag = plan["sha256"], ""
    phone.poll()


def edge(world: World, source: int, target: int) -> Any:
    items = world.ok("GET", f"/v1/models/{MODEL}/patches")["items"]
    return next(p for p in items if (p["from"], p["to"]) == (f"r{source}", f"r{target}"))


def way_of(*hops: tuple[int, int], op: str = "patch") -> str:
    return " ".join([op, *(digest(patch(*hop))[:16] for hop in hops)])


def hops_of(world: World, phone: Phone) -> tuple[int, int]:
    with world.app.state.database.reader() as session:
        row = session.get_one(DeviceModel, phone.id)
        return row.hops, row.hashed_hops


def three_releases(world: World) -> World:
    """r1 > r2 > r3, a patch for each hop, and a cohort of all devices."""
    release(world, 1)
    release(world, 2, 1)
    release(world, 3, 2)
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    return world
