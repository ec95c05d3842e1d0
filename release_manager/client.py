"""The REST client: one request at a time, streamed, bounded, retried where that is safe.

Everything may be sent twice, a POST by its `Idempotency-Key`, and is, with growing pauses, when
the network or the server is in trouble; a refusal is final at once. The token goes to the
configured server only: a redirect, which artifacts may answer with, is followed without it.
"""

import json
import time
from collections.abc import Callable, Mapping
from contextlib import ExitStack
from email.message import Message
from hashlib import sha256
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import Any
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener
from uuid import uuid4

from release_manager import show
from release_manager.config import Secret, Settings
from release_manager.errors import Refused, Unreachable, Usage

TIMEOUT_S = 60
TRIES = 5
FIRST_PAUSE_S = 0.5
PAUSE_S_MAX = 30.0
JSON_BYTES_MAX = 64 << 20
PROBLEM_BYTES_MAX = 64 << 10
TRANSIENT = frozenset({429, 502, 503, 504})
_ADVICE = {
    401: "log in again (fleetdiff login --server URL --token -); FLEETDIFF_TOKEN wins over that",
    404: "check the name; the list commands show what is there",
    409: "look at the present state first, then run the command again if it still makes sense",
    413: "publish a smaller file, or raise the server's limit",
}
_WHOSE = "check that the address is that of a Fleetdiff server, not of something in front of it"
_Read = Callable[[HTTPResponse], Any]
_Body = bytes | Path | Mapping[str, Any] | None


def connect(settings: Settings) -> "Client":
    """Return a client of the configured server.

    Raises:
        Usage: no server or no token is configured.
    """
    if settings.server is None or settings.token is None:
        raise Usage(
            f"no {'token' if settings.server else 'server'} is configured",
            "run fleetdiff login --server URL --token TOKEN, or set FLEETDIFF_SERVER and "
            "FLEETDIFF_TOKEN",
        )
    return Client(settings.server, settings.token)


def hash_file(path: Path) -> tuple[str, int]:
    """Return the SHA-256 and the size of a file.

    Raises:
        Refused: it is empty.
        OSError: it cannot be read.
    """
    digest = sha256()
    with path.open("rb") as file:
        for block in show.blocks(file.read, path.stat().st_size, f"hashing {path.name[:24]}"):
            digest.update(block)
        size = file.tell()
    if not size:
        raise Refused(f"{path} is empty", "give the file that was meant")
    return digest.hexdigest(), size


