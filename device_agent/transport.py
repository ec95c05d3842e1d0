"""One HTTP request to a server that may be slow, endless or lying.

Every request has a deadline, every body a cap, every download a least rate; nothing is followed
and nothing is decompressed. What may be better later is `Unavailable`; what will not be is
`Rejected`.
"""

import http.client
import json
import re
import socket
import ssl
import threading
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from time import monotonic as clock_s
from urllib.parse import urlsplit

from device_agent.config import Limits
from device_agent.errors import Rejected, Unavailable, one_line

CHUNK_BYTES = 1 << 16
PROBLEM_BYTES_MAX = 1 << 16
TRY_LATER = frozenset({401, 403, 408, 421, 425, 429})  # and 3xx, 5xx
OURS = {
    "User-Agent": "fleetdiff-agent/1",
    "Accept-Encoding": "identity",
    "Connection": "close",
}


class Deadline(threading.Timer):
    """Cuts a connection after a while, however slowly bytes still drip from it."""

    def __init__(self, connection: socket.socket, seconds: float) -> None:
        super().__init__(seconds, self._cut)
        self._connection = connection
        self.daemon = True
        self.passed = False
        self.start()

    def _cut(self) -> None:
        self.passed = True
        with suppress(OSError):  # It was closed a moment ago.
            self._connection.shutdown(socket.SHUT_RDWR)


@contextmanager
def request(
    limits: Limits,
    tls: ssl.SSLContext | None,
    method: str,
    url: str,
    headers: dict[str, str],
    body: bytes | None = None,
) -> Iterator[tuple[http.client.HTTPResponse, Deadline]]:
    """Yield the answer to one request, and the deadline that hangs over it.

    Raises:
        Unavailable: the server breaks HTTP, or off.
        Rejected: E_HTTP for an encoding nobody asked for.
        OSError: no connection.
    """
    parts = urlsplit(url)
    connection = http.client.HTTPConnection(parts.netloc, timeout=limits.silence_s_max)
    if parts.scheme == "https":
        connection = http.client.HTTPSConnection(
            parts.netloc, timeout=limits.silence_s_max, context=tls
        )
    late = None
    try:
        connection.connect()
        late = Deadline(connection.sock, limits.request_s_max)
        target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
        connection.request(method, target, body, OURS | headers)
        response = connection.getresponse()
        if response.getheader("Content-Encoding", "identity") != "identity":
            raise Rejected("E_HTTP", "the server answers in an encoding nobody asked for")
        yield response, late
    except http.client.HTTPException as error:
        raise Unavailable(f"{method} {parts.path}: {error!r}") from error
    finally:
        if late:
            late.cancel()
        connection.close()


def read_body(response: http.client.HTTPResponse, most: int, late: Deadline) -> bytes:
    """Return a whole body of at most that many bytes.

    Raises:
        Rejected: E_SIZE.
        Unavailable: cut off.
    """
    declared = response.length
    if declared is not None and declared > most:
        raise Rejected("E_SIZE", f"an answer of {declared} bytes; the limit is {most}")
    body = response.read(most + 1)
    if len(body) > most:
        raise Rejected("E_SIZE", f"an answer of more than {most} bytes")
    if late.passed or (declared is not None and len(body) < declared):
        raise Unavailable(f"the answer was cut off after {len(body)} bytes")
    return body


def paced(response: http.client.HTTPResponse, wanted: int, limits: Limits) -> Iterator[bytes]:
    """Yield chunks until `wanted` bytes came, or more than that, or no more come.

    Raises:
        Unavailable: slower than the least rate over a window.
    """
    window_start, window_bytes = clock_s(), 0
    # With a declared length the socket must not be read beyond it; without, one byte more
    # than wanted is enough to know that the server lies.
    left = wanted if response.length is not None else wanted + 1
    while left > 0 and (chunk := response.read1(min(CHUNK_BYTES, left))):
        yield chunk
        left -= len(chunk)
        window_bytes += len(chunk)
        elapsed = clock_s() - window_start
        if elapsed >= limits.rate_window_s:
            if window_bytes < limits.rate_bytes_s_min * elapsed:
                raise Unavailable(f"{window_bytes} bytes in {elapsed:.0f} s is too slow")
            window_start, window_bytes = clock_s(), 0


def refusal_of(response: http.client.HTTPResponse, *, known: bool) -> Exception:
    """Return the error that a status means, in the words of its problem document.

    Args:
        response: not 2xx.
        known: a credential was sent, and a person may yet mend its refusal.
    """
    said = response.reason
    if response.getheader("Content-Type", "").startswith("application/problem+json"):
        with suppress(ValueError, AttributeError, RecursionError):
            problem = json.loads(response.read(PROBLEM_BYTES_MAX))
            said = f"{problem.get('title', said)}: {problem.get('detail', '')}"
    status = response.status
    message = f"{status} {one_line(str(said))[:300].strip(': ')}"
    final = 400 <= status < 500 and status not in TRY_LATER
    if final or (status in (401, 403) and not known):
        return Rejected("E_HTTP", message)
    return Unavailable(message, status, poll_after_s(response))


def poll_after_s(response: http.client.HTTPResponse) -> float | None:
    """Return when the server wants to be asked again, if it says so."""
    text = response.getheader("Poll-After", "")
    return float(text) if re.fullmatch(r"\d{1,7}(\.\d{1,9})?", text) else None
