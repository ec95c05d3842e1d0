"""The REST client: one request at a time, streamed, bounded, retried where that is safe.

What may be sent twice (everything but POST) is tried again with growing pauses when the network
or the server is in trouble; a refusal is final at once. The token goes to the configured server
only: a redirect, which artifacts may answer with, is followed without it.
"""

import json
import ssl
import time
from collections.abc import Callable, Iterator, Mapping
from email.message import Message
from http.client import HTTPException, HTTPResponse, IncompleteRead
from pathlib import Path
from typing import IO, Any, TypeVar
from urllib.error import HTTPError, URLError
from urllib.parse import urlencode
from urllib.request import HTTPRedirectHandler, Request, build_opener

from release_manager.config import Secret, Settings
from release_manager.errors import Refused, Unreachable, Usage, refusal

TIMEOUT_S = 60
TRIES = 5
FIRST_PAUSE_S = 0.5
PAUSE_S_MAX = 30.0
JSON_BYTES_MAX = 64 << 20
PROBLEM_BYTES_MAX = 64 << 10
COPY_BYTES = 1 << 20
TRANSIENT = frozenset({429, 502, 503, 504})

Progress = Callable[[int, int], None]
"""Called with the bytes done and the bytes to do."""
_Result = TypeVar("_Result")
_Body = Callable[[], bytes | Iterator[bytes]]
_JSON = {"Content-Type": "application/json"}


def connect(settings: Settings) -> "Client":
    """Return a client of the configured server.

    Raises:
        Usage: no server or no token is configured.
    """
    if settings.server is None or settings.token is None:
        missing = "server" if settings.server is None else "token"
        raise Usage(
            f"no {missing} is configured",
            "run fleetdiff login --server URL --token TOKEN, or set FLEETDIFF_SERVER and "
            "FLEETDIFF_TOKEN",
        )
    return Client(settings.server, settings.token)


class Client:
    """Talks to one server as one user; every call raises Refused or Unreachable."""

    def __init__(self, server: str, token: Secret) -> None:
        self.server = server
        self._token = token
        self._opener = build_opener(_OnlyReadsMove)

    def get(self, path: str, **query: object) -> Any:
        """Return the JSON answer to a GET; parameters that are None are left out."""
        given = {name: value for name, value in query.items() if value is not None}
        return self._call("GET", f"{path}?{urlencode(given)}" if given else path, _read_json)

    def post(self, path: str, document: Mapping[str, Any]) -> Any:
        """Return the JSON answer to a POST, which is never repeated."""
        body = json.dumps(document).encode()
        return self._call("POST", path, _read_json, lambda: body, _JSON)

    def exists(self, path: str) -> bool:
        """Return whether a HEAD finds something."""
        return self._found("HEAD", path, lambda _: True) is not None

    def get_bytes(self, path: str, bytes_max: int) -> bytes | None:
        """Return the body of a GET, or None if there is none."""
        return self._found("GET", path, lambda response: _read_at_most(response, bytes_max))

    def put(self, path: str, body: bytes) -> Any:
        """Send exact bytes of JSON and return the JSON answer."""
        return self._call("PUT", path, _read_json, lambda: body, _JSON)

    def upload(self, path: str, file: Path, progress: Progress) -> None:
        """Stream a file."""
        size = file.stat().st_size
        headers = {"Content-Type": "application/octet-stream", "Content-Length": str(size)}
        self._call("PUT", path, _read_json, lambda: _blocks(file, size, progress), headers)

    def download(self, path: str, target: Path, progress: Progress) -> None:
        """Stream the answer to a GET into a new file."""

        def save(response: HTTPResponse) -> None:
            size, done = response.length or 0, 0
            with target.open("wb") as file:
                while block := response.read(COPY_BYTES):
                    file.write(block)
                    done += len(block)
                    progress(done, max(size, done))
            _check_whole(response)

        self._call("GET", path, save)

    def _found(
        self, method: str, path: str, read: Callable[[HTTPResponse], _Result]
    ) -> _Result | None:
        try:
            return self._call(method, path, read)
        except Refused as error:
            if error.status != 404:
                raise
            return None

    def _call(
        self,
        method: str,
        path: str,
        read: Callable[[HTTPResponse], _Result],
        body: _Body | None = None,
        headers: Mapping[str, str] | None = None,
    ) -> _Result:
        last = 1 if method == "POST" else TRIES
        for attempt in range(1, last + 1):
            request = Request(self.server + path, body() if body else None, method=method)
            for name, value in {"Accept": "application/json", **(headers or {})}.items():
                request.add_header(name, value)
            request.add_unredirected_header("Authorization", f"Bearer {self._token.reveal()}")
            try:
                with self._opener.open(request, timeout=TIMEOUT_S) as response:
                    return read(response)
            except HTTPError as error:
                with error:
                    _raise_if_final(error)
                    trouble = f"it answered {error.code}"
                    pause_s = _retry_after_s(error.headers)
            except (URLError, HTTPException, TimeoutError, ConnectionError) as error:
                reason = getattr(error, "reason", error)
                if isinstance(reason, ssl.SSLError):
                    raise Usage(
                        f"no trusted connection to {self.server}: {reason}",
                        "check the address; set SSL_CERT_FILE if the server has its own authority",
                    ) from None
                trouble, pause_s = str(reason), 0.0
            if attempt < last:
                time.sleep(max(pause_s, FIRST_PAUSE_S * 2 ** (attempt - 1)))
        raise Unreachable(
            f"{self.server} cannot be reached: {trouble} (after {last} "
            f"{'try' if last == 1 else 'tries'})",
            "check the address and that the server runs, then run the same command again",
        )


class _OnlyReadsMove(HTTPRedirectHandler):
    def redirect_request(
        self, req: Request, fp: IO[bytes], code: int, msg: str, headers: Message, newurl: str
    ) -> Request | None:
        if req.get_method() != "GET":
            return None
        return super().redirect_request(req, fp, code, msg, headers, newurl)  # type: ignore[arg-type]


def _blocks(file: Path, size: int, progress: Progress) -> Iterator[bytes]:
    with file.open("rb") as source:
        while block := source.read(COPY_BYTES):
            yield block
            progress(source.tell(), size)


def _raise_if_final(error: HTTPError) -> None:
    if error.code in TRANSIENT:
        return
    try:
        problem = json.loads(error.read(PROBLEM_BYTES_MAX))
    except (ValueError, HTTPException, OSError):
        problem = None  # a proxy's page, or none at all: the status says enough
    raise refusal(error.code, problem if isinstance(problem, dict) else {}) from None


def _retry_after_s(headers: Message) -> float:
    text = headers.get("Retry-After", "")
    return min(float(text), PAUSE_S_MAX) if text.isdigit() else 0.0


def _read_at_most(response: HTTPResponse, bytes_max: int) -> bytes:
    body = response.read(bytes_max + 1)
    if len(body) > bytes_max:
        raise _not_ours(f"more than {bytes_max} bytes")
    _check_whole(response)
    return body


def _check_whole(response: HTTPResponse) -> None:
    if response.length:
        raise IncompleteRead(b"", response.length)


def _read_json(response: HTTPResponse) -> Any:
    body = _read_at_most(response, JSON_BYTES_MAX)
    try:
        return json.loads(body) if body else {}
    except ValueError:
        raise _not_ours("something that is not JSON") from None


def _not_ours(what: str) -> Refused:
    return Refused(
        f"the server answered with {what}",
        "check that the address is that of a Fleetdiff server, not of something in front of it",
    )
