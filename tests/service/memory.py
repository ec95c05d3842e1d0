"""How tests see whether an unchanged poll was answered from memory."""

from collections.abc import Callable, Iterator
from contextlib import contextmanager
from functools import partial
from typing import Any

from sqlalchemy import event

from service.api import poll as layer
from service.db.session import Database
from tests.service.phone import Phone
from tests.service.programs import eventually
from tests.service.world import BETTER, World, digest

GIVEN = layer._answer


class Memory:
    """Counts the polls that were answered from memory."""

    def __init__(self) -> None:
        self.answers = 0

    async def answer(self, *more: Any) -> None:
        self.answers += 1
        await GIVEN(*more)

    def took(self, ask: Callable[[], Any]) -> bool:
        """Ask; whether the answer, a 304, came from memory."""
        before = self.answers
        reply = ask()
        assert reply.status_code == 304 or self.answers == before
        return self.answers > before


def asking(phone: Phone, **more: str) -> Any:
    """Ask again what was asked last, as an agent does."""
    headers = {"If-None-Match": phone.etag} | more
    query = {"root": "1", "t": "1"} | ({"s": phone.runs} if phone.runs else {})
    return phone.request("GET", "/poll", params=query, headers=headers)


def settle(phone: Phone) -> Callable[[], Any]:
    """Poll until nothing changes any more and the answer is in memory; returns how to ask again."""
    entries = phone.world.app.state.database.entries
    eventually(lambda: entries._heard_until_s, "what others changed is known")
    for _ in range(4):
        reply = asking(phone)
        assert reply.status_code in (200, 304), reply.text
        phone.etag = reply.headers["etag"]
    return partial(asking, phone)


def updated(world: World) -> Phone:
    """A device with nothing to do beside a rollout to others."""
    world.ready()
    phone = world.enroll("serial-1", runs=digest(BETTER))
    world.tick()
    return phone


@contextmanager
def statements(world: World) -> Iterator[list[str]]:
    """Collect the SQL that reaches the database, whatever connection it takes."""
    seen: list[str] = []

    def note(_connection: Any, _cursor: Any, statement: str, *_more: Any) -> None:
        seen.append(statement)

    with before_each(world.app.state.database, note):
        yield seen


@contextmanager
def before_each(database: Database, called: Callable[..., None]) -> Iterator[None]:
    """Call this before each statement, whatever connection it takes."""
    engines = {database.engine, database.writing}
    for engine in engines:
        event.listen(engine, "before_cursor_execute", called)
    yield
    for engine in engines:
        event.remove(engine, "before_cursor_execute", called)
