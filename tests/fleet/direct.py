"""Requests to the app in this very thread: past sockets, and past every thread of the server.

In a simulation one request is over before the next one begins, so none has anything to wait for:
what the app gives to a thread is done at once. What is left is the app's own work, and that is
what `spent_s` adds up.
"""

import asyncio
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar
from unittest import mock

from anyio import to_thread
from fastapi import FastAPI

Result = TypeVar("Result")
Answer = tuple[int, dict[str, str], bytes]


class Direct:
    """The way to the device API of an app.

    Attributes:
        counts: kind of request and status -> how many.
        spent_s: the same -> processor seconds of the app.
    """

    def __init__(self, app: FastAPI) -> None:
        self._app, self._loop = app, asyncio.new_event_loop()
        self.counts: Counter[str] = Counter()
        self.spent_s: Counter[str] = Counter()

    def close(self) -> None:
        """Let go of the event loop."""
        self._loop.close()

    def within(self, call: Callable[[], Result]) -> Result:
        """Call what sends requests, inside of the event loop that the app asks for."""

        async def called() -> Result:
            with mock.patch.object(to_thread, "run_sync", _at_once):
                return call()

        return self._loop.run_until_complete(called())

    def send(self, method: str, path: str, headers: dict[str, str], body: bytes = b"") -> Answer:
        """Send a request to the device API and return status, headers and body of the answer."""
        route, _, query = path.partition("?")
        scope = {
            "type": "http",
            "asgi": {"version": "3.0", "spec_version": "2.4"},
            "http_version": "1.1",
            "method": method,
            "scheme": "http",
            "path": f"/device/v1/{route}",
            "raw_path": f"/device/v1/{route}".encode(),
            "root_path": "",
            "query_string": query.encode(),
            "headers": [(name.encode(), value.encode()) for name, value in headers.items()],
            "client": ("127.0.0.1", 1),
            "server": ("fleet.example", 80),
            "extensions": {"http.response.pathsend": {}},
        }
        got: list[Any] = []

        async def receive() -> dict[str, Any]:
            return {"type": "http.request", "body": body, "more_body": False}

        async def send(message: Any) -> None:
            got.append(message)

        began_s = time.thread_time()
        # Nobody else writes to this database: what others changed is known, always.
        self._app.state.database.entries.heard(time.monotonic())
        _finish(self._app(scope, receive, send))
        kind = f"{method} {route.partition('/')[0]} {got[0]['status']}"
        self.counts[kind] += 1
        self.spent_s[kind] += time.thread_time() - began_s
        told = {name.decode().lower(): value.decode() for name, value in got[0]["headers"]}
        return got[0]["status"], told, b"".join(map(_body_of, got[1:]))


def _body_of(message: Any) -> bytes:
    path = message.get("path")
    return message.get("body", b"") if path is None else Path(path).read_bytes()


def _finish(answering: Any) -> None:
    try:
        answering.send(None)
    except StopIteration:
        return
    answering.close()
    raise RuntimeError("the app waits for something that this thread would have to do")


async def _at_once(call: Callable[..., Result], *args: Any, **_how: Any) -> Result:
    return call(*args)
