"""The device API of a server that may be slow, endless or lying.

Every request has a deadline, every body a cap, every download a least rate; nothing is
decompressed. A download goes on where it stopped and is read by nobody before its digest is right.
One redirect is followed, for artifacts, to the blob hosts of the configuration, and the credential
stays behind. What may be better later is `Unavailable`; what will not be is `Rejected`.
"""

import json
import logging
import re
import socket
import ssl
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from functools import partial
from http.client import HTTPConnection, HTTPException, HTTPResponse, HTTPSConnection
from pathlib import Path
from time import monotonic as clock_s
from time import sleep
from typing import Any
from urllib.parse import urlencode, urljoin, urlsplit

from device_agent.config import Config
from device_agent.credential import Identity, signing
from device_agent.deadline import Deadline
from device_agent.disk import hash_file
from device_agent.errors import Rejected, Unavailable, one_line
from device_agent.plan import PRINTABLE
from device_agent.whole import WholeResponse

logger = logging.getLogger(__name__)
BUNDLE_BYTES_MAX = 2 * 1024 * 1024
RECEIPT_BYTES_MAX = 64 * 1024
PROBLEM_BYTES_MAX = 64 * 1024
CHUNK_BYTES = 64 * 1024
CONTENT_RANGE = re.compile(r"bytes (\d{1,18})-(\d{1,18})/(\d{1,18})\Z")
SECONDS = re.compile(r"\d{1,7}(\.\d{1,9})?\Z")
TRY_LATER = frozenset({401, 403, 408, 421, 425, 429})  # and 3xx, 5xx
REALM = 'realm="fleetdiff"'  # a refusal without it may be a proxy's
DATE_S = 1.0  # as exact as the header Date is
OURS = {"Accept-Encoding": "identity"}  # A poll is a few hundred bytes: no header without a use.

Headers = dict[str, str]
Answer = tuple[HTTPResponse, Deadline]  # and what hangs over it


@dataclass(frozen=True)
class Reply:
    """An answer of the device API; the body of a 304 is empty."""

    status: int
    etag: str
    poll_after_s: float | None
    body: bytes
    credential: str  # a new one to use from now on; mostly empty


