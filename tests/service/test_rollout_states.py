"""Whatever people and time do, a rollout is in a state of the diagram, and paused only for reasons.

The arrows are those of docs/architecture.md, read from there.
"""

import re
from datetime import datetime, timedelta
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    invariant,
    precondition,
    rule,
    run_state_machine_as_test,
)
from sqlalchemy import update

from service.core import access
from service.core.policy import PASSING
from service.db.rollout_tables import STATES, UNSTARTED, Budget, Rollout
from service.db.tables import MetadataFile
from tests.service.publishing import ALL, FAMILY, write
from tests.service.world import BASE, MODEL, World, digest

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"
DIAGRAM = PAGE.read_text().split("## The states of a rollout")[1].split("```")[1]
ARROWS = set(re.findall(r"^    (\w+) --> (\w+)", DIAGRAM, re.MULTILINE))
REASONS = {"operator", "gate_undecided", "failure_rate", "silence", "sums_disagree", *PASSING}
HOUR = timedelta(hours=1)


def test_the_diagram_shows_every_state_and_no_other() -> None:
    assert {state for arrow in ARROWS for state in arrow} == set(STATES)


def token_of(world: World) -> str:
    """Return a token that outlasts every example; the world's clock never goes back."""
    life = timedelta(days=365)
    with world.app.state.database.writer() as session:
        return access.create_token(session, "people", list(access.SCOPES), life, world.now)[1]


class Life(RuleBasedStateMachine):
    """One rollout; its budget is spent and raised, its signatures age and are made again."""

    world: World

    def __init__(self) -> None:
        super().__init__()
        self.world.now += HOUR
        self.world.token = token_of(self.world)
        self.world.sign_family()
        later = self.world.now + 2 * HOUR
        body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
        body |= {"bytes_max": 1 << 40, "start_at": later.isoformat()}
        self.path = f"/v1/rollouts/{self.world.ok('POST', '/v1/rollouts', json=body)['id']}"
        self.seen = self.look()

    def look(self) -> Any:
        return self.world.ok("GET", self.path)

    def call(self, verb: str) -> int:
        return int(self.world.call("POST", f"{self.path}/{verb}").status_code)

    @rule(verb=st.sampled_from(("start", "pause", "halt")))
    def somebody_says(self, verb: str) -> None:
        assert self.call(verb) in (200, 409)

    @rule()
    def somebody_resumes(self) -> None:
        held, answer = set(self.seen["reasons"]), self.call("resume")
        found = self.look()
        if answer == 200:
            assert (found["state"], found["reasons"]) == ("running", [])
        else:
            assert answer == 409 and set(found["reasons"]) == held, "a refusal loses no reason"
            assert self.seen["state"] != "paused" or found["state"] == "paused"

    @rule(hours=st.sampled_from((0, 1, 3, 80)))
    def time_passes(self, hours: int) -> None:
        held = set(self.seen["reasons"])
        self.world.tick(hours * 3600 + 1)
        if self.seen["state"] == "paused":
            found = self.look()
            assert held - set(found["reasons"]) <= set(PASSING), "no tick ends what takes a person"

    @rule(left=st.sampled_from((0, 1 << 40)))
    def the_budget_is_spent_or_raised(self, left: int) -> None:
        write(self.world, update(Budget).values(bytes_max=Budget.bytes_committed + left + 1))

    @rule()
    def what_runs_out_is_signed_again(self) -> None:
        self.world.sign_family()

    @rule()
    def signatures_grow_old(self) -> None:
        family = MetadataFile.role == FAMILY
        write(
            self.world, update(MetadataFile).where(family).values(expires_at=self.world.now + HOUR)
        )

    @precondition(lambda self: self.seen["state"] == "paused")
    @rule(reason=st.sampled_from(("gate_undecided", "failure_rate", "silence")))
    def telemetry_adds_a_reason(self, reason: str) -> None:
        reasons = sorted({*self.seen["reasons"], reason})
        mine = Rollout.id == self.seen["id"]
        write(self.world, update(Rollout).where(mine).values(reasons=reasons))

    @rule(when=st.sampled_from((None, HOUR, -HOUR)))
    def its_time_is_changed(self, when: timedelta | None) -> None:
        at: datetime | None = when and self.world.now + when
        body = {"start_at": at and at.isoformat()}
        reply = self.world.call("PATCH", self.path, json=body)
        assert reply.status_code == (200 if self.seen["state"] in UNSTARTED else 409), reply.text

    @invariant()
    def it_is_where_the_diagram_leads(self) -> None:
        found = self.look()
        before, state = self.seen["state"], found["state"]
        assert before == state or (before, state) in ARROWS
        assert (state == "paused") == bool(found["reasons"]) and {*found["reasons"]} <= REASONS
        with self.world.app.state.database.reader() as session:
            row = session.get_one(Rollout, found["id"])
            assert (row.paused_at is not None) == (state == "paused")
        self.seen = found

    def teardown(self) -> None:
        self.world.call("POST", f"{self.path}/halt")


def test_no_rollout_leaves_the_diagram_whatever_people_and_time_do(world: World) -> None:
    world.publish_all()
    world.fleet(1, digest(BASE))
    Life.world = world
    few = settings(
        max_examples=12,
        stateful_step_count=15,
        deadline=None,
        suppress_health_check=list(HealthCheck),
    )
    run_state_machine_as_test(Life, settings=few)
