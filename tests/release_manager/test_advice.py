"""The second line of a failure: what to do is right for what was wrong."""

import pytest

from tests.release_manager.desk import Desk


def problem(title: str, **more: object) -> dict[str, object]:
    return {"type": "x", "title": title, **more}


def test_a_refused_token_may_be_the_one_of_the_environment(desk: Desk) -> None:
    desk.server.fail = [(401, problem("A valid credential is required"))]
    assert desk.run("model", "list") == 1
    assert "--token -" in desk.err and "FLEETDIFF_TOKEN" in desk.err


@pytest.mark.parametrize("status", [400, 404, 500, 501])
def test_an_answer_without_a_problem_document_may_be_of_another_server(
    desk: Desk, status: int
) -> None:
    desk.server.fail = [(status, b"<html>")]  # type: ignore[list-item]
    assert desk.run("model", "list") == 1
    assert "check that the address is that of a Fleetdiff server" in desk.err


def test_what_is_forbidden_is_not_always_a_matter_of_scopes(desk: Desk) -> None:
    desk.server.fail = [(403, problem("no", detail="set FLEETDIFF_WEBHOOKS_TO"))]
    assert desk.run("webhook", "create", "https://hooks.example/x") == 1
    assert "use a token with the scope" not in desk.err
    desk.server.fail = [(403, problem("no", scope="releases:write"))]
    assert desk.run("model", "list") == 1
    assert "use a token with the scope" in desk.err


def test_a_server_that_is_asked_again_is_named_meanwhile(desk: Desk) -> None:
    desk.server.answers["GET /v1/models"] = {"items": []}
    desk.server.fail = [(503, {})]
    assert desk.run("model", "list") == 0 and desk.err == ""
    desk.server.fail = [(503, {}), (502, {}), (502, {})]
    assert desk.run("model", "list") == 0
    again = desk.err.splitlines()
    assert len(again) == 2 and all("it answered 502; asking again in" in line for line in again)


def test_a_start_that_is_refused_says_how_to_drop_the_draft(desk: Desk) -> None:
    desk.server.answers["POST /v1/rollouts"] = {"id": "ro1", "state": "draft"}
    desk.server.fail = []
    assert desk.run("rollout", "start", "asr", "r1", "--cohort", "k") == 1
    assert "fleetdiff rollout resume ro1" in desk.err and "rollout halt ro1" in desk.err


def test_a_change_of_nothing_is_wrong_usage(desk: Desk) -> None:
    assert desk.run("rollout", "change", "ro1") == 2
    assert "--per-minute, --bytes or --at" in desk.err and desk.server.seen == []
