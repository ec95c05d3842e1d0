"""The server's programs as real processes, and what may be found in one of them."""

import base64
import re
import socket
import subprocess
import sys
import time
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

START_S_MAX = 60.0
LISTENING = "0A"  # of /proc/net/tcp


@contextmanager
def program(folder: Path, *words: object, **environ: str) -> Iterator["subprocess.Popen[bytes]"]:
    """Run `fleetdiff-server WORDS` in an empty folder; its log is `folder/log`."""
    empty = folder / "cwd"
    empty.mkdir(parents=True, exist_ok=True)
    command = [sys.executable, "-m", "service", *map(str, words)]
    plain = {"PATH": "/usr/bin:/bin", "PYTHONUNBUFFERED": "1", **environ}
    with (folder / "log").open("ab") as log:
        running = subprocess.Popen(command, cwd=empty, env=plain, stdout=log, stderr=log)
    try:
        yield running
    finally:
        running.kill()
        running.wait()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def eventually(holds: Callable[[], object], what: str) -> None:
    deadline = time.monotonic() + START_S_MAX
    while not holds():
        assert time.monotonic() < deadline, f"it never happened: {what}"
        time.sleep(0.02)


def answers(port: int, path: str = "/healthz") -> bool:
    try:
        urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=5).close()
    except OSError:
        return False
    return True


def listens(process: "subprocess.Popen[bytes]") -> bool:
    """Whether one of its descriptors is a socket that others may connect to."""
    folder = Path(f"/proc/{process.pid}")
    held = {str(link.readlink()) for link in (folder / "fd").iterdir()}
    tables = [folder / "net" / name for name in ("tcp", "tcp6")]
    rows = [line.split() for table in tables for line in table.read_text().splitlines()[1:]]
    return any(f"socket:[{row[9]}]" in held for row in rows if row[3] == LISTENING)


def needles(pem: Path) -> list[bytes]:
    """The ways in which a private key may be written down."""
    body = b"".join(pem.read_bytes().split(b"\n")[1:-2])
    seed = base64.b64decode(body)[-32:]  # PKCS 8 of Ed25519 ends with it
    return [body, seed, seed.hex().encode(), base64.b64encode(seed)]


def places_of(process: "subprocess.Popen[bytes]") -> Iterator[tuple[str, bytes]]:
    """Everything that a process was given, has open, was pointed at, or holds in its memory."""
    folder = Path(f"/proc/{process.pid}")
    told = {name: (folder / name).read_bytes() for name in ("environ", "cmdline")}
    yield from told.items()
    paths = {str(link.readlink()) for link in (folder / "fd").iterdir()}
    for text in told.values():
        # A flag's value, a variable's, and the path inside of a URL.
        paths.update(re.findall(r"/[^\0=:?]+", text.decode()))
    for path in {str(Path(path)) for path in paths if Path(path).is_absolute()}:
        if path.startswith(("/usr", "/bin", "/proc", "/dev", sys.prefix)):
            continue
        inside = [Path(path)] if Path(path).is_file() else sorted(Path(path).rglob("*"))
        yield from ((str(file), file.read_bytes()) for file in inside if file.is_file())
    for line in (folder / "maps").read_text().splitlines():
        addresses, mode = line.split()[:2]
        start, end = (int(address, 16) for address in addresses.split("-"))
        if mode.startswith("rw"):
            with (folder / "mem").open("rb") as memory:
                memory.seek(start)
                yield f"memory {line}", memory.read(end - start)


def key_material_in(process: "subprocess.Popen[bytes]", keys: Path) -> list[str]:
    """Where a process could take a private key of a folder from."""
    wanted = [needle for pem in keys.rglob("*.pem") for needle in needles(pem)]
    assert wanted
    return [where for where, held in places_of(process) if any(n in held for n in wanted)]
