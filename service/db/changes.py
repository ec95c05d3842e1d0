"""Whose answers a transaction may change, and how other processes hear of it.

Every flush and every statement of a session is looked at. What is not known to be harmless counts
for everything: a table or a column that somebody adds makes polls slow until it is named here,
never wrong.
"""

import json
import logging
import select
import socket
import time
from threading import Event
from typing import Any

import psycopg
from sqlalchemy import Engine, event, inspect, text, update
from sqlalchemy.orm import ORMExecuteState, Session

from service.db.entries import EVERYTHING, Entries, of_device, of_model
from service.db.tables import Model

logger = logging.getLogger(__name__)
WATCH_S = 0.5
CHANNEL = "fleetdiff_changes"
SCOPES_TOLD_MAX = 100  # a notification holds less than 8,000 bytes
HARMLESS_TABLES = frozenset(
    "answer api_token artifact audit_entry audit_head budget canary_report canary_sums "
    "checked_patch draft enrollment_token event publisher_state rollout_decision upload "
    "webhook".split()
)
# A stage that is full is never kept as an answer, so its places need no telling.
HARMLESS = {
    "device": {"last_seen_at", "signed_number"},
    "deployment": {"bytes_reserved", "bytes_sent", "deadline_at"},
    "rollout": {"waiting_for", "classes", "verified_at", "reports_deleted_at"},
    "stage": {"in_flight", "finished", "failures"},
}


class Stop(Event):
    """Ends a watch at once: `select` can wait for it, beside the database."""

    def __init__(self) -> None:
        """Make one that is not set; `watch` closes what it holds."""
        super().__init__()
        self.heard, self._said = socket.socketpair()

    def set(self) -> None:
        """End the watch."""
        super().set()
        self._said.close()


def touched(session: Session) -> set[str]:
    """Return the scopes that a flushed transaction touched."""
    return session.info.setdefault("touched", set())  # type: ignore[no-any-return]


def count_up(session: Session, scopes: set[str]) -> None:
    """Give the models that a transaction touched their next generation, as its last step."""
    models = touched_models(scopes)
    if models:
        which = () if "" in models else (Model.name.in_(models),)
        next_one = {"generation": Model.generation + 1}
        session.connection().execute(update(Model.__table__).where(*which).values(next_one))  # type: ignore[arg-type]


def touched_models(scopes: set[str]) -> set[str]:
    """Return the models among scopes, "" if everything is."""
    return {s.partition(" ")[2] for s in scopes if not s.startswith(of_device(""))}


def tell(session: Session, scopes: set[str], us: str) -> None:
    """Let other processes know when this transaction commits; SQLite tells by itself."""
    if scopes and session.get_bind().dialect.name == "postgresql":
        told = sorted(scopes) if len(scopes) <= SCOPES_TOLD_MAX else [EVERYTHING]
        payload = {"channel": CHANNEL, "payload": json.dumps([us, *told])}
        session.execute(text("SELECT pg_notify(:channel, :payload)"), payload)


@event.listens_for(Session, "after_flush")
def _flushed(session: Session, _context: object) -> None:
    for row in [*session.new, *session.deleted]:
        _touch(session, row)
    for row in session.dirty:
        state = inspect(row)
        before = state.committed_state.items()
        changed = {
            name
            for name, old in before
            if old is not state.dict.get(name, before) and old != state.dict.get(name, before)
        }
        if not changed <= HARMLESS.get(row.__tablename__, set()):
            _touch(session, row)


def _touch(session: Session, row: Any) -> None:
    if row.__tablename__ in HARMLESS_TABLES:
        return
    if row.__tablename__ == "device":
        scope = of_device(row.id)
    elif hasattr(row, "device_id"):
        scope = of_device(row.device_id)
    else:
        scope = of_model(row.model) if hasattr(row, "model") else EVERYTHING
    touched(session).add(scope)


@event.listens_for(Session, "do_orm_execute")
def _executed(state: ORMExecuteState) -> None:
    """A statement touches everything, unless it says what (`touches=`) or its table is harmless."""
    if state.is_select or not (state.is_insert or state.is_update or state.is_delete):
        return
    table: Any = state.statement
    if table.table.name not in HARMLESS_TABLES:
        touched(state.session).update(state.execution_options.get("touches", (EVERYTHING,)))


def watch(engine: Engine, entries: Entries, stop: Stop) -> None:
    """Tell the entries what other processes change, until told to stop.

    Args:
        engine: on SQLite, of the one connection that writes: its `data_version` counts what
            others committed, and only that.
        entries: to keep true; where the database cannot be asked they are not used.
        stop: ends it.
    """
    ask = _ask_sqlite if engine.dialect.name == "sqlite" else _ask_postgresql
    while not stop.is_set():
        try:
            ask(engine, entries, stop)
        except Exception:  # the database is away: what changes meanwhile is not heard
            logger.exception("watch failed")
            stop.wait(WATCH_S)
    stop.heard.close()


def _ask_sqlite(engine: Engine, entries: Entries, stop: Stop) -> None:
    known: tuple[object, int] | None = None
    while not stop.is_set():
        at_s, connection = time.monotonic(), engine.raw_connection()
        try:
            version = connection.cursor().execute("PRAGMA data_version").fetchone()[0]
            found = (connection.dbapi_connection, version)
        finally:
            connection.close()
        if found != known:
            entries.drop([EVERYTHING])
            known = found
        entries.heard(at_s)
        stop.wait(WATCH_S)


def _ask_postgresql(engine: Engine, entries: Entries, stop: Stop) -> None:
    def hear(told: psycopg.Notify) -> None:
        who, *scopes = json.loads(told.payload)
        if who != entries.name:  # we know already what we did
            entries.drop(scopes)

    with engine.connect().execution_options(isolation_level="AUTOCOMMIT") as held:
        held.detach()  # from the pool: nobody else shall listen
        connection: Any = held.connection.dbapi_connection
        connection.add_notify_handler(hear)
        connection.execute(f"LISTEN {CHANNEL}")
        entries.drop([EVERYTHING])
        while not stop.is_set():
            at_s = time.monotonic()
            connection.execute("SELECT 1")  # the answer comes after all that was committed before
            entries.heard(at_s)
            select.select([connection, stop.heard], [], [], WATCH_S)
