"""The status page in a real browser: its script runs under its own policy, and keeps up."""

import asyncio
import re
import subprocess
import threading
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from service.app import create_app
from service.db import queries
from service.settings import Settings
from tests.real.installed import command
from tests.service import status_story

BROWSERS = ("chromium-headless-shell", "chromium", "chromium-browser", "google-chrome")
START_TIMEOUT_S, BROWSER_TIMEOUT_S = 30, 120
LISTENER_CLOSED_S = 0.5  # uvicorn looks at its flag every 0.1 s
SEEN_MS = 5000  # of the browser's own clock: the page asks again every 2 s
pytestmark = pytest.mark.real


@pytest.fixture(scope="module")
def browser() -> str:
    return command("chromium-headless-shell", *BROWSERS)


@pytest.fixture
def app(tmp_path: Path) -> FastAPI:
    settings = Settings(
        database=f"sqlite:///{tmp_path / 'fleet.db'}",
        artifacts=str(tmp_path / "artifacts"),
        status_page="open",
    )
    made = create_app(settings, ticking=False, durable=False)
    made.state.clock = lambda: status_story.NOW
    status_story.create_tables(made.state.database)
    with made.state.database.writer() as session:
        status_story.fill(session)
    return made


@contextmanager
def serving(app: ASGIApp) -> Iterator[uvicorn.Server]:
    """Serve an app on a free port until the end of the block, or until told to exit."""
    server = uvicorn.Server(uvicorn.Config(app, port=0, log_config=None))
    thread = threading.Thread(target=server.run)
    thread.start()
    try:
        deadline = time.monotonic() + START_TIMEOUT_S
        while not server.started:
            assert thread.is_alive() and time.monotonic() < deadline, "the server did not start"
            time.sleep(0.01)
        yield server
    finally:
        server.should_exit = True
        thread.join()


class Watched:
    """The app, with a count of refreshes, and a way to change what a refresh meets."""

    def __init__(self, app: FastAPI) -> None:
        self.app = app
        self.statuses: list[int] = []
        self.folds = False
        self.meets: Callable[[int], Awaitable[bool]] = _always

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] != "http" or scope["path"] != "/status":
            await self.app(scope, receive, self._folding(send))
            return

        async def noted(message: Message) -> None:
            if message["type"] == "http.response.start":
                self.statuses.append(message["status"])
            await send(message)

        if await self.meets(len(self.statuses) + 1):
            await self.app(scope, receive, noted)
        else:
            await noted({"type": "http.response.start", "status": 503, "headers": []})
            await send({"type": "http.response.body", "body": b"busy"})

    def _folding(self, send: Send) -> Send:
        """Close every <details> of the page, as a reader would."""

        async def fold(message: Message) -> None:
            if self.folds and "body" in message:
                message["body"] = message["body"].replace(b" open>", b"     >")
            await send(message)

        return fold


async def _always(_number: int) -> bool:
    return True


def seen(browser: str, server: uvicorn.Server, profile: Path) -> str:
    """Return the page as it stands after a few refreshes."""
    address = f"http://127.0.0.1:{server.servers[0].sockets[0].getsockname()[1]}/"
    command = [browser, "--headless", "--no-sandbox", "--disable-gpu", "--dump-dom"]
    options = [f"--user-data-dir={profile}", f"--virtual-time-budget={SEEN_MS}", address]
    run = subprocess.run(
        [*command, *options], capture_output=True, text=True, timeout=BROWSER_TIMEOUT_S, check=True
    )
    return run.stdout


def test_a_browser_shows_the_story_and_asks_again_for_a_few_bytes(
    browser: str, app: FastAPI, tmp_path: Path
) -> None:
    watched = Watched(app)
    with serving(watched) as server:
        dom = seen(browser, server, tmp_path / "profile")
    assert "live, checked" in dom, "the script did not run"
    assert "41 of 43 devices are back on the release they came from." in dom
    assert " ago)</time>" in dom
    assert 'class="stale"' not in dom
    assert len(watched.statuses) >= 2
    assert set(watched.statuses) == {304}


def test_a_change_appears_without_a_reload_and_what_was_folded_stays_so(
    browser: str, app: FastAPI, tmp_path: Path
) -> None:
    async def change_once(number: int) -> bool:
        if number == 2:
            with app.state.database.writer() as session:
                status_story.add_release(session, "brand-new", 5)
                for rollout in queries.recent_rollouts(session, states=["running"]):
                    rollout.waiting_for = "something else"
        return True

    watched = Watched(app)
    watched.folds, watched.meets = True, change_once
    with serving(watched) as server:
        dom = seen(browser, server, tmp_path / "profile")
    assert "brand-new" in dom
    assert "Waiting: something else." in dom
    assert watched.statuses[:2] == [304, 200]
    assert set(watched.statuses[2:]) <= {304}, "the new tag was not kept"
    assert dom.count('id="fleet"') == 1
    assert dom.count("<article") == 3
    assert dom.count("<details") == 6
    assert " open" not in "".join(re.findall(r"<details[^>]*>", dom))


def test_a_server_that_fails_is_said_plainly_and_the_last_answer_stays(
    browser: str, app: FastAPI, tmp_path: Path
) -> None:
    async def only_once(number: int) -> bool:
        return number == 1

    watched = Watched(app)
    watched.meets = only_once
    with serving(watched) as server:
        dom = seen(browser, server, tmp_path / "profile")
    assert "The server answers with error 503. What you see is from" in dom
    assert '<body class="stale">' in dom
    assert "41 of 43 devices are back" in dom


def test_a_server_that_is_gone_is_said_plainly_and_the_last_answer_stays(
    browser: str, app: FastAPI, tmp_path: Path
) -> None:
    watched = Watched(app)
    with serving(watched) as server:

        async def the_last(_number: int) -> bool:
            server.should_exit = True
            await asyncio.sleep(LISTENER_CLOSED_S)
            return True

        watched.meets = the_last
        dom = seen(browser, server, tmp_path / "profile")
    assert watched.statuses == [304]
    assert "The server cannot be reached. What you see is from" in dom
    assert '<body class="stale">' in dom
    assert "41 of 43 devices are back" in dom