class Client:
    """The device API of one server.

    Args:
        config: the server, the blob hosts and the limits.
        identity: who calls; the server is told so, and nobody else.
    """

    def __init__(self, config: Config, identity: Identity) -> None:
        self._limits, self._blob_hosts = config.limits, config.blob_hosts
        self._api = config.server.rstrip("/") + "/device/v1/"
        self.identity, self._clock_was_wrong = identity, False
        secure = config.server.startswith("https:")
        self._tls = ssl.create_default_context(cafile=config.ca_file or None) if secure else None
        if self._tls and config.client_cert:
            self._tls.load_cert_chain(config.client_cert)

    def poll(self, active: str, root: int, timestamp: int, etag: str) -> Reply:
        """Ask for news, given the digest that runs, what was verified and the last answer's ETag.

        Raises:
            Unavailable: no answer, or one to wait for.
            Rejected: E_SIZE, E_HTTP.
        """
        question = {"root": root, "t": timestamp, **({"s": active} if active else {})}
        headers = {"If-None-Match": etag} if etag else {}
        return self._ask(f"poll?{urlencode(question)}", headers, BUNDLE_BYTES_MAX)

    def post(self, path: str, document: dict[str, Any]) -> bytes:
        """Send a JSON document and return the answer's body.

        Raises:
            Unavailable: no answer, or one to wait for.
            Rejected: E_SIZE, E_HTTP with what the server says is wrong.
        """
        headers, body = {"Content-Type": "application/json"}, json.dumps(document).encode()
        return self._ask(path, headers, RECEIPT_BYTES_MAX, body).body

    def renew(self, told: str) -> None:
        """Be known by the credential that the server gives, or by a key that it asks us to make."""
        if told and self.identity.signs:
            told = signing().new_key()
            try:
                self.post("key", {"public_key": signing().public_of(told)})
            except (Unavailable, Rejected) as error:
                logger.warning("the server asks for a new key and does not take it: %s", error)
                return
        if told:
            self.identity.renew(told)

    def fetch(self, sha256: str, length: int, part: Path) -> None:
        """Bring an artifact whole into `part`, going on from what is there.

        Raises:
            Unavailable: interrupted or too slow; what came is kept.
            Rejected: E_SIZE, E_HASH, E_HTTP, E_REDIRECT; nothing is kept.
        """
        have = part.stat().st_size if part.exists() else 0
        if have > length:
            have = 0  # What is there is written over.
        if have < length:
            self._download(f"{self._api}artifacts/{sha256}", length, part, have)
        if hash_file(part) != sha256:
            part.unlink()
            if have:  # The beginning may be from before a power cut: ask for all of it once more.
                raise Unavailable(f"artifact {sha256[:12]} did not fit what was here of it")
            raise Rejected("E_HASH", f"artifact {sha256[:12]} has other bytes than its name")

    def _ask(self, path: str, headers: Headers, most: int, body: bytes = b"") -> Reply:
        try:
            return self._ask_once(path, headers, most, body)
        except Unavailable:
            if not self._clock_was_wrong:
                raise
        sleep(DATE_S)  # or what a process before this one signed might have a later time
        return self._ask_once(path, headers, most, body)

    def _ask_once(self, path: str, headers: Headers, most: int, body: bytes) -> Reply:
        with self._request(self._api + path, headers, body) as (found, late):
            if found.status not in (200, 201, 202, 304):
                raise self._refusal(found)
            declared = found.length or 0
            if declared > most:
                raise Rejected("E_SIZE", f"an answer of {declared} bytes; the limit is {most}")
            answer = found.read(most + 1)
            if len(answer) > most:
                raise Rejected("E_SIZE", f"an answer of more than {most} bytes")
            if late.passed or len(answer) < declared:
                what = f"the answer was cut off after {len(answer)} bytes"
                raise Unavailable(what, code=late.code)
            told = (found.getheader(name, "") for name in ("ETag", "Next-Credential"))
            etag, renewed = (text if PRINTABLE.match(text) else "" for text in told)
            return Reply(found.status, etag, told_s(found, "Poll-After"), answer, renewed)

    def _download(self, url: str, length: int, part: Path, have: int) -> None:
        headers = {"Range": f"bytes={have}-"} if have else {}
        with self._request(url, headers) as (found, late):
            if found.status != 307:
                self._save(found, late, length, part, have)
                return
            elsewhere = self._blob_url(url, found.getheader("Location", ""))
        with self._request(elsewhere, headers, ours=False) as (found, late):
            self._save(found, late, length, part, have)

    def _save(
        self, found: HTTPResponse, late: Deadline, length: int, part: Path, have: int
    ) -> None:
        if found.status == 416:
            part.unlink(missing_ok=True)
            raise Unavailable("the rest of a download was refused; starting again", 416)
        if found.status not in (200, 206):
            raise self._refusal(found)
        start = _start(found, length)
        if start not in (0, have):
            raise Unavailable(f"asked for bytes from {have}, got them from {start}")
        if found.length is not None and start + found.length != length:
            raise Rejected("E_SIZE", f"{start + found.length} bytes announced, {length} signed")
        late.cancel()  # From here the least rate is the limit.
        with part.open("r+b" if start else "wb") as file:
            file.seek(start)
            file.truncate()
            for chunk in self._paced(found, length - start):
                file.write(chunk)
            got = file.tell()
        if got > length:
            part.unlink()
            raise Rejected("E_SIZE", f"more than the {length} bytes that are signed")
        if got < length:
            raise Unavailable(f"cut off after {got} of {length} bytes")

    def _paced(self, found: HTTPResponse, wanted: int) -> Iterator[bytes]:
        """Yield chunks until `wanted` bytes came, or more than that, or no more come."""
        window_start, window_bytes = clock_s(), 0
        # With a declared length the socket must not be read beyond it; without, one byte more
        # than wanted is enough to know that the server lies.
        left = wanted if found.length is not None else wanted + 1
        while left > 0 and (chunk := found.read1(min(CHUNK_BYTES, left))):
            yield chunk
            left -= len(chunk)
            window_bytes += len(chunk)
            elapsed = clock_s() - window_start
            if elapsed >= self._limits.rate_window_s:
                if window_bytes < self._limits.rate_bytes_s_min * elapsed:
                    what = f"{window_bytes} bytes in {elapsed:.0f} s is too slow"
                    raise Unavailable(what, code="E_SLOW")
                window_start, window_bytes = clock_s(), 0

    def _blob_url(self, base: str, location: str) -> str:
        try:
            target = urlsplit(urljoin(base, location))
        except ValueError as error:
            # It may be a secret, and what is said here is reported and logged.
            raise Rejected("E_REDIRECT", "a redirect to what is no address") from error
        secure = target.scheme in ("https", urlsplit(base).scheme)
        if not secure or target.netloc not in self._blob_hosts:
            raise Rejected("E_REDIRECT", f"artifacts are not fetched from {target.netloc[:80]!r}")
        return target.geturl()

    @contextmanager
    def _request(
        self, url: str, headers: Headers, body: bytes = b"", *, ours: bool = True
    ) -> Iterator[Answer]:
        """Make one request and yield its answer; what breaks HTTP may be better later."""
        method = "POST" if body else "GET"
        sent = OURS | headers | (self.identity.headers(method, url, body) if ours else {})
        parts = urlsplit(url)
        secure = partial(HTTPSConnection, context=self._tls)
        connect = secure if parts.scheme == "https" else HTTPConnection
        connection = connect(parts.netloc, timeout=self._limits.silence_s_max)
        connection.response_class = WholeResponse
        try:
            try:
                connection.connect()
            except OSError as error:  # In its own words it would not say who does not answer.
                how = "is it running, and `server` (or `ca_file`) in the configuration right?"
                where = f"{parts.scheme}://{parts.netloc}"
                raise Unavailable(f"{where} cannot be reached: {error}; {how}") from error
            late = Deadline(self._limits.request_s_max, partial(_cut, connection.sock))
            with late:
                target = parts._replace(scheme="", netloc="", fragment="").geturl() or "/"
                connection.request(method, target, body or None, sent)
                response = connection.getresponse()
                if ours:
                    self._clock_was_wrong = self.identity.read_date(response)
                if response.getheader("Content-Encoding", "identity") != "identity":
                    raise Rejected("E_HTTP", "the server answers in an encoding nobody asked for")
                yield response, late
        except HTTPException as error:
            raise Unavailable(f"{method} {parts.path}: {error!r}", code=late.code) from error
        finally:
            connection.close()

    def _refusal(self, found: HTTPResponse) -> Exception:
        """Return the error that a status means, in the words of its problem document."""
        said = found.reason
        if found.getheader("Content-Type", "").startswith("application/problem+json"):
            with suppress(ValueError, AttributeError, RecursionError):
                problem = json.loads(found.read(PROBLEM_BYTES_MAX))
                said = f"{problem.get('title', said)}: {problem.get('detail', '')}"
        message = f"{found.status} {one_line(str(said))[:300].strip(': ')}"
        final = 400 <= found.status < 500 and found.status not in TRY_LATER
        # A person may yet mend that a credential is refused, but not that a token is.
        nobody = self.identity.is_nobody and not self._clock_was_wrong
        if final or (found.status in (401, 403) and nobody):
            return Rejected("E_HTTP", message)
        refused = found.status == 401 and REALM in found.getheader("WWW-Authenticate", "")
        after, later = (told_s(found, header) for header in ("Poll-After", "Retry-After"))
        return Unavailable(message, found.status, after, refused=refused, later_s=later or 0.0)


def told_s(found: HTTPResponse, header: str) -> float | None:
    """Return when the server wants to be asked again, if it says so in this header."""
    text = found.getheader(header, "")
    return float(text) if SECONDS.match(text) else None


def _start(found: HTTPResponse, length: int) -> int:
    """Return where in the artifact the body begins; a 200 may be partial, too."""
    header = found.getheader("Content-Range")
    if header is None:
        if found.status == 206:
            raise Unavailable("a partial answer that does not say which part")
        return 0
    part = CONTENT_RANGE.match(header)
    if not part or int(part[3]) != length:
        raise Rejected("E_SIZE", f"Content-Range {header[:80]!r} is not of {length} bytes")
    return int(part[1])


def _cut(connection: socket.socket) -> None:
    with suppress(OSError):  # It was closed a moment ago.
        connection.shutdown(socket.SHUT_RDWR)
