"""The device API of a server: poll, post, and artifacts that resume where they stopped.

Redirects are followed once, for artifacts, to the blob hosts of the configuration, and the
credential stays behind. A download is read by nobody before its digest is right.
"""

import http.client
import json
import re
import ssl
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from device_agent.config import Config
from device_agent.disk import hash_file
from device_agent.errors import Rejected, Unavailable
from device_agent.plan import PRINTABLE
from device_agent.transport import Deadline, paced, poll_after_s, read_body, refusal_of, request

BUNDLE_BYTES_MAX = 2 * 1024 * 1024
RECEIPT_BYTES_MAX = 64 * 1024
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})\Z")


@dataclass(frozen=True)
class Reply:
    """An answer of the device API; the body of a 304 is empty."""

    status: int
    etag: str
    poll_after_s: float | None
    body: bytes


def backoff_s(failures: int, period_s: float, most_s: float, random: Callable[[], float]) -> float:
    """Return how long to wait after that many failures in a row: full jitter.

    A number drawn evenly from nought to a limit that doubles with every failure (Brooker 2015,
    "Exponential backoff and jitter"). With the poll period as `period_s`, a fleet that met one
    503 comes back spread over a whole period.
    """
    doubled: float = period_s * 2 ** min(max(failures - 1, 0), 60)
    return random() * min(most_s, doubled)


class Client:
    """The device API of one server.

    Args:
        config: the server, the blob hosts and the limits.
        credential: sent to the server, and to nobody else; empty before enrollment.
    """

    def __init__(self, config: Config, credential: str = "") -> None:
        self._config = config
        self._api = config.server.rstrip("/") + "/device/v1/"
        self._identity = {"Authorization": f"Bearer {credential}"} if credential else {}
        secure = config.server.startswith("https:")
        self._tls = ssl.create_default_context(cafile=config.ca_file or None) if secure else None

    def poll(self, active: str, root: int, timestamp: int, etag: str) -> Reply:
        """Ask for news, given the digest that runs, what was verified and the last answer's ETag.

        Raises:
            Unavailable: no answer, or one to wait for.
            Rejected: E_SIZE, E_HTTP.
        """
        question = {"root": root, "t": timestamp, **({"s": active} if active else {})}
        headers = {"If-None-Match": etag} if etag else {}
        return self._ask("GET", f"poll?{urlencode(question)}", headers, BUNDLE_BYTES_MAX)

    def post(self, path: str, document: dict[str, Any]) -> bytes:
        """Send a JSON document and return the answer's body.

        Raises:
            Unavailable: no answer, or one to wait for.
            Rejected: E_SIZE, E_HTTP with what the server says is wrong.
        """
        headers, body = {"Content-Type": "application/json"}, json.dumps(document).encode()
        return self._ask("POST", path, headers, RECEIPT_BYTES_MAX, body).body

    def fetch(self, sha256: str, length: int, part: Path) -> None:
        """Bring an artifact whole into `part`, going on from what is there.

        Raises:
            Unavailable: interrupted or too slow; what came is kept.
            Rejected: E_SIZE, E_HASH, E_HTTP, E_REDIRECT; nothing is kept.
        """
        have = part.stat().st_size if part.exists() else 0
        if have > length:
            part.unlink()
            have = 0
        if have < length:
            self._download(sha256, length, part, have)
        if hash_file(part) != sha256:
            part.unlink()
            if have:  # The beginning may be from before a power cut: ask for all of it once more.
                raise Unavailable(f"artifact {sha256[:12]} did not fit what was here of it")
            raise Rejected("E_HASH", f"artifact {sha256[:12]} has other bytes than its name")

    def _ask(
        self, method: str, path: str, headers: dict[str, str], most: int, body: bytes | None = None
    ) -> Reply:
        url, headers = self._api + path, self._identity | headers
        with request(self._config.limits, self._tls, method, url, headers, body) as (found, late):
            if found.status not in (200, 201, 202, 304):
                raise refusal_of(found, known=bool(self._identity))
            answer = read_body(found, most, late)
            etag = found.getheader("ETag", "")
            etag = etag if PRINTABLE.match(etag) else ""
            return Reply(found.status, etag, poll_after_s(found), answer)

    def _download(self, sha256: str, length: int, part: Path, have: int) -> None:
        limits, url = self._config.limits, f"{self._api}artifacts/{sha256}"
        headers = {"Range": f"bytes={have}-"} if have else {}
        with request(limits, self._tls, "GET", url, headers | self._identity) as (found, late):
            if found.status != 307:
                self._save(found, late, length, part, have)
                return
            elsewhere = self._blob_url(url, found.getheader("Location", ""))
        with request(limits, self._tls, "GET", elsewhere, headers) as (found, late):
            self._save(found, late, length, part, have)

    def _save(
        self, found: http.client.HTTPResponse, late: Deadline, length: int, part: Path, have: int
    ) -> None:
        if found.status == 416:
            part.unlink()
            raise Unavailable("the rest of a download was refused; starting again", 416)
        if found.status not in (200, 206):
            raise refusal_of(found, known=bool(self._identity))
        start = _start(found, length)
        if start not in (0, have):
            raise Unavailable(f"asked for bytes from {have}, got them from {start}")
        declared = found.length
        if declared is not None and start + declared != length:
            raise Rejected("E_SIZE", f"{start + declared} bytes announced, {length} signed")
        late.cancel()  # From here the least rate is the limit.
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            for chunk in paced(found, length - start, self._config.limits):
                file.write(chunk)
            got = file.tell()
        if got > length:
            part.unlink()
            raise Rejected("E_SIZE", f"more than the {length} bytes that are signed")
        if got < length:
            raise Unavailable(f"cut off after {got} of {length} bytes")

    def _blob_url(self, base: str, location: str) -> str:
        try:
            target = urlsplit(urljoin(base, location))
        except ValueError as error:
            raise Rejected("E_REDIRECT", f"a redirect to {location[:80]!r}") from error
        secure = target.scheme in ("https", urlsplit(base).scheme)
        if not secure or target.netloc not in self._config.blob_hosts:
            raise Rejected("E_REDIRECT", f"artifacts are not fetched from {target.netloc[:80]!r}")
        return target.geturl()


def _start(response: http.client.HTTPResponse, length: int) -> int:
    """Return where in the artifact the body begins; a 200 may be partial, too."""
    header = response.getheader("Content-Range")
    if header is None:
        if response.status == 206:
            raise Unavailable("a partial answer that does not say which part")
        return 0
    found = CONTENT_RANGE.match(header)
    if not found or int(found[3]) != length:
        raise Rejected("E_SIZE", f"Content-Range {header[:80]!r} is not of {length} bytes")
    return int(found[1])
