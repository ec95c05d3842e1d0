"""Lists come in pages: every row once, in one order, whatever is added meanwhile."""

from datetime import timedelta
from typing import Any

import pytest

from tests.service.world import MODEL, World, refused

LISTS = {
    "/v1/rollouts": "id",
    "/v1/cohorts": "name",
    "/v1/devices": "id",
    "/v1/tokens": "id",
    "/v1/audit": "seq",
    "/v1/artifacts": "sha256",
    f"/v1/models/{MODEL}/releases": "seq",
    f"/v1/models/{MODEL}/patches": "sha256",
}


@pytest.fixture
def full(world: World) -> World:
    """A world with several of everything."""
    world.publish_all()
    for number in range(3, 6):
        world.publish(f"r{number}", b"the model of %d" % number)
    for name in ("c1", "c2", "c3"):
        world.ok("POST", "/v1/cohorts", json={"name": name, "model": MODEL, "filter": {}})
        world.token_with("releases:read", name=name)
        world.enroll(f"serial-{name}")
        asked = {"model": MODEL, "release": "r2", "cohort": name}
        world.ok("POST", "/v1/rollouts", json=asked | {"stages": [{"share_bp": 10_000}]})
    return world


def pages(world: World, path: str, limit: int) -> list[list[Any]]:
    found: list[list[Any]] = []
    query: dict[str, Any] = {"limit": limit}
    while True:
        page = world.ok("GET", path, params=query)
        found.append(page["items"])
        if page["next"] is None:
            return found
        query["cursor"] = page["next"]


@pytest.mark.parametrize("path", LISTS)
def test_page_by_page_is_the_whole_list(full: World, path: str) -> None:
    whole = [row[LISTS[path]] for row in full.ok("GET", path, params={"limit": 500})["items"]]
    assert whole and len(whole) == len(set(whole))
    for limit in (1, 2, len(whole), len(whole) + 1):
        by_page = pages(full, path, limit)
        assert [row[LISTS[path]] for page in by_page for row in page] == whole
        assert all(len(page) == limit for page in by_page[:-1])


@pytest.mark.parametrize("path", LISTS)
def test_a_page_of_nothing_or_of_too_much_is_refused(full: World, path: str) -> None:
    for limit in ("0", "501", "-1", "many"):
        refused(full.call("GET", path, params={"limit": limit}), 422)


def test_a_rollout_made_meanwhile_shifts_no_page(full: World) -> None:
    first = full.ok("GET", "/v1/rollouts", params={"limit": 2})
    full.now += timedelta(seconds=1)
    asked = {"model": MODEL, "release": "r2", "cohort": "c1"}
    full.ok("POST", "/v1/rollouts", json=asked | {"stages": [{"share_bp": 10_000}]})
    rest = full.ok("GET", "/v1/rollouts", params={"limit": 2, "cursor": first["next"]})
    seen = [row["id"] for row in [*first["items"], *rest["items"]]]
    assert len(seen) == len(set(seen)) == 3


def test_a_cursor_that_was_never_given_is_refused(full: World) -> None:
    refused(full.call("GET", "/v1/rollouts", params={"cursor": "nothing"}), 404)
    refused(full.call("GET", "/v1/cohorts", params={"cursor": "No Name"}), 422)
    path = f"/v1/models/{MODEL}/patches"
    refused(full.call("GET", path, params={"cursor": "abc"}), 422)
