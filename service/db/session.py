"""Connections and transactions; the only module that commits.

A writer holds the lock from its first statement (`BEGIN IMMEDIATE` on SQLite), so that what it
read is still true when it writes. On PostgreSQL the same code relies on row locks and on
conditional updates.
"""

import json
from collections.abc import Iterable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager
from typing import Any

from sqlalchemy import Engine, Executable, Update, create_engine, event, func, select
from sqlalchemy.dialects.postgresql import insert as postgresql_insert
from sqlalchemy.dialects.sqlite import insert as sqlite_insert
from sqlalchemy.engine import Connection, make_url
from sqlalchemy.orm import DeclarativeBase, Session, sessionmaker

from service.db import changes
from service.db.entries import EVERYTHING, Entries

THREADS_MAX = 40  # the thread pool that serves `def` routes
BUSY_TIMEOUT_S = 20
_ONE_MOMENT = {"isolation_level": "REPEATABLE READ", "postgresql_readonly": True}


class Database:
    """One database, SQLite or PostgreSQL, by its URL."""

    def __init__(self, url: str, *, durable: bool = True, entries_max: int = 0) -> None:
        """Open the database.

        Args:
            url: SQLAlchemy URL.
            durable: False lets SQLite skip fsync; for tests only.
            entries_max: how many devices' last answers are kept in memory.
        """
        self.entries = Entries(entries_max)
        parsed = make_url(url)
        self.is_sqlite = parsed.get_backend_name() == "sqlite"
        self.writers_max = 1 if self.is_sqlite else THREADS_MAX // 2
        if self.is_sqlite:
            self.engine = _sqlite(url, durable, THREADS_MAX)
            # There is one writer; on a connection of its own it sees when another process wrote.
            self.writing = _sqlite(url, durable, 1)
        else:
            self.engine = create_engine(
                parsed.set(drivername="postgresql+psycopg"),
                pool_size=THREADS_MAX,
                pool_pre_ping=True,
                json_serializer=_json,
            )
            self.writing = self.engine
        writes = self.writing.execution_options(fleetdiff_writes=True)
        kept: dict[str, Any] = {"grounds": {}}  # by model, see `service.fleet.ground`
        self._writers = sessionmaker(writes, expire_on_commit=False, info=kept)
        self._readers = sessionmaker(self.engine, expire_on_commit=False, autoflush=False)

    @contextmanager
    def writer(self) -> Iterator[Session]:
        """Enter a session in one transaction: committed at the end, rolled back on any error."""
        with self._writers() as session:
            yield session
            session.flush()
            scopes = changes.touched(session)
            changes.count_up(session, scopes)
            changes.tell(session, scopes, self.entries.name)
            with self.entries.changing(scopes):
                session.commit()

    @contextmanager
    def rehearsal(self) -> Iterator[Session]:
        """Enter a session that may write as a writer does, and of which nothing is kept."""
        with self._writers() as session:
            yield session

    def supposing(self) -> Session:
        """Return a session that writes nothing and makes nobody wait, and supposes that it did.

        An UPDATE finds the rows that it would find (`changed`, `written`); what is set on an object
        stays in memory. What follows from that is read from one moment's state of the database.
        """
        options = {} if self.is_sqlite else _ONE_MOMENT
        reading = self.engine.execution_options(**options)
        return _Supposing(reading, autoflush=False, info={"grounds": {}})

    def reader(self) -> AbstractContextManager[Session]:
        """Enter a session whose changes are never kept."""
        return self._readers()

    def watch(self, stop: changes.Stop) -> None:
        """Keep the entries true to what other processes change, until told to stop."""
        changes.watch(self.writing, self.entries, stop)

    def close(self) -> None:
        """Close every connection."""
        self.engine.dispose()
        self.writing.dispose()


class _Supposing(Session):
    def flush(self, objects: Sequence[Any] | None = None) -> None:
        """Write nothing."""

    def would_find(self, statement: Executable, values: dict[str, Any]) -> int:
        """Return how many rows an INSERT or UPDATE would add or change."""
        if not isinstance(statement, Update):
            return 1
        rows = select(func.count()).select_from(statement.table)
        rows = rows if statement.whereclause is None else rows.where(statement.whereclause)
        return self.connection().execute(rows, values).scalar_one()


def changed(session: Session, statement: Update, touches: Iterable[str] = (EVERYTHING,)) -> bool:
    """Whether a conditional UPDATE found its row as it expected it.

    Args:
        session: to write to.
        statement: the UPDATE.
        touches: whose answers it may change, see `service.db.changes`.
    """
    if isinstance(session, _Supposing):
        return session.would_find(statement, {}) == 1
    done = session.execute(statement, execution_options={"touches": touches})
    return bool(done.rowcount == 1)  # type: ignore[attr-defined]


def written(
    session: Session, statement: Executable, values: dict[str, Any], touches: Iterable[str] = ()
) -> int:
    """Execute a statement past the unit of work, which takes a tenth of the time; returns the rows.

    Args:
        session: to write to.
        statement: one of the core, best made once: what it was compiled to is found again.
        values: of its parameters.
        touches: whose answers it may change, see `service.db.changes`.
    """
    if isinstance(session, _Supposing):
        return session.would_find(statement, values)
    changes.touched(session).update(touches)
    return session.connection().execute(statement, values).rowcount


def insert_into(session: Session, table: type[DeclarativeBase]) -> Any:
    """Return an INSERT that can say what happens when the row is there already."""
    is_sqlite = session.get_bind().dialect.name == "sqlite"
    return sqlite_insert(table) if is_sqlite else postgresql_insert(table)


def take_turns(session: Session, name: str) -> None:
    """Let transactions that name this go on one after the other; SQLite's do so by themselves."""
    if session.get_bind().dialect.name == "postgresql":
        session.execute(select(func.pg_advisory_xact_lock(func.hashtext(name))))


def _json(value: object) -> str:
    """Return JSON as SQLite's own functions read it: they do not see through an escaped key."""
    return json.dumps(value, ensure_ascii=False)


def _sqlite(url: str, durable: bool, connections: int) -> Engine:
    engine = create_engine(
        url,
        pool_size=connections,
        max_overflow=0 if connections == 1 else 10,
        json_serializer=_json,
        connect_args={"timeout": BUSY_TIMEOUT_S},
    )

    @event.listens_for(engine, "connect")
    def configure(connection: Any, _record: object) -> None:
        connection.isolation_level = None  # we say BEGIN ourselves
        synchronous = "NORMAL" if durable else "OFF"
        for pragma in ("journal_mode=WAL", f"synchronous={synchronous}", "foreign_keys=ON"):
            connection.execute(f"PRAGMA {pragma}")

    @event.listens_for(engine, "begin")
    def begin(connection: Connection) -> None:
        held: Any = connection.connection.dbapi_connection
        if held.in_transaction:  # a commit that failed left it so, and there is no other writer
            held.rollback()
        writes = connection.get_execution_options().get("fleetdiff_writes", False)
        connection.exec_driver_sql("BEGIN IMMEDIATE" if writes else "BEGIN")

    return engine
