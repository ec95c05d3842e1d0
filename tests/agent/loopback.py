"""HTTP on the loopback interface, as a test wants it: slow, cut off, wrong or right."""

import json
import threading
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qs, urlsplit


@dataclass
class Answer:
    """An HTTP answer before it leaves; chunks go out one by one, with a pause before each."""

    status: int = 200
    body: bytes = b""
    headers: dict[str, str] = field(default_factory=dict)
    chunks: Iterable[bytes] | None = None
    pause_s: float = 0.0
    declare: int | None = None


@dataclass
class Asked:
    """A request as it came."""

    method: str
    path: str
    query: dict[str, str]
    headers: dict[str, str]
    body: bytes


Lie = Callable[[Asked, Answer], Answer]


def ranged(data: bytes, asked: Asked) -> Answer:
    wanted = asked.headers.get("range")
    if not wanted:
        return Answer(200, data)
    start = int(wanted.removeprefix("bytes=").rstrip("-"))
    if start >= len(data):
        return Answer(416)
    header = f"bytes {start}-{len(data) - 1}/{len(data)}"
    return Answer(206, data[start:], {"Content-Range": header})


REFUSED = {"WWW-Authenticate": 'Bearer realm="fleetdiff"'}


def problem(status: int, name: str, title: str, **headers: str) -> Answer:
    document = {"type": f"/problems/{name}", "title": title, "status": status, "detail": ""}
    return Answer(
        status,
        json.dumps(document).encode(),
        {"Content-Type": "application/problem+json", **headers},
    )


@contextmanager
def serving(answer: Callable[[Asked], Answer], asked_log: list[Asked]) -> Iterator[str]:
    """Serve on a free loopback port; yields the address."""

    class Handler(BaseHTTPRequestHandler):
        def handle_one(self) -> None:
            parts = urlsplit(self.path)
            query = {k: v[0] for k, v in parse_qs(parts.query).items()}
            headers = {k.lower(): v for k, v in self.headers.items()}
            body = self.rfile.read(int(headers.get("content-length", 0)))
            asked = Asked(self.command, parts.path, query, headers, body)
            asked_log.append(asked)
            self.send(answer(asked))

        def send(self, found: Answer) -> None:
            self.send_response(found.status)
            for name, value in found.headers.items():
                self.send_header(name, value)
            if found.chunks is None or found.declare is not None:
                length = len(found.body) if found.declare is None else found.declare
                self.send_header("Content-Length", str(length))
            self.end_headers()
            for chunk in [found.body] if found.chunks is None else found.chunks:
                if found.pause_s:
                    time.sleep(found.pause_s)
                self.wfile.write(chunk)

        do_GET = do_POST = handle_one  # noqa: N815

        def log_message(self, *words: Any) -> None:
            return

    class Quiet(ThreadingHTTPServer):
        daemon_threads = True
        block_on_close = False

        def handle_error(self, *words: Any) -> None:  # A client that hangs up is what we test.
            return

    server = Quiet(("127.0.0.1", 0), Handler)
    thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.01})
    thread.start()
    try:
        yield f"http://127.0.0.1:{server.server_address[1]}"
    finally:
        server.shutdown()
        server.server_close()
        thread.join()
