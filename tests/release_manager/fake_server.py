"""A server in this process that answers the admin API as the contract says, over real HTTP.

It is the one test double of these tests. It keeps everything in plain attributes, so that a test
can play a hostile or a broken server by changing them: `documents` are served as they are, `fail`
lists answers that are given before anything else.
"""

import json
import threading
from collections.abc import Callable
from hashlib import sha256
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any
from urllib.parse import parse_qsl, urlsplit

TOKEN = "fd_0123abcd_" + "s3cr3t" * 7 + "x"


class FakeServer(ThreadingHTTPServer):
    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Handler)
        self.documents: dict[str, bytes] = {}
        self.newest: dict[str, int] = {}
        self.artifacts: dict[str, bytes] = {}
        self.models: list[str] = []
        self.answers: dict[str, Any] = {}
        self.waits: list[dict[str, Any]] = []
        self.fail: list[tuple[int, dict[str, Any]]] = []
        self.lose_replies: list[str] = []
        self.cut_replies: list[str] = []
        self.before_put: dict[str, Callable[[], None]] = {}
        self.seen: list[tuple[str, str, Any]] = []
        self.tokens_seen: list[str] = []
        self.keys_seen: list[str] = []
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}"

    def calls(self, method: str) -> list[str]:
        return [path for verb, path, _ in self.seen if verb == method]

    def stop(self) -> None:
        self.shutdown()
        self.server_close()


class _Problem(Exception):
    def __init__(self, status: int, title: str, detail: str, **fields: Any) -> None:
        self.status = status
        self.document = {"type": "/problems/x", "title": title, "status": status, "detail": detail}
        self.document |= fields


class _Handler(BaseHTTPRequestHandler):
    server: FakeServer
    protocol_version = "HTTP/1.1"

    def log_message(self, format: str, *args: Any) -> None:
        pass

    def _serve(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        parts = urlsplit(self.path)
        if self.command == "PUT" and parts.path in self.server.before_put:
            self.server.before_put.pop(parts.path)()
        self.server.seen.append((self.command, parts.path, body))
        if self.command == "POST":
            self.server.keys_seen.append(self.headers.get("Idempotency-Key", ""))
        self.server.tokens_seen.append(self.headers.get("Authorization", ""))
        try:
            if self.server.fail:
                status, document = self.server.fail.pop(0)
                return self._answer(status, document)
            if self.headers.get("Authorization") != f"Bearer {TOKEN}":
                raise _Problem(401, "Unauthorized", "the token is not known")
            status, answer = self._route(parts.path, dict(parse_qsl(parts.query)), body)
        except _Problem as problem:
            status, answer = problem.status, problem.document
        if parts.path in self.server.lose_replies:
            self.server.lose_replies.remove(parts.path)
            self.close_connection = True
            return None
        return self._answer(status, answer)

    do_GET = do_HEAD = do_PUT = do_POST = do_PATCH = do_DELETE = _serve  # noqa: N815

    def _answer(self, status: int, answer: Any) -> None:
        body = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
        self.send_response(status)
        self.send_header("Content-Length", str(len(body)))
        if 300 <= status < 400:
            self.send_header("Location", answer["location"])
        self.end_headers()
        path = urlsplit(self.path).path
        if path in self.server.cut_replies:
            self.server.cut_replies.remove(path)
            self.close_connection = True
            body = body[: len(body) // 2]
        if self.command != "HEAD":
            self.wfile.write(body)

    def _route(self, path: str, query: dict[str, str], body: bytes) -> tuple[int, Any]:
        server, words = self.server, path.split("/")[2:]
        if words[0] == "metadata":
            return self._metadata(words[1:], body)
        if words[0] == "artifacts":
            return self._artifact(words[1], body)
        if path == "/v1/models" and self.command == "POST":
            name = json.loads(body)["name"]
            if name in server.models:
                raise _Problem(409, "Already exists", f"there is a model {name}", model=name)
            server.models.append(name)
            return 201, {"name": name}
        if words[-1] == "wait":
            return 200, server.waits.pop(0) if len(server.waits) > 1 else server.waits[0]
        key = f"{self.command} {path}"
        if key not in server.answers:
            raise _Problem(404, "Not found", f"nothing at {path}")
        answer = server.answers[key]
        return 200, answer(query, body) if callable(answer) else answer

    def _metadata(self, words: list[str], body: bytes) -> tuple[int, Any]:
        server = self.server
        if not words:
            return 200, server.newest
        if self.command == "GET":
            if words[0] not in server.documents:
                raise _Problem(404, "Not found", words[0])
            return 200, server.documents[words[0]]
        role, version = words[0], json.loads(body)["signed"]["version"]
        if version != server.newest.get(role, 0) + 1:
            raise _Problem(409, "Not the next version", f"{role} {version}", code="E_ROLLBACK_META")
        server.newest[role] = version
        server.documents[f"{version}.{role}.json"] = body
        return 201, {"role": role, "version": version}

    def _artifact(self, digest: str, body: bytes) -> tuple[int, Any]:
        if self.command != "PUT":
            if digest not in self.server.artifacts:
                raise _Problem(404, "Not found", digest)
            return 200, self.server.artifacts[digest]
        if sha256(body).hexdigest() != digest:
            raise _Problem(422, "Wrong digest", "the body is not what its name says")
        self.server.artifacts[digest] = body
        return 201, {"sha256": digest, "bytes": len(body)}
