"""Slow callers against the real server: they do not stay, and do not keep others waiting."""

import shutil
import socket
import threading
import urllib.request
from collections.abc import Callable, Iterator
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest

from service.core import access
from service.db.session import Database
from tests.service.artifact import BODY, NAME
from tests.service.programs import START_S_MAX, answers, eventually, free_port, program
from tests.service.world import World, digest, refused

IDLE, DRIPPING = 200, 40


@pytest.fixture(scope="module")
def server(sqlite_template: Path, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Any]:
    """A server with little patience: (port, token, its folder of artifacts)."""
    folder = tmp_path_factory.mktemp("slow")
    shutil.copy(sqlite_template, folder / "fleetdiff.db")
    database = Database(f"sqlite:///{folder / 'fleetdiff.db'}")
    with database.writer() as session:
        lifetime, now = timedelta(days=1), datetime.now(UTC)
        token = access.create_token(session, "t", list(access.SCOPES), lifetime, now)[1]
    database.close()
    port = free_port()
    patience = {"FLEETDIFF_HEAD_S_MAX": "3", "FLEETDIFF_BODY_S_MAX": "3"}
    with program(folder, "serve", "--data", folder, "--port", port, **patience):
        eventually(lambda: answers(port), "the server answers")
        yield port, token, folder / "artifacts"


class Caller:
    """A connection that says something, and then nothing or one byte at a time."""

    def __init__(self, port: int, said: str = "", drips: bool = False) -> None:
        self.drips = drips
        self.socket = socket.create_connection(("127.0.0.1", port), timeout=START_S_MAX)
        self.socket.sendall(said.encode())

    def drip(self) -> None:
        if self.drips:
            try:
                self.socket.sendall(b"x")
            except OSError:
                self.drips = False

    def heard(self) -> bytes:
        """Return everything up to the end of the connection, which the server has to end."""
        heard = b""
        try:
            while piece := self.socket.recv(1 << 16):
                heard += piece
        except ConnectionResetError:
            pass
        return heard


def head(method: str, path: str, token: str, length: int) -> str:
    lines = [f"{method} {path} HTTP/1.1", "Host: h", f"Authorization: Bearer {token}"]
    lines += ["Content-Type: application/json", f"Content-Length: {length}"]
    return "\r\n".join([*lines, "", ""])


def call_all(callers: list[Caller], meanwhile: Callable[[], None]) -> list[bytes]:
    """Drip until every connection was ended by the server; ask it something meanwhile."""
    done = threading.Event()

    def drip() -> None:
        while not done.wait(0.1):
            for caller in callers:
                caller.drip()

    thread = threading.Thread(target=drip)
    thread.start()
    try:
        meanwhile()
        return [caller.heard() for caller in callers]
    finally:
        done.set()
        thread.join()
        for caller in callers:
            caller.socket.close()


@pytest.mark.attack("A26")
def test_who_asks_nothing_or_drips_a_head_is_sent_away_and_nobody_waits(server: Any) -> None:
    port, _, _ = server
    callers = [Caller(port) for _ in range(IDLE)]
    callers += [
        Caller(port, "GET /healthz HTTP/1.1\r\nHost: ", drips=True) for _ in range(DRIPPING)
    ]
    callers += [Caller(port, "GET /healthz HTTP/1.1\r\nHost: h\r\n\r\nGET /hea", drips=True)]

    def meanwhile() -> None:
        for _ in range(20):
            assert answers(port)

    heard = call_all(callers, meanwhile)
    assert set(heard[:-1]) == {b""}
    assert heard[-1].startswith(b"HTTP/1.1 200"), "the first request of the last one was whole"
    assert answers(port)


@pytest.mark.attack("A26")
def test_a_head_without_end_is_cut_off(server: Any) -> None:
    caller = Caller(server[0], "GET / HTTP/1.1\r\nX: ")
    with pytest.raises((ConnectionResetError, BrokenPipeError)):
        for _ in range(1000):
            caller.socket.sendall(b"x" * (1 << 16))
    caller.socket.close()


@pytest.mark.attack("A26", "A11")
def test_a_body_that_drips_is_refused_and_leaves_nothing(server: Any) -> None:
    port, token, artifacts = server
    uploads = [
        Caller(port, head("PUT", f"/v1/artifacts/{NAME}", token, length), drips=True)
        for length in [len(BODY), 1 << 31] * 3  # what is announced buys no time, only what came
    ]
    orders = [Caller(port, head("POST", "/v1/models", token, 900), drips=True) for _ in range(20)]

    def meanwhile() -> None:
        for _ in range(20):
            assert answers(port)
        request = urllib.request.Request(f"http://127.0.0.1:{port}/v1/models")
        request.add_header("Authorization", f"Bearer {token}")
        urllib.request.urlopen(request, timeout=30).close()

    for reply in call_all(uploads + orders, meanwhile):
        assert reply.startswith(b"HTTP/1.1 408") and b"/problems/too-slow" in reply
    assert list(artifacts.iterdir()) == []


@pytest.mark.attack("A11")
def test_an_artifact_for_which_there_is_no_room_is_refused(world_sqlite: World) -> None:
    world = world_sqlite
    state = world.app.state
    full = {"store_bytes_max": len(BODY) + 10}
    state.settings = state.settings.model_copy(update=full)
    assert world.call("PUT", f"/v1/artifacts/{NAME}", content=BODY).status_code == 201
    other = b"eleven more"
    reply = world.call("PUT", f"/v1/artifacts/{digest(other)}", content=other)
    assert "no room" in refused(reply, 413, "too-large")["detail"]
    assert world.call("PUT", f"/v1/artifacts/{NAME}", content=BODY).status_code == 200
    assert world.call(
        "PUT", f"/v1/artifacts/{digest(b'ten  bytes')}", content=b"ten  bytes"
    ).is_success
