"""The publisher and the server as two real processes, on one database."""

import json
import os
import shutil
import signal
import subprocess
import sys
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from sqlalchemy import select

from service.core import access
from service.db.migrate import migrate
from service.db.session import Database
from service.db.tables import PublisherState
from service.settings import Settings
from tests.service.programs import (
    answers,
    eventually,
    free_port,
    key_material_in,
    listens,
    program,
)
from tests.service.publishing import FAMILY, newest, published, trusted_by
from tests.service.world import BASE, BETTER, MODEL, World, digest, opened
from trust import sign
from trust.floors import Floors
from trust.order import read_envelope, read_order


@pytest.fixture
def today(sqlite_url: str, tmp_path: Path) -> Iterator[World]:
    """A world of today, for processes that read the system's clock; its keys lie apart."""
    settings = Settings(database=sqlite_url, artifacts=str(tmp_path / "artifacts"), poll_after_s=60)
    with opened(settings, tmp_path) as world:
        world.now = datetime.now(UTC)
        world.token = world.token_with(*access.SCOPES)
        world.found()
        online = tmp_path / "publisher" / "online"
        online.mkdir(parents=True)
        for role in ("snapshot", "timestamp", "director"):
            shutil.copy(world.keys_folder / f"{role}.pem", online)
        root = world.call("GET", "/v1/metadata/1.root.json").content
        (tmp_path / "publisher" / "root.json").write_bytes(root)
        yield world


@contextmanager
def publishing(world: World, folder: Path) -> Iterator["subprocess.Popen[bytes]"]:
    own = folder / "publisher"
    words = ["--online-keys", own / "online", "--root", own / "root.json", "--round-s", "0.05"]
    words += ["--record", own / "record.db"]
    url = world.app.state.settings.database
    with program(folder / "publish", "publish", *words, FLEETDIFF_DATABASE=url) as process:
        yield process


@contextmanager
def serving(world: World, folder: Path, port: int) -> Iterator["subprocess.Popen[bytes]"]:
    chosen = world.app.state.settings
    environ = {"FLEETDIFF_DATABASE": chosen.database, "FLEETDIFF_ARTIFACTS": chosen.artifacts}
    environ |= {"FLEETDIFF_PUBLISHER": "external", "FLEETDIFF_PORT": str(port)}
    with program(folder / "serve", "serve", "--tick-s", "0.1", **environ) as process:
        eventually(lambda: answers(port), "the server answers")
        yield process


@pytest.mark.attack("A25")
def test_the_server_holds_no_key_anywhere_and_what_it_accepts_is_signed_all_the_same(
    today: World, tmp_path: Path
) -> None:
    port, keys = free_port(), today.keys_folder
    with serving(today, tmp_path, port) as server, publishing(today, tmp_path) as publisher:
        eventually(lambda: "snapshot" in today.ok("GET", "/v1/metadata"), "it is published")
        send_family(today, port)
        await_family(today, 1)
        assert key_material_in(server, keys) == []
        found = key_material_in(publisher, keys)
        assert any(str(tmp_path / "publisher" / "online") in where for where in found)
        assert any(where.startswith("memory") for where in found), "the search finds keys"
        assert listens(server) and not listens(publisher)


@pytest.mark.attack("A25")
def test_a_device_gets_its_order_from_a_server_that_could_not_have_signed_it(
    today: World, tmp_path: Path
) -> None:
    first, second = today.release("r1", BASE), today.release("r2", BETTER)
    for body in (BASE, BETTER):
        today.upload(body)
    today.sign_family(*[sign.target_of(MODEL, release) for release in (first, second)])
    today.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
    phone, port = today.enroll("s1"), free_port()
    today.start_rollout("r2", "all", stages=[{"share_bp": 10_000}])

    def order() -> Any:
        url = f"http://127.0.0.1:{port}/device/v1/poll?s={digest(BASE)}"
        request = urllib.request.Request(url)
        request.add_header("Authorization", f"Bearer {phone.credential}")
        with urllib.request.urlopen(request, timeout=30) as reply:
            return json.load(reply)["order"]

    with serving(today, tmp_path, port):
        assert order() is None, "the tick of the server wishes, and cannot grant"
        with publishing(today, tmp_path):
            eventually(order, "the order is signed")
            envelope = json.dumps(order()).encode()
    assert read_order(read_envelope(envelope).payload).release == "r2"


def rounds_of(database: Database) -> str:
    with database.reader() as session:
        return str(session.scalars(select(PublisherState.id)).all())


def await_family(world: World, version: int) -> None:
    eventually(lambda: published(world).get(FAMILY) == version, "the family is vouched for")


def send_family(world: World, port: int) -> None:
    request = urllib.request.Request(
        f"http://127.0.0.1:{port}/v1/metadata/{FAMILY}", world.next_family(), method="PUT"
    )
    request.add_header("Authorization", f"Bearer {world.token}")
    urllib.request.urlopen(request, timeout=30).close()


def test_a_publisher_that_is_told_to_end_ends_its_round_first(today: World, tmp_path: Path) -> None:
    with publishing(today, tmp_path) as process:
        eventually(lambda: "snapshot" in today.ok("GET", "/v1/metadata"), "it is published")
        process.send_signal(signal.SIGTERM)
        assert process.wait(30) == 0
    assert '"event": "ended"' in (tmp_path / "publish" / "log").read_text()


def test_a_publisher_killed_again_and_again_leaves_what_devices_trust(
    today: World, tmp_path: Path
) -> None:
    phone = today.enroll("s1", runs=digest(BASE))
    with publishing(today, tmp_path):
        eventually(lambda: "timestamp" in today.ok("GET", "/v1/metadata"), "it is published")
    floors, log = Floors(), tmp_path / "publish" / "log"
    for number in range(1, 7):
        today.sign_family()
        log.write_bytes(b"")
        with publishing(today, tmp_path) as process:
            eventually(lambda: b'"publish"' in log.read_bytes(), "it began")
            if number % 2:
                await_family(today, number)
            os.kill(process.pid, signal.SIGKILL)
            process.wait()
        trusted, floors = trusted_by(today, phone, tmp_path / f"tuf{number}", floors)
        assert trusted.versions["snapshot"] == newest(today, "snapshot")
    with publishing(today, tmp_path):
        eventually(
            lambda: published(today).get(FAMILY) == 6, "the last round ends what was cut off"
        )
    trusted, _ = trusted_by(today, phone, tmp_path / "last", floors)
    assert trusted.versions[FAMILY] == 6


def test_a_publisher_waits_for_a_database_that_is_not_migrated_yet(
    today: World, tmp_path: Path
) -> None:
    today.app.state.settings = Settings(database=f"sqlite:///{tmp_path / 'late.db'}", artifacts="-")
    log = tmp_path / "publish" / "log"
    with publishing(today, tmp_path) as process:
        eventually(lambda: b"round failed" in log.read_bytes(), "it says that it cannot")
        migrate(today.app.state.settings.database)
        database = Database(today.app.state.settings.database)
        eventually(lambda: "1" in rounds_of(database), "it makes a round")
        database.close()
        assert process.poll() is None


@pytest.mark.attack("A25")
def test_a_server_with_an_external_publisher_refuses_to_be_shown_keys(tmp_path: Path) -> None:
    words = ["serve", "--data", tmp_path, "--publisher", "external", "--online-keys", tmp_path]
    done = subprocess.run(
        [sys.executable, "-m", "service", *words], capture_output=True, text=True, check=False
    )
    assert done.returncode == 2
    assert "FLEETDIFF_ONLINE_KEYS: Value error, an external publisher holds the keys" in done.stderr
