"""What the page says of the rollouts that somebody must look after."""

import re
from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path

import pytest
from fastapi.testclient import TestClient

from service.engine import rollouts
from service.engine.health import ROLLOUTS_MAX
from tests.service.status_story import NOW, STAGES
from tests.service.test_status_page import database, one_rollout, serve, text_of


@pytest.fixture
def client(tmp_path: Path) -> Iterator[TestClient]:
    with serve(tmp_path) as made:
        yield made


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
