"""Real servers, started once a run and only if a test asks, and the stores of artifacts."""

import secrets
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from botocore.loaders import create_loader

from service.blobs import Blobs, open_blobs
from service.db import session
from service.publishing import patches
from tests.attacks.table import names_of_rows
from tests.found_once import applied_once, compiled_once
from tests.real.installed import missing
from tests.real.postgres import PostgresServer, run_postgres
from tests.real.process import Missing
from tests.real.s3 import S3Server, run_s3
from tests.real.softhsm import Token, run_softhsm


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """A test says which rows of the table of attacks it covers; a misspelt row would be lost."""
    for item in items:
        for mark in item.iter_markers("attack"):
            if unknown := set(mark.args) - names_of_rows().keys():
                raise pytest.UsageError(f"{item.nodeid}: {unknown} is not in the table of attacks")


@pytest.fixture(scope="session", autouse=True)
def found_once() -> Iterator[None]:
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(patches, "_check", applied_once(patches._check))
        patched.setattr(session, "create_engine", compiled_once(session.create_engine))
        yield


def _start(server: AbstractContextManager[Any], running: ExitStack) -> Any:
    try:
        return running.enter_context(server)
    except Missing as absent:
        missing(str(absent))


@pytest.fixture(scope="session")
def postgres_server() -> Iterator[PostgresServer]:
    with ExitStack() as running:
        yield _start(run_postgres(), running)


@pytest.fixture(scope="session")
def s3_server() -> Iterator[S3Server]:
    with ExitStack() as running, pytest.MonkeyPatch.context() as patched:
        # What botocore knows of AWS is a megabyte of JSON, which it would read for each client.
        patched.setattr("botocore.session.create_loader", cache(create_loader))
        yield _start(run_s3(), running)


@pytest.fixture(scope="session")
def token(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Token]:
    with ExitStack() as running:
        yield _start(run_softhsm(tmp_path_factory.mktemp("softhsm")), running)


@pytest.fixture(params=["local", pytest.param("s3", marks=pytest.mark.real)])
def blobs(request: pytest.FixtureRequest, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Blobs:
    if request.param == "local":
        return open_blobs(str(tmp_path / "artifacts"))
    server: S3Server = request.getfixturevalue("s3_server")
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", server.secret_key)
    return open_blobs(server.location(f"test-{secrets.token_hex(8)}"))
