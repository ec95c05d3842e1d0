"""A real server as a child that never outlives the test run, however the run ends.

A shell stands between the run and the server. It holds the read end of a pipe; when the run
closes the pipe, or dies (Ctrl-C, SIGTERM, SIGKILL), the shell signals the server, waits for it
and removes its folders. That is the only way a server is stopped, so it is tried every time.
"""

import os
import shutil
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

START_TIMEOUT_S = 60.0
STOP_TIMEOUT_S = 30.0
POLL_S = 0.02
LOG_BYTES_MAX = 1 << 20
MEMORY, MEMORY_BYTES_MIN = "/dev/shm", 1 << 30  # many a container has 64 MB of it

_GUARD = """
exec 3<&0
"$@" </dev/null 3<&- & server=$!
{ read -r _; kill -s "$SIGNAL" "$server"; } <&3 2>/dev/null & watcher=$!
wait "$server"; status=$?
kill "$watcher" 2>/dev/null
rm -rf $FOLDERS
exit "$status"
"""


class Missing(Exception):
    """The binaries of a server are not installed."""


class NotStarted(Exception):
    """A server ended, or was not ready in time; the message holds the end of its log."""


@contextmanager
def folder(name: str, where: str = "/tmp") -> Iterator[Path]:
    """Yield a new folder that any user can reach, and remove it at the end."""
    made = Path(tempfile.mkdtemp(prefix=f"fleetdiff-{name}-", dir=where))
    try:
        yield made
    finally:
        shutil.rmtree(made, ignore_errors=True)  # the shell was probably quicker


def memory_or_disk() -> str:
    """Return where files are made that need not last: in memory, if it has room for them."""
    has_room = Path(MEMORY).is_dir() and shutil.disk_usage(MEMORY).free >= MEMORY_BYTES_MIN
    return MEMORY if has_room else "/tmp"


@contextmanager
def server(
    command: Sequence[str | Path],
    *,
    folders: Sequence[Path],
    is_ready: Callable[[str], bool],
    signal: str = "TERM",
    user: str | None = None,
    environ: Mapping[str, str] | None = None,
) -> Iterator[str]:
    """Run a server until the end of the block; yield what it had logged when it was ready.

    Args:
        command: the server; it must stay in the foreground.
        folders: its own, removed when it ends; the first takes its log.
        is_ready: told the log so far, says whether the server answers.
        signal: what ends it.
        user: whom to run it as; None: as ourselves.
        environ: its whole environment, besides PATH.

    Raises:
        NotStarted: it ended, or was not ready in START_TIMEOUT_S.
    """
    chosen = {"PATH": "/usr/bin:/bin", "SIGNAL": signal, "FOLDERS": " ".join(map(str, folders))}
    with (folders[0] / "server.log").open("w+b") as log:
        guard = subprocess.Popen(
            ["/bin/sh", "-c", _GUARD, "guard", *command],
            stdin=subprocess.PIPE,
            stdout=log,
            stderr=log,
            cwd="/",
            env=chosen | dict(environ or {}),
            start_new_session=True,  # Ctrl-C is for the run; the pipe is for the server
            user=user,
            extra_groups=None if user is None else [],
        )
        try:
            yield _when_ready(guard, log, is_ready)
        finally:
            assert guard.stdin is not None
            guard.stdin.close()
            guard.wait(STOP_TIMEOUT_S)


def _when_ready(
    guard: "subprocess.Popen[bytes]", log: BinaryIO, is_ready: Callable[[str], bool]
) -> str:
    deadline = time.monotonic() + START_TIMEOUT_S
    while True:
        ended = guard.poll() is not None
        text = os.pread(log.fileno(), LOG_BYTES_MAX, 0).decode(errors="replace")
        if not ended and is_ready(text):
            return text
        if ended or time.monotonic() > deadline:
            why = f"ended with status {guard.returncode}" if ended else "was not ready in time"
            raise NotStarted(f"the server {why}:\n{text[-2000:]}")
        time.sleep(POLL_S)
