"""Deny by default: a route that nobody thought about is a failing test, not an open door."""

from pathlib import Path

import pytest
from fastapi import FastAPI

from service.api.contract import documents
from service.app import create_app
from service.core.access import SCOPES
from service.settings import Settings
from tests.service.routes import Served, routes_of

OPEN = {("GET", "/healthz"), ("GET", "/readyz"), ("POST", "/device/v1/enroll")}


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    database = f"sqlite:///{tmp_path / 'empty.db'}"
    return create_app(Settings(database=database, artifacts=str(tmp_path / "artifacts")))


def test_every_route_but_three_asks_who_is_calling(app: FastAPI) -> None:
    served = routes_of(app)
    assert {(r.method, r.path) for r in served if not r.scopes} == OPEN


def test_devices_and_people_never_share_a_route(app: FastAPI) -> None:
    for route in routes_of(app):
        if (route.method, route.path) in OPEN:
            continue
        if route.path.startswith("/device/"):
            assert route.scopes == {"device"}, route
        else:
            assert len(route.scopes) == 1 and route.scopes <= {*SCOPES, "any"}, route


def test_only_whoami_takes_any_scope_and_what_changes_something_takes_one_that_may(
    app: FastAPI,
) -> None:
    served = routes_of(app)
    assert [r.path for r in served if r.scopes == {"any"}] == ["/v1/whoami"]
    for route in served:
        if route.method not in ("GET", "HEAD") and route.path.startswith("/v1/"):
            assert not any(scope.endswith(":read") for scope in route.scopes), route


def test_the_walk_sees_every_documented_operation(app: FastAPI) -> None:
    documented = {
        (method.upper(), path)
        for document in documents().values()
        for path, operations in document["paths"].items()
        for method in operations
    }
    assert documented <= {(r.method, r.path) for r in routes_of(app)}


def test_a_route_without_a_scope_would_be_noticed(app: FastAPI) -> None:
    app.add_api_route("/v1/forgotten", lambda: {}, methods=["GET"])
    assert Served("GET", "/v1/forgotten", frozenset()) in routes_of(app)


def test_the_documents_say_which_operations_need_a_credential() -> None:
    for document in documents().values():
        for path, operations in document["paths"].items():
            for method, operation in operations.items():
                assert ("security" in operation) == ((method.upper(), path) not in OPEN)
                assert "Authorization" not in str(operation.get("parameters"))


def test_every_documented_error_is_a_problem() -> None:
    for document in documents().values():
        assert "HTTPValidationError" not in str(document)
        for operations in document["paths"].values():
            for operation in operations.values():
                for status, response in operation["responses"].items():
                    if status >= "4":
                        assert "application/problem+json" in response["content"], operation
