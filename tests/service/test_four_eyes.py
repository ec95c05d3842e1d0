"""Four eyes: what takes approvals waits for them, and nobody approves what is their own."""

from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from service.core import access
from tests.service.publishing import ALL, approve, limit, ordered
from tests.service.test_audit import log_of
from tests.service.world import BASE, MODEL, World, digest, refused

ANNE, BEN, CARL = (CryptoSigner.generate_ed25519() for _ in range(3))
Tokens = dict[str, str]


@pytest.fixture
def tokens(world: World) -> Tokens:
    """A token of each person, with every scope but the power to make tokens."""
    scopes = [scope for scope in access.SCOPES if scope != "tokens:admin"]
    return {name: world.token_with(*scopes, name=name) for name in ("anne", "ben", "carl")}


def asked(world: World, token: str, **more: Any) -> Any:
    """Let somebody start a rollout of r2 to all."""
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL} | more
    rollout = world.ok("POST", "/v1/rollouts", token=token, json=body)["id"]
    return world.ok("POST", f"/v1/rollouts/{rollout}/start", token=token)


def small_cohort(world: World, *devices: str) -> None:
    body = {"name": "few", "model": MODEL, "devices": list(devices)}
    world.ok("POST", "/v1/cohorts", json=body)


@pytest.mark.attack("A24")
def test_a_rollout_to_more_than_the_share_waits_until_somebody_else_approves(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, approval_above_bp=5000)
    phones = pinned.fleet(4, digest(BASE))
    rollout = asked(pinned, tokens["anne"])
    assert rollout["state"] == "awaiting_approval" and rollout["asked_by"] == "anne"
    waits_for = rollout["health"]["waiting_for"]
    assert "4 devices" in waits_for and "4 of 4" in waits_for and "anne asks" in waits_for
    assert [phone.poll()["hold"] for phone in phones] == ["no_rollout"] * 4

    own = approve(pinned, rollout["id"], tokens["anne"])
    assert "somebody else must" in refused(own, 403, "forbidden")["detail"]
    entry = next(entry for entry in reversed(log_of(pinned)) if entry["result"] == "denied")
    assert "anne" in entry["actor"] and entry["object"].endswith("/approve")

    done = approve(pinned, rollout["id"], tokens["ben"]).json()
    assert (done["state"], done["created_by"], done["approved_by"]) == ("running", "anne", ["ben"])
    decisions = pinned.ok("GET", f"/v1/rollouts/{rollout['id']}/decisions")["items"]
    assert [(d["decision"], d["actor"]) for d in decisions] == [
        ("ask", "anne"),
        ("approve", "ben"),
        ("start", "ben"),
    ]
    for phone in phones:
        phone.etag = ""
        phone.poll()
    assert pinned.work() == [] and ordered(pinned) == 4


def test_whoever_starts_what_another_made_does_not_approve_it_either(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, approval_above_bp=0)
    pinned.fleet(2, digest(BASE))
    body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": ALL}
    rollout = pinned.ok("POST", "/v1/rollouts", token=tokens["anne"], json=body)["id"]
    pinned.ok("POST", f"/v1/rollouts/{rollout}/start", token=tokens["ben"])
    again = pinned.ok("POST", f"/v1/rollouts/{rollout}/start", token=tokens["carl"])
    assert (again["state"], again["asked_by"]) == ("awaiting_approval", "ben")
    for name in ("anne", "ben"):
        refused(approve(pinned, rollout, tokens[name]), 403, "forbidden")
    assert approve(pinned, rollout, tokens["carl"]).json()["state"] == "running"
    refused(approve(pinned, rollout, tokens["carl"]), 409, "wrong-state")


def test_an_approval_takes_its_scope_and_the_plan_that_was_seen(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, approval_above_bp=0)
    pinned.fleet(2, digest(BASE))
    rollout = asked(pinned, tokens["anne"])["id"]
    operator = pinned.token_with("rollouts:read", "rollouts:write", "rollouts:halt", name="dan")
    refused(approve(pinned, rollout, operator), 403, "forbidden")
    refused(approve(pinned, rollout, tokens["ben"], plan="0" * 64), 412, "not-as-seen")
    for wrong in ({"plan": "x"}, {"keyid": "0" * 63}, {"sig": "zz"}, {"more": 1}):
        refused(approve(pinned, rollout, tokens["ben"], **wrong), 422)
    path = f"/v1/rollouts/{rollout}"
    assert pinned.call("POST", f"{path}/resume").status_code == 409
    assert pinned.ok("GET", path)["state"] == "awaiting_approval"
    assert pinned.ok("GET", "/v1/rollouts?state=awaiting_approval")["items"][0]["id"] == rollout
    assert pinned.ok("POST", f"{path}/halt")["state"] == "canceled"
    refused(approve(pinned, rollout, tokens["ben"]), 409, "wrong-state")


