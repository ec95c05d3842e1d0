"""The real app on SQLite and a folder, and on PostgreSQL and S3: the same tests on both."""

import secrets
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from service.api import poll, webhooks
from service.core import policy
from service.db.migrate import migrate
from service.settings import Settings
from tests.real.postgres import PostgresServer, clone, template
from tests.real.s3 import S3Server
from tests.service.identity_provider import Provider, config
from tests.service.line import three_releases
from tests.service.memory import Memory
from tests.service.publishing import pin
from tests.service.world import World, opened, patient


@pytest.fixture(autouse=True)
def nobody_draws_the_last_place(monkeypatch: pytest.MonkeyPatch) -> None:
    """A share of 9999 of 10000 is everyone here: one run in 300 had a device outside of it."""
    drawn = policy.bucket
    monkeypatch.setattr(policy, "bucket", lambda salt, device: drawn(salt, device) % 9999)


@pytest.fixture(autouse=True)
def no_stream_lasts(monkeypatch: pytest.MonkeyPatch) -> None:
    """A stream of events lasts an hour; here it ends at once, unless a test reads it."""
    monkeypatch.setattr(webhooks, "STREAM_LOOKS", 0)


@pytest.fixture(scope="session")
def sqlite_template(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A database migrated once by the real scripts; each test copies the file."""
    path = tmp_path_factory.mktemp("template") / "fleetdiff.db"
    migrate(f"sqlite:///{path}")
    return path


@pytest.fixture
def sqlite_url(sqlite_template: Path, tmp_path: Path) -> str:
    shutil.copy(sqlite_template, tmp_path / "fleetdiff.db")
    return f"sqlite:///{tmp_path / 'fleetdiff.db'}"


@pytest.fixture(params=["sqlite", pytest.param("postgres", marks=pytest.mark.real)])
def settings(request: pytest.FixtureRequest, tmp_path: Path) -> Settings:
    if request.param == "sqlite":
        url: str = request.getfixturevalue("sqlite_url")
        return patient(database=url, artifacts=str(tmp_path / "artifacts"))
    url = request.getfixturevalue("postgres_url")
    return patient(database=url, artifacts=request.getfixturevalue("s3_location"))


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> Iterator[World]:
    with opened(settings, tmp_path) as world:
        yield world.found()


@pytest.fixture
def world_sqlite(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """The small world, for what no database can make different."""
    settings = patient(database=sqlite_url, artifacts=str(tmp_path / "artifacts"))
    with opened(settings, tmp_path) as world:
        yield world.found()


@pytest.fixture
def line(world: World) -> World:
    """A world with three releases and a patch for each hop."""
    return three_releases(world)


@pytest.fixture
def line_sqlite(world_sqlite: World) -> World:
    return three_releases(world_sqlite)


@pytest.fixture
def pinned(world: World, tmp_path: Path) -> World:
    """A world whose publisher knows the root and keeps a record, as the process does."""
    return pin(world, tmp_path)


@pytest.fixture
def pinned_sqlite(world_sqlite: World, tmp_path: Path) -> World:
    return pin(world_sqlite, tmp_path)


@pytest.fixture
def provider() -> Iterator[Provider]:
    made = Provider()
    yield made
    made.stop()


@pytest.fixture
def people(provider: Provider, sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """A world whose people come from an identity provider."""
    artifacts = str(tmp_path / "artifacts")
    chosen = patient(database=sqlite_url, artifacts=artifacts, oidc=config(provider))
    with opened(chosen, tmp_path) as world:
        world.app.state.provider.clock_s = lambda: world.now.timestamp()
        yield world.found()


@pytest.fixture
def unpublished(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """A server to which nothing was ever published."""
    settings = patient(database=sqlite_url, artifacts=str(tmp_path / "artifacts"))
    with opened(settings, tmp_path) as world:
        yield world


@pytest.fixture(scope="session")
def postgres_template(postgres_server: PostgresServer) -> Iterator[str]:
    """A database migrated once by the real scripts; each test clones it."""
    with template(postgres_server, migrate) as name:
        yield name


@pytest.fixture
def postgres_url(postgres_server: PostgresServer, postgres_template: str) -> Iterator[str]:
    with clone(postgres_server, postgres_template) as url:
        yield url


@pytest.fixture
def s3_location(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> str:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)
    return s3_server.location(f"test-{secrets.token_hex(8)}")


@pytest.fixture
def memory(monkeypatch: pytest.MonkeyPatch) -> Memory:
    memory = Memory()
    monkeypatch.setattr(poll, "_answer", memory.answer)
    return memory
