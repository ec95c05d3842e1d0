"""Whatever happens in whatever order: what memory answers, the database answers next."""

import random
from collections.abc import Callable
from datetime import timedelta
from functools import partial

import pytest

from service.core.access import SCOPES
from service.db.entries import of_device
from tests.service.memory import Memory, asking
from tests.service.phone import Phone
from tests.service.programs import eventually
from tests.service.world import BASE, BETTER, MODEL, World, digest

STAGES = [{"share_bp": 5000, "in_flight_max": 3}, {"share_bp": 10_000}]


class Story:
    """A fleet, people and time, each doing something at random."""

    def __init__(self, world: World, memory: Memory, seed: int) -> None:
        self.world, self.memory, self.draw = world, memory, random.Random(seed)
        world.publish_all()
        self.rollouts = [world.start_rollout("r2", "all", stages=STAGES)]
        self.phones = [world.enroll(f"serial-{n}", runs=digest(BASE)) for n in range(6)]
        self.entries = world.app.state.database.entries
        eventually(lambda: self.entries._heard_until_s, "what others changed is known")
        self.changes: list[Callable[[], object]] = [
            *(partial(self.verb, word) for word in "pause resume resume halt start".split()),
            *(partial(self.device, status=word) for word in ("quarantined", "active", "active")),
            *(partial(self.device, tags={"k": value}) for value in "ab"),
            world.tick,
            world.tick,
            self.later,
            self.another,
            self.reflash,
        ]

    def poll(self, phone: Phone) -> None:
        before = self.memory.answers
        reply = asking(phone)
        if self.memory.answers > before:
            self.entries.drop([of_device(phone.id)])
            again = asking(phone)
            assert (again.status_code, again.headers["etag"]) == (304, phone.etag)
            assert again.headers.keys() == reply.headers.keys(), "a credential, perhaps"
            soon = {int(told.headers["poll-after"]) < 10 for told in (reply, again)}
            assert len(soon) == 1
        elif reply.status_code == 200:
            phone.etag = reply.headers["etag"]
            self.follow(phone, reply.json()["plan"])

    def follow(self, phone: Phone, plan: dict[str, str] | None) -> None:
        if plan and self.draw.random() < 0.3:
            phone.say(self.draw.choice(["applied", "activated", "failed"]), plan["deployment"])
        if plan and self.draw.random() < 0.3:
            phone.runs = plan["sha256"]

    def verb(self, name: str) -> None:
        path = f"/v1/rollouts/{self.draw.choice(self.rollouts)}/{name}"
        self.world.call("POST", path, json={"reason": "test"})

    def device(self, **change: object) -> None:
        path = f"/v1/devices/{self.draw.choice(self.phones).id}"
        self.world.call("PATCH", path, json=change)

    def later(self) -> None:
        self.world.now += timedelta(hours=self.draw.choice([1, 24, 24 * 6]))
        self.world.token = self.world.token_with(*SCOPES)

    def another(self) -> None:
        made = {"model": MODEL, "release": "r2", "cohort": "all", "stages": STAGES}
        self.rollouts.append(self.world.ok("POST", "/v1/rollouts", json=made)["id"])
        self.verb("start")

    def reflash(self) -> None:
        self.draw.choice(self.phones).runs = self.draw.choice([digest(BASE), digest(BETTER), ""])


@pytest.mark.parametrize("seed", range(4))
def test_memory_never_answers_otherwise_than_the_database(
    world: World, memory: Memory, seed: int
) -> None:
    story = Story(world, memory, seed)
    for _ in range(60):
        for phone in story.draw.choices(story.phones, k=8):
            story.poll(phone)
        story.draw.choice(story.changes)()
    assert memory.answers > 50
