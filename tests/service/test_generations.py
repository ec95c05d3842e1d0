"""Whatever changes what a model's devices are told counts its generation up, and nothing else."""

from collections.abc import Callable
from typing import Any

import pytest
from sqlalchemy import select

from service.db.tables import Model
from tests.service.line import file, started
from tests.service.phone import Phone
from tests.service.publishing import ALL
from tests.service.world import MODEL, World, digest

MODELS = f"/v1/models/{MODEL}"
WHY = {"reason": "test"}
CHANGES: dict[str, Callable[[World, str], Any]] = {
    "a pause": lambda w, r: w.ok("POST", f"/v1/rollouts/{r}/pause"),
    "a halt": lambda w, r: w.ok("POST", f"/v1/rollouts/{r}/halt", json=WHY),
    "a release": lambda w, _: w.publish("r4", b"the next model" * 100, after="r3"),
    "a floor": lambda w, _: w.ok("PUT", f"{MODELS}/floors/r2", json=WHY),
    "a withdrawal": lambda w, _: w.ok("POST", f"{MODELS}/patches/r2/r3/withdraw", json=WHY),
    "a rollout": lambda w, _: w.ok("POST", "/v1/rollouts", json=ASKED),
}
ASKED = {"model": MODEL, "release": "r3", "cohort": "all", "stages": ALL}
LITTLE: dict[str, Callable[[World, Phone], Any]] = {
    "a poll": lambda _, p: p.poll(),
    "an order": lambda _, p: p.offered(),
    "an event": lambda _, p: p.say("note"),
    "a tick": lambda w, _: w.tick(),
    "a tag": lambda w, p: w.ok("PATCH", f"/v1/devices/{p.id}", json={"tags": {"a": "b"}}),
    "another device": lambda w, _: w.enroll("serial-2"),
}


def generation(world: World, model: str = MODEL) -> int:
    with world.app.state.database.reader() as session:
        return session.scalars(select(Model.generation).filter_by(name=model)).one()


@pytest.mark.parametrize("what", CHANGES)
def test_a_change_of_what_devices_are_told_counts_up(line: World, what: str) -> None:
    rollout = started(line)
    before = generation(line)
    CHANGES[what](line, rollout)
    assert generation(line) > before


@pytest.mark.parametrize("what", LITTLE)
def test_what_is_a_devices_own_counts_nothing(line: World, what: str) -> None:
    started(line)
    phone = line.enroll("serial-1", runs=digest(file(1)))
    line.tick()
    before = generation(line)
    LITTLE[what](line, phone)
    assert generation(line) == before


def test_another_model_is_left_alone_unless_everything_changes(line: World) -> None:
    line.ok("POST", "/v1/models", json={"name": "other"})
    rollout, before = started(line), generation(line, "other")
    line.ok("POST", f"/v1/rollouts/{rollout}/pause")
    assert generation(line, "other") == before
    line.publish("r4", b"the next model" * 100, after="r3")  # signed documents are everybody's
    assert generation(line, "other") > before


def test_a_change_that_is_refused_or_undone_counts_nothing(line: World) -> None:
    rollout = started(line)
    line.ok("POST", f"/v1/rollouts/{rollout}/halt", json=WHY)
    before = generation(line)
    line.ok("POST", "/v1/rollouts/simulate", json=ASKED)
    assert line.call("POST", f"/v1/rollouts/{rollout}/pause").status_code == 409
    assert generation(line) == before