class Client:
    """Talks to one server as one user; every call raises Refused or Unreachable.

    A refusal that is an answer too, by its status, is given as `none_for`: then it returns None.
    """

    def __init__(self, server: str, token: Secret) -> None:
        self.server = server
        self._token = token
        self._opener = build_opener(_OnlyReadsMove)

    def get(self, path: str, **query: object) -> Any:
        """Return the JSON answer to a GET; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given)}" if given else path, _read_json)

    def post(self, path: str, document: Mapping[str, Any], none_for: int = 0) -> Any:
        """Return the JSON answer to a POST, which is done once however often it is sent."""
        return self._call("POST", path, _read_json, document, none_for)

    def patch(self, path: str, document: Mapping[str, Any]) -> Any:
        """Return the JSON answer to a change that may be made twice."""
        return self._call("PATCH", path, _read_json, document)

    def put(self, path: str, body: bytes | Path | Mapping[str, Any]) -> Any:
        """Send a document, exact bytes of JSON or a streamed file, and return the JSON answer."""
        return self._call("PUT", path, _read_json, body)

    def delete(self, path: str) -> None:
        """Delete something."""
        self._call("DELETE", path, _read_json)

    def find(self, path: str, bytes_max: int) -> bytes | None:
        """Return the body of a GET, or None if there is none."""
        found: bytes | None
        found = self._call("GET", path, lambda got: _read_at_most(got, bytes_max), none_for=404)
        return found

    def upload(self, file: Path, digest: str) -> None:
        """Upload an artifact unless the server has it."""
        path = f"/v1/artifacts/{digest}"
        if self._call("HEAD", path, lambda _: True, none_for=404) is None:
            self.put(path, file)

    def download(self, digest: str, target: Path) -> bool:
        """Download an artifact to `target`; False if the server does not have it.

        Raises:
            Refused: the bytes are not those that the digest names.
        """

        def save(response: HTTPResponse) -> bool:
            label = f"downloading {digest[:12]}"
            with target.open("wb") as file:
                file.writelines(show.blocks(response.read, response.length or 0, label))
            return _is_whole(response)

        if self._call("GET", f"/v1/artifacts/{digest}", save, none_for=404) is None:
            return False
        if hash_file(target)[0] != digest:
            raise Refused(
                f"the server sent other bytes for {digest}",
                "its store is damaged or somebody is in between; do not publish until cleared",
            )
        return True

    def _call(
        self, method: str, path: str, read: _Read, body: _Body = None, none_for: int = 0
    ) -> Any:
        """Send a request until it is answered for good, and return what `read` makes of that."""
        trouble, key = "", uuid4().hex
        for attempt in range(TRIES):
            try:
                with ExitStack() as stack:
                    request = self._request(method, path, body, stack)
                    request.add_header("Idempotency-Key", key)
                    return read(stack.enter_context(self._opener.open(request, timeout=TIMEOUT_S)))
            except HTTPError as error:
                with error:
                    if error.code == none_for:
                        return None
                    _raise_if_final(error)
                trouble, pause_s = f"it answered {error.code}", _retry_after_s(error.headers)
            except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
                trouble, pause_s = str(getattr(error, "reason", error)), 0.0
            if attempt < TRIES - 1:
                pause_s = max(pause_s, FIRST_PAUSE_S * 2**attempt)
                if attempt:  # A first pause is over before anybody wonders.
                    show.note(f"{self.server}: {trouble}; asking again in {pause_s:.0f} s")
                time.sleep(pause_s)
        raise Unreachable(
            f"{self.server} cannot be reached: {trouble} (tries: {TRIES})",
            "check the address and that the server runs, then run the same command again",
        )

    def _request(self, method: str, path: str, body: _Body, stack: ExitStack) -> Request:
        request = Request(self.server + path, method=method, headers={"Accept": "application/json"})
        request.add_unredirected_header("Authorization", f"Bearer {self._token.revealed}")
        if isinstance(body, Path):
            size, file = body.stat().st_size, stack.enter_context(body.open("rb"))
            request.data = blocks = show.blocks(file.read, size, f"uploading {body.name}")
            stack.callback(blocks.close)  # no bar outlives its attempt
            request.add_header("Content-Type", "application/octet-stream")
            request.add_header("Content-Length", str(size))
        elif body is not None:
            request.data = body if isinstance(body, bytes) else json.dumps(body).encode()
            request.add_header("Content-Type", "application/json")
        return request


class _OnlyReadsMove(HTTPRedirectHandler):
    def redirect_request(self, req: Request, *rest: Any, **named: Any) -> Request | None:
        return super().redirect_request(req, *rest, **named) if req.get_method() == "GET" else None


def _raise_if_final(error: HTTPError) -> None:
    """Raise the refusal that a problem document (RFC 9457) describes, unless it will pass."""
    if error.code in TRANSIENT:
        return
    try:
        problem = json.loads(error.read(PROBLEM_BYTES_MAX))
    except (ValueError, HTTPException, OSError):
        problem = None  # a proxy's page, or none at all: the status says enough
    if not isinstance(problem, dict):
        raise Refused(f"the server answered {error.code}", _WHOSE, error.code)
    told: dict[str, Any] = problem
    parts = [str(told.get("title") or f"the server answered {error.code}"), told.get("detail")]
    message = ": ".join(str(part) for part in parts if part)
    known = ("type", "title", "status", "detail", "instance")
    more = [
        f"{k}={v}" for k, v in told.items() if k not in known and not isinstance(v, list | dict)
    ]
    advice = _ADVICE.get(error.code, "correct what the message names, then run the command again")
    advice = "use a token with the scope that the message names" if "scope" in told else advice
    raise Refused(f"{message} ({', '.join(more)})" if more else message, advice, error.code, told)


def _retry_after_s(headers: Message) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), PAUSE_S_MAX) if text.isdigit() else 0.0


def _read_json(response: HTTPResponse) -> Any:
    body = _read_at_most(response, JSON_BYTES_MAX)
    try:
        return json.loads(body) if body else {}
    except ValueError:
        raise _not_ours("something that is not JSON") from None


def _read_at_most(response: HTTPResponse, bytes_max: int) -> bytes:
    body = response.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise _not_ours(f"more than {bytes_max} bytes")
    _is_whole(response)
    return body


def _is_whole(response: HTTPResponse) -> bool:
    if response.length:
        raise IncompleteRead(b"", response.length)
    return True


def _not_ours(what: str) -> Refused:
    return Refused(f"the server answered with {what}", _WHOSE)
