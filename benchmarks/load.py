"""A server process under load: requests over a few connections, and the processor time it takes.

Whoever sends is another process than the one that is measured, so it may be slow.
"""

import os
import socket
import subprocess
import time
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path

CONNECTIONS = 8
START_S_MAX = 300
TICK_S = 1 / os.sysconf("SC_CLK_TCK")


def cpu_s(pid: int) -> float:
    """Return the processor seconds that a process used so far, in all its threads."""
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) * TICK_S


def rss_bytes(pid: int) -> int:
    """Return the memory that a process has."""
    return int(Path(f"/proc/{pid}/statm").read_text().split()[1]) * os.sysconf("SC_PAGE_SIZE")


def free_port() -> int:
    """Return a port that nobody uses now."""
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])


@contextmanager
def server(
    command: Sequence[str | Path], port: int, log: Path, environ: Mapping[str, str] | None = None
) -> Iterator[int]:
    """Run a server until the end of the block; yields its process id once it says it is ready.

    Ready is who accepts connections and, if it writes to `log` at all, wrote "ready" there.

    Raises:
        RuntimeError: it ended, or took too long; the end of its log is in the text.
    """
    with log.open("wb") as file:
        running = subprocess.Popen(command, stdout=file, stderr=file, env=environ)
    try:
        deadline = time.monotonic() + START_S_MAX
        while not _accepts(port) or b"ready" not in log.read_bytes():
            if running.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{command[0]} does not start: {log.read_text()[-2000:]}")
            time.sleep(0.1)
        yield running.pid
    finally:
        running.terminate()
        running.wait()


def _accepts(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), timeout=5).close()
    except OSError:
        return False
    return True


def request(path: str, method: str = "GET", body: bytes = b"", **headers: str) -> bytes:
    """Return the bytes of a request; in names of headers, `_` stands for `-`."""
    lines = [f"{method} {path} HTTP/1.1", "Host: 127.0.0.1", "Accept-Encoding: identity"]
    lines += [f"{name.replace('_', '-')}: {value}" for name, value in headers.items()]
    if body:
        lines += ["Content-Type: application/json", f"Content-Length: {len(body)}"]
    return "\r\n".join([*lines, "", ""]).encode() + body


class Line:
    """One connection that is kept."""

    def __init__(self, port: int) -> None:
        """Connect to 127.0.0.1:port."""
        self._socket = socket.create_connection(("127.0.0.1", port), timeout=60)
        self._socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def send(self, asked: bytes) -> None:
        """Send a request."""
        self._socket.sendall(asked)

    def receive(self) -> tuple[int, bytes, bytes]:
        """Return status, head and body of the next answer."""
        got = b""
        while b"\r\n\r\n" not in got:
            got += self._more()
        head, _, body = got.partition(b"\r\n\r\n")
        length = head.lower().partition(b"content-length:")[2].partition(b"\r\n")[0]
        while len(body) < int(length or 0):
            body += self._more()
        return int(head[9:12]), head, body

    def _more(self) -> bytes:
        got = self._socket.recv(1 << 16)
        if not got:
            raise RuntimeError("the server hung up")
        return got

    def ask(self, asked: bytes) -> tuple[int, bytes, bytes]:
        """Send a request and return its answer."""
        self.send(asked)
        return self.receive()


def cpu_us(pid: int, port: int, asks: Sequence[bytes], status: int) -> float:
    """Return the microseconds of processor time that a process takes for each request.

    Raises:
        RuntimeError: an answer has another status.
    """
    lines = [Line(port) for _ in range(CONNECTIONS)]
    before = cpu_s(pid)
    for first in range(0, len(asks), CONNECTIONS):
        pairs = list(zip(lines, asks[first : first + CONNECTIONS], strict=False))
        for line, asked in pairs:
            line.send(asked)
        for line, asked in pairs:
            told, head, body = line.receive()
            if told != status:
                raise RuntimeError(f"{told}, not {status}: {asked!r} {head!r} {body[:500]!r}")
    return (cpu_s(pid) - before) / len(asks) * 1e6
