"""What the page says of the rollouts that somebody must look after."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from release_manager.__main__ import build_parser
from service.core import policy
from service.dashboard.pages import TEMPLATES
from service.engine import rollouts
from service.engine.health import ROLLOUTS_MAX
from tests.service.status_story import NOW, STAGES
from tests.service.test_status_page import database, one_rollout, serve, text_of

REASONS = sorted(vars(TEMPLATES.get_template("rollout.html").module)["paused_because"])


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serve(tmp_path) as made:
        yield made


def commands(client: TestClient) -> list[str]:
    return re.findall(r'<p class="steps.*?<code>(.*?)</code>', client.get("/").text)


def after(client: TestClient, acts: list[str]) -> str:
    """Make a rollout and do these things to it; returns its id."""
    with database(client).writer() as session:
        made = one_rollout(session)
        for act in acts:
            reason = [] if act == "start" else ["too slow"]
            getattr(rollouts, act)(session, made.id, *reason, "mina", NOW)
        return made.id


def test_no_rollout_that_runs_is_hidden_by_newer_ones(client: TestClient) -> None:
    with database(client).writer() as session:
        old = one_rollout(session)
        rollouts.start(session, old.id, "mina", NOW - timedelta(days=40))
        old_id = old.id
        for _ in range(ROLLOUTS_MAX):
            asked = {"model": "n", "release": "n", "cohort": "n", "gate": {}, "on_halt": "keep"}
            made = rollouts.create_rollout(
                session, **asked, stages=STAGES, actor="mina", now=NOW + timedelta(seconds=1)
            )
            rollouts.halt(session, made.id, "no", "mina", NOW + timedelta(seconds=2))
    cards = re.findall(r'<article id="rollout-(\w+)"', client.get("/").text)
    assert cards[0] == old_id and len(cards) == ROLLOUTS_MAX
    assert "Live rollouts 1" in text_of(client.get("/").text)


@pytest.mark.parametrize(
    ("acts", "sentence"),
    [
        ([], "A draft: a person has yet to start it."),
        (["halt"], "Canceled before it started; no device was asked."),
        (["start"], "Just started; the next look is due soon."),
        (["start", "pause"], "asked for it (mina: too slow). Waiting: a person resumes it."),
        (["start", "halt"], "Halted by mina: too slow. As planned, 0 devices keep the release."),
    ],
)
def test_each_state_of_a_rollout_is_explained(
    client: TestClient, acts: list[str], sentence: str
) -> None:
    after(client, acts)
    assert sentence in text_of(client.get("/status").text)


@pytest.mark.parametrize(
    ("acts", "verb"),
    [
        ([], "resume"),
        (["start"], "explain"),
        (["start", "pause"], "resume"),
        (["start", "halt"], "decisions"),
    ],
)
def test_a_rollout_names_the_command_that_comes_next(
    client: TestClient, acts: list[str], verb: str
) -> None:
    identity = after(client, acts)
    assert f"fleetdiff rollout {verb} {identity}" in commands(client)


@pytest.mark.parametrize("reason", REASONS)
def test_each_reason_of_a_pause_leads_to_a_command_that_there_is(
    client: TestClient, reason: str
) -> None:
    with database(client).writer() as session:
        made = one_rollout(session)
        rollouts.start(session, made.id, "mina", NOW)
        rollouts.pause_for(session, made, {reason}, "because", "tick", NOW)
    found = commands(client)
    assert len(found) == 2 - (reason == "operator" or reason in policy.PASSING)
    for command in found:
        program, *words = command.split()
        if program == "fleetdiff":
            build_parser().parse_args([word.replace("SIZE", "1GB") for word in words])
        else:
            assert command == "fleetdiff-server verify-sums"


def test_who_paused_a_rollout_is_named_with_the_reason(client: TestClient) -> None:
    with database(client).writer() as session:
        made = one_rollout(session)
        rollouts.start(session, made.id, "mina", NOW)
        rollouts.pause(session, made.id, "calls from kitchens", "mina", NOW)
    assert "a person asked for it (mina: calls from kitchens)" in text_of(client.get("/").text)


@pytest.mark.parametrize(
    ("kind", "who"),
    [("wer", "The canary"), ("failures", "The failure guard"), ("signals", "A signal")],
)
def test_what_halted_a_rollout_by_itself_is_named(client: TestClient, kind: str, who: str) -> None:
    with database(client).writer() as session:
        made = one_rollout(session)
        rollouts.start(session, made.id, "mina", NOW)
        rollouts.halt(session, made.id, f"{kind}: 70 devices are slower", "tick", NOW)
    assert f"{who} halted it: 70 devices are slower." in text_of(client.get("/").text)
