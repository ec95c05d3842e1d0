"""One person asks for a rollout, another approves it at a machine and with a key of their own."""

from io import StringIO
from pathlib import Path
from typing import Any

import pytest

from release_manager.client import Client
from service.core import access
from service.core.rollout_limits import read_limits
from service.signing.keys import OnlineKeys, Publisher
from service.signing.record import Record
from tests.release_manager.town import Machine, Town
from tests.service.phone import Phone
from tests.service.publishing import ordered
from tests.service.world import digest

LIMITS = """\
first_share_bp = 10000
step_share_bp = 10000
soak_s = 0
approval_above_bp = 2500
approvers = ["anne/me.pem.pub", "ben/me.pem.pub"]
"""


@pytest.fixture
def phones(both: Town, files: list[Path]) -> list[Phone]:
    """Three devices that run r1."""
    return both.world.fleet(3, digest(files[0].read_bytes()))


@pytest.fixture
def asked(both: Town, phones: list[Phone]) -> Any:
    """A rollout to three devices that Anne asked for, where Anne's and Ben's keys approve."""
    town, world = both, both.world
    for person in town.people:
        world.token = world.token_with(*access.SCOPES)
        person.token = world.token_with(*access.SCOPES, name=person.name)
        person.key("me")
    (town.home / "limits.toml").write_text(LIMITS)
    limits = read_limits(town.home / "limits.toml")
    world.app.state.rollout_limits = limits
    keys, root = OnlineKeys.load(town.publisher.folder), (town.anne.folder / "root.json")
    world.publisher = Publisher(keys, root.read_bytes(), Record(), limits=limits)
    world.work()
    assert (
        town.anne.run("cohort", "create", "all", "--model", "asr", "--filter", "hardware=h1") == 0
    )
    words = [
        "rollout",
        "start",
        "--accept-full-downloads",
        "asr",
        "r2",
        "--cohort",
        "all",
        "--stages",
        "100%",
    ]
    return town.anne.json(*words)


def key_of(person: Machine) -> str:
    return f"file:{person.folder / 'me.pem'}"


def test_a_rollout_says_what_it_waits_for_and_the_other_approves_it_with_a_key(
    both: Town, phones: list[Phone], asked: Any
) -> None:
    assert asked["state"] == "awaiting_approval"
    assert both.carl.run("rollout", "status", asked["id"]) == 0
    for part in ("awaiting_approval", "asked by", "3 of 3 of asr; anne asks"):
        assert part in both.carl.out
    words = ["rollout", "approve", asked["id"]]
    assert both.anne.run(*words, "--yes", "--key", key_of(both.anne)) == 1
    assert "somebody else must" in both.anne.err
    assert both.ben.run(*words, "--yes") == 1
    assert "lists as an approver's" in both.ben.err
    assert both.carl.run(*words, "--yes", "--key", key_of(both.carl)) == 1
    done = both.ben.json(*words, "--yes", "--key", key_of(both.ben))
    assert (done["state"], done["approved_by"]) == ("running", ["ben"])
    shown = both.ben.err
    for part in (
        f'rollout: "{asked["id"]}"',
        'release: "r2"',
        "sha256: ",
        'cohort: name="all" filter.hardware=["h1"]',
        "devices: 3",
        'stages: [{"share_bp": 10000, "soak_s": 0, "in_flight_max": null}]',
        "gate: margin_rel=0.02 ",
        'on_halt: "revert"',
    ):
        assert part in shown, shown
    for phone in phones:
        phone.poll()
    assert both.world.work() == [] and ordered(both.world) == 3


def test_an_approval_is_asked_for_and_no_is_no(
    both: Town, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    words = ["rollout", "approve", asked["id"], "--key", key_of(both.ben)]
    assert both.ben.run(*words) == 2
    assert "nobody is there to ask" in both.ben.err
    monkeypatch.setattr("sys.stdin", StringIO("no\n"))
    monkeypatch.setattr("sys.stdin.isatty", lambda: True, raising=False)
    assert both.ben.run(*words) == 1
    assert "approve this? [y/N]" in both.ben.err and "rollout halt" in both.ben.err
    assert both.ben.json("rollout", "status", asked["id"])["state"] == "awaiting_approval"


def test_a_server_that_shows_another_plan_gets_no_signature_for_it(
    both: Town, asked: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    honest = Client.get

    def hostile(self: Client, path: str, **query: object) -> Any:
        answer = honest(self, path, **query)
        return answer | {"plan": answer["plan"] | other} if path.endswith("/plan") else answer

    monkeypatch.setattr(Client, "get", hostile)
    words = ["rollout", "approve", asked["id"], "--yes", "--key", key_of(both.ben)]
    other: dict[str, Any] = {"rollout": "another"}
    assert both.ben.run(*words) == 1
    assert "shows another plan" in both.ben.err
    other = {"devices": 1}  # what Ben signs is what he saw, and not what the rollout is
    assert both.ben.run(*words) == 1
    assert "another by now" in both.ben.err
    other = {"\x1b[2J": "\x1b[31m"}
    assert both.ben.run(*words) == 1
    assert "\x1b" not in both.ben.err


def test_a_draft_that_was_not_asked_for_cannot_be_approved(both: Town, asked: Any) -> None:
    assert both.anne.run("rollout", "halt", asked["id"], "--reason", "wrong cohort") == 0
    words = ["rollout", "approve", asked["id"], "--yes", "--key", key_of(both.ben)]
    assert both.ben.run(*words) == 1
    assert "is canceled, not awaiting_approval" in both.ben.err
    assert asked["asked_by"] == "anne"
