"""A real server over real HTTP, and people who each have a machine of their own."""

import json
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager, redirect_stderr, redirect_stdout
from datetime import UTC, datetime
from io import StringIO
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import uvicorn
from tuf.api.metadata import Metadata, Targets

from release_manager.__main__ import main
from service.core import access
from service.settings import Settings
from tests.service.world import World, opened
from trust.roles import Family, read_family

PEOPLE = ("anne", "ben", "carl")


class Machine:
    """One person's machine: a folder of keys, nothing shared with anybody."""

    def __init__(self, town: "Town", name: str) -> None:
        self.town, self.name, self.folder = town, name, town.home / name
        self.out = self.err = self.token = ""

    def run(self, *words: str | Path) -> int:
        token = self.token or self.town.world.token
        common = ["--server", self.town.address, "--token", token]
        out, err = StringIO(), StringIO()
        with redirect_stdout(out), redirect_stderr(err):
            try:
                code = main([str(w) for w in (*words, "--keys", self.folder, *common)])
            except SystemExit as stop:
                code = int(stop.code or 0)
        self.out, self.err = out.getvalue(), err.getvalue()
        return code

    def json(self, *words: str | Path) -> Any:
        assert self.run(*words, "--json") == 0, self.err
        return json.loads(self.out)

    def key(self, role: str) -> Path:
        """Return the public part of this person's key for a role; made when first asked for."""
        file = self.folder / f"{role}.pem"
        public = file.with_name(f"{role}.pem.pub")
        if not public.exists():
            assert self.run("key", "make", file) == 0, self.err
        return public

    def sign(self, role: str, what: str | Path = "") -> Any:
        """Sign what waits for a role with this person's key for it."""
        return self.json("sign", what or role, "--key", self.folder / f"{role}.pem", "--yes")


class Town:
    """A server, the people who sign, and the publisher's keys in a place of their own."""

    def __init__(self, world: World, address: str, home: Path) -> None:
        self.world, self.address, self.home = world, address, home
        self.anne, self.ben, self.carl = (Machine(self, name) for name in PEOPLE)
        self.publisher = Machine(self, "publisher")

    @property
    def people(self) -> list[Machine]:
        return [self.anne, self.ben, self.carl]

    def ceremony(self, **changes: str) -> Path:
        """Write the ceremony file of two of three people, with lines of a role replaced."""
        lines = []
        for role in ("root", "targets"):
            names = json.dumps([str(person.key(role)) for person in self.people])
            lines += [f"[{role}]", changes.get(role, f"threshold = 2\nkeys = {names}")]
        for role in ("snapshot", "timestamp", "director"):
            names = json.dumps([str(self.publisher.key(role))])
            lines += [f"[{role}]", changes.get(role, f"keys = {names}")]
        file = self.home / "ceremony.toml"
        file.write_text("\n".join(lines))
        return file

    def found(self) -> None:
        """Go through the whole ceremony: two of three sign root and targets in their files."""
        assert self.anne.run("init", "--ceremony", self.ceremony()) == 0, self.anne.err
        for role in ("root", "targets"):
            for person in (self.anne, self.ben):
                person.sign(role, self.anne.folder / f"{role}.json")
        assert self.anne.json("init", "--publish")["published"]
        for person in (self.ben, self.carl):
            (person.folder / "root.json").write_bytes((self.anne.folder / "root.json").read_bytes())

    def add_model(self, model: str = "asr") -> None:
        """Make a model that two of three release managers sign."""
        role, words = f"family-{model}", ["model", "create", model, "--threshold", "2"]
        for person in self.people:
            words += ["--add", str(person.key(role))]
        assert self.anne.run(*words) == 0, self.anne.err
        for person in (self.anne, self.ben):
            person.sign("targets")

    def newest(self, role: str) -> bytes:
        return self.world.newest_metadata(role)

    def family(self) -> Family:
        body = self.newest("family-asr")
        return read_family("asr", Metadata[Targets].from_bytes(body).signed)

    def drafts(self) -> list[Any]:
        return list(self.anne.json("draft", "list")["items"])

    def publish(self, *words: str | Path) -> Any:
        """Let Anne stage the family by a command, and Ben and Carl sign it."""
        assert self.anne.run(*words) == 0, self.anne.err
        self.ben.sign("family-asr")
        return self.carl.sign("family-asr")


def what(done: Any) -> list[str]:
    """Return what a person who signed was shown."""
    return [f"{row['change']} {row['what']}" for row in done["changes"]]


@contextmanager
def town(home: Path) -> Iterator[Town]:
    """Open the town whose database and people's folders lie in a folder."""
    database = f"sqlite:///{home / 'fleetdiff.db'}"
    settings = Settings(database=database, artifacts=str(home / "artifacts"))
    with TemporaryDirectory() as unused, opened(settings, Path(unused)) as world:
        world.now = datetime.now(UTC)  # commands read the clock of this machine
        world.token = world.token_with(*access.SCOPES)
        config = uvicorn.Config(world.app, port=0, lifespan="off", log_level="error")
        server = uvicorn.Server(config)
        thread = threading.Thread(target=server.run)
        thread.start()
        try:
            while not server.started:
                assert thread.is_alive()
                time.sleep(0.01)
            port = server.servers[0].sockets[0].getsockname()[1]
            yield Town(world, f"http://127.0.0.1:{port}", home)
        finally:
            server.should_exit = True
            thread.join()
