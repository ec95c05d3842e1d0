"""A request that is sent again with its key is done once, and answered as it was."""

import pytest

from service.engine.tick import ANSWERS_KEPT
from tests.service.world import MODEL, World, outcomes, refused

COHORT = {"name": "all", "model": MODEL, "filter": {}}


def keyed(key: str = "one") -> dict[str, str]:
    return {"Idempotency-Key": key}


def test_a_request_sent_again_is_answered_as_before_and_done_once(world: World) -> None:
    first = world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    before = world.rows()
    again = world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    assert (again.status_code, again.json()) == (201, first.json())
    assert (first.headers.get("idempotent-replayed"), again.headers["idempotent-replayed"]) == (
        None,
        "true",
    )
    assert world.rows() == before


def test_without_its_key_it_is_another_request(world_sqlite: World) -> None:
    world = world_sqlite
    world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    refused(world.call("POST", "/v1/cohorts", json=COHORT), 409, "already-exists")
    other = world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed("two"))
    refused(other, 409, "already-exists")


@pytest.mark.parametrize("change", ["body", "path", "query"])
def test_a_key_belongs_to_one_request(world_sqlite: World, change: str) -> None:
    world = world_sqlite
    world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    before = world.rows()
    path = {"path": "/v1/models", "query": "/v1/cohorts?again"}.get(change, "/v1/cohorts")
    body = {"body": COHORT | {"name": "others"}, "path": {"name": "another"}}.get(change, COHORT)
    refused(world.call("POST", path, json=body, headers=keyed()), 422, "key-reused")
    assert world.rows() == before


def test_a_key_belongs_to_whoever_sent_it(world_sqlite: World) -> None:
    world = world_sqlite
    world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    other = world.token_with("rollouts:write")
    reply = world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed(), token=other)
    refused(reply, 409, "already-exists")


def test_a_refused_request_uses_no_key_up(world_sqlite: World) -> None:
    world = world_sqlite
    missing = COHORT | {"model": "missing"}
    refused(world.call("POST", "/v1/cohorts", json=missing, headers=keyed()), 404)
    assert world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed()).status_code == 201


@pytest.mark.parametrize("key", ["", "two words", "x" * 129])
def test_a_key_that_is_none_is_refused(world_sqlite: World, key: str) -> None:
    before = world_sqlite.rows()
    reply = world_sqlite.call("POST", "/v1/cohorts", json=COHORT, headers=keyed(key))
    refused(reply, 422, "invalid-request")
    assert world_sqlite.rows() == before


def test_a_secret_is_answered_once_and_kept_nowhere(world_sqlite: World) -> None:
    world = world_sqlite
    wanted = {"model": MODEL}
    first = world.call("POST", "/v1/enrollment-tokens", json=wanted, headers=keyed())
    again = world.call("POST", "/v1/enrollment-tokens", json=wanted, headers=keyed())
    refused(again, 409, "answer-shown-once")
    secret = first.json()["token"].rpartition("_")[2]
    assert secret and secret not in str(world.rows())


def test_of_many_at_once_one_is_done_and_the_others_are_answered_alike_or_come_again(
    world: World,
) -> None:
    found = outcomes([lambda: world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())] * 8)
    assert found[0] == 201 and set(found) <= {201, 409}
    assert len(world.ok("GET", "/v1/cohorts")["items"]) == 1
    again = world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    assert again.headers["idempotent-replayed"] == "true"


def test_answers_are_forgotten_after_a_day(world_sqlite: World) -> None:
    world = world_sqlite
    world.call("POST", "/v1/cohorts", json=COHORT, headers=keyed())
    world.tick(ANSWERS_KEPT.total_seconds())
    assert world.rows()["answer"]
    world.tick()
    assert not world.rows()["answer"]