def test_small_cohorts_go_without_until_their_release_has_reached_the_share(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, approval_above_bp=5000)
    phones = pinned.fleet(4, digest(BASE))
    small_cohort(pinned, phones[0].id, phones[1].id)
    assert asked(pinned, tokens["anne"], cohort="few")["state"] == "running"
    for phone in phones[:2]:
        phone.poll()
    body = {"name": "more", "model": MODEL, "devices": [phones[2].id]}
    pinned.ok("POST", "/v1/cohorts", json=body)
    assert asked(pinned, tokens["anne"], cohort="more")["state"] == "awaiting_approval"


def test_a_plan_beyond_the_limits_is_refused_whoever_would_approve_it(
    pinned: World, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, first_share_bp=2500, step_share_bp=5000, soak_s=3600)
    pinned.fleet(8, digest(BASE))
    soaked = [{"share_bp": 2500, "soak_s": 3600}, {"share_bp": 7500, "soak_s": 3600}]
    whole = {"share_bp": 10_000}
    for stages, member in (
        ([whole], "share_bp_max"),
        ([soaked[0], whole], "share_bp_max"),
        ([{"share_bp": 2500, "soak_s": 3599}, soaked[1], whole], "soak_s_least"),
    ):
        body = {"model": MODEL, "release": "r2", "cohort": "all", "stages": stages}
        rollout = pinned.ok("POST", "/v1/rollouts", json=body)["id"]
        found = refused(pinned.call("POST", f"/v1/rollouts/{rollout}/start"), 409, "beyond-limits")
        assert member in found and "at " in found["detail"]
        assert pinned.ok("GET", f"/v1/rollouts/{rollout}")["state"] == "draft"
    assert pinned.start_rollout("r2", "all", stages=[*soaked, whole])


@pytest.mark.attack("A24")
def test_where_keys_approve_a_word_is_not_enough_nor_a_signature_of_somebody_else(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, BEN, CARL, approval_above_bp=0)
    pinned.fleet(2, digest(BASE))
    rollout, other = (asked(pinned, tokens["anne"])["id"] for _ in range(2))
    before = pinned.rows()["rollout"]
    refused(approve(pinned, rollout, tokens["ben"]), 422, "not-approved")
    refused(approve(pinned, rollout, tokens["ben"], ANNE), 422, "not-approved")
    refused(approve(pinned, rollout, tokens["ben"], ANNE, keyid=BEN.public_key.keyid), 422)
    refused(approve(pinned, rollout, tokens["ben"], BEN, sig="00" * 64), 422, "not-approved")
    seen = pinned.ok("GET", f"/v1/rollouts/{rollout}/plan")["sha256"]
    refused(approve(pinned, other, tokens["ben"], BEN, plan=seen), 412, "not-as-seen")
    assert pinned.rows()["rollout"] == before
    assert approve(pinned, rollout, tokens["ben"], BEN).json()["state"] == "running"


def test_two_approvals_are_of_two_people_with_two_keys(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    limit(pinned, tmp_path, BEN, CARL, approval_above_bp=0, approvals=2)
    phones = pinned.fleet(2, digest(BASE))
    rollout = asked(pinned, tokens["anne"])["id"]
    first = approve(pinned, rollout, tokens["ben"], BEN).json()
    assert (first["state"], first["approved_by"]) == ("awaiting_approval", ["ben"])
    assert "anne asks" in first["health"]["waiting_for"]
    refused(approve(pinned, rollout, tokens["ben"], CARL), 403, "forbidden")
    refused(approve(pinned, rollout, tokens["carl"], BEN), 403, "forbidden")
    assert approve(pinned, rollout, tokens["carl"], CARL).json()["state"] == "running"
    for phone in phones:
        phone.poll()
    assert pinned.work() == [] and ordered(pinned) == 2


def test_a_server_that_lost_its_limits_starts_what_waited(
    pinned: World, tokens: Tokens, tmp_path: Any
) -> None:
    """Its publisher keeps its own: that is where they hold."""
    limit(pinned, tmp_path, approval_above_bp=0)
    pinned.fleet(2, digest(BASE))
    rollout = asked(pinned, tokens["anne"])["id"]
    pinned.app.state.rollout_limits = None
    refused(approve(pinned, rollout, tokens["ben"]), 409, "wrong-state")
    assert pinned.ok("POST", f"/v1/rollouts/{rollout}/start")["state"] == "running"
