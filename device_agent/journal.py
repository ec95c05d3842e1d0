"""The journal: everything a device keeps through a power cut, in one document.

It holds the state of the cycle and the `Memory`: floors that never sink (a device that forgets
them can be shown old metadata again), what was settled, and what waits to be sent. It is written
before anything acts on it, to two files in turn, each with a checksum and a generation. A torn
write hits the older one, so the newer one is always whole.

Saves of one attempt are counted: one that is saved or resumed too often is ended, so that a
release that crashes the agent cannot do so for ever.
"""

import json
from dataclasses import asdict, dataclass, field, replace
from hashlib import sha256
from operator import itemgetter
from pathlib import Path
from typing import Any, get_args

from device_agent.disk import sync
from device_agent.engine import Counts
from device_agent.errors import Misconfigured
from device_agent.states import Idle, State, give_up
from device_agent.strict import read
from trust.floors import Floors
from trust.order import write_time

SAVES_MAX = 28  # journal saves and resumes of one attempt
KEPT_MAX = 16  # deployments given up, good models
NEWBORN = {"generation": 0, "saves": 0, "state": {"name": "Idle"}, "memory": {}}
Queue = tuple[tuple[str, dict[str, Any]], ...]


@dataclass(frozen=True)
class Memory:
    """What a device knows beside its state.

    Attributes:
        etag: of the last answer that left nothing to do; empty if there is something.
        fresh_until: when the first of the signed documents it rests on expires.
        refusals: attempts in a row that ended badly; they slow the polling down.
        deployment: the last one that was begun.
        given_up: deployments that this device decided against and does not try again.
        back_edges: (from, to) digests that the family signs as ways back.
        good: model digest -> release name, of models that proved themselves here.
        attempt: (release, deployment, number) of the last trial on the canary.
        counts: of earlier trials, so that a model is heard once.
        queue: (path, document) of what the server has not acknowledged.
        said: keys of what was queued before.
        next_seq: the number of the next event; it never repeats.
        agent: the version of the agent that the server was told of.
        capacity: what the server was told that an update may take.
        hold: why the server has nothing for it, in the server's word.
        trouble: what keeps the state it is in from going on; empty once it went on.
        ended: (kind, reason, detail, when) of the last attempt.
    """

    floors: Floors = field(default_factory=Floors)
    etag: str = ""
    fresh_until: str = ""
    refusals: int = 0
    deployment: str = ""
    given_up: tuple[str, ...] = ()
    back_edges: tuple[tuple[str, str], ...] = ()
    good: dict[str, str] = field(default_factory=dict)
    attempt: tuple[str, str, int] = ("", "", 0)
    counts: dict[str, Counts] = field(default_factory=dict)
    queue: Queue = ()
    said: tuple[str, ...] = ()
    next_seq: int = 1
    agent: str = ""
    capacity: dict[str, Any] = field(default_factory=dict)
    hold: str = ""
    trouble: str = ""
    ended: tuple[str, str, str, str] = ("", "", "", "")

    def attempt_at(self, release: str, deployment: str) -> int:
        """Return which trial of a release this is; a deployment that tries it again counts once."""
        tried, by, number = self.attempt
        return number + int(by != deployment) if tried == release else 1

    def giving_up(self, deployment: str) -> tuple[str, ...]:
        """Return what is given up, with this deployment."""
        return (*(d for d in self.given_up if d != deployment), deployment)[-KEPT_MAX:]

    def knowing_good(self, model: str, release: str) -> dict[str, str]:
        """Return the good models, with this one as the latest."""
        others = [(m, name) for m, name in self.good.items() if m != model]
        return dict([*others, (model, release)][-KEPT_MAX:])


class Journal:
    """The state and the memory of a device, whole after any power cut.

    Attributes:
        newborn: nothing was saved yet.
        state: the state that was saved last.
        memory: what was remembered last.

    Raises:
        Misconfigured: both files are damaged, which no power cut does.
    """

    def __init__(self, folder: Path) -> None:
        self._files = (folder / "journal.0", folder / "journal.1")
        found = [_read_entry(file) for file in self._files if file.exists()]
        whole = [entry for entry in found if entry is not None]
        # A single torn file is a first save that never ended.
        if len(found) == 2 and not whole:
            raise Misconfigured(f"{folder}/journal.0 and .1 are both damaged; enroll again")
        newest: dict[str, Any] = max(whole, key=itemgetter("generation"), default=NEWBORN)
        self.newborn = not whole
        self._generation, self._saves = newest["generation"], newest["saves"]
        self.state, self.memory = decode(newest["state"]), read(Memory, newest["memory"])

    def resume(self) -> State:
        """Return the state to go on with; entering it again is counted."""
        return self.state if isinstance(self.state, Idle) else self.save(self.state)

    def save(self, state: State) -> State:
        """Save a state before it is entered, and return it, or the one that ends the attempt."""
        saves = 0 if isinstance(state, Idle) else self._saves + 1
        if saves > SAVES_MAX:
            state, saves = give_up(state, "E_STATE_LOOP"), 0
        self._write(state, saves, self.memory)
        return state

    def remember(self, **changes: Any) -> None:
        """Change fields of the memory, all at once."""
        memory = replace(self.memory, **changes)
        if memory != self.memory:
            self._write(self.state, self._saves, memory)

    def _write(self, state: State, saves: int, memory: Memory) -> None:
        generation = self._generation + 1
        entry = {"generation": generation, "saves": saves, "state": encode(state)}
        body = json.dumps(entry | {"memory": asdict(memory)}, default=write_time).encode()
        file = self._files[generation % 2]
        file.write_bytes(sha256(body).hexdigest().encode() + b"\n" + body)
        sync(file)
        if generation <= 2:
            sync(file.parent)
        self._generation, self._saves = generation, saves
        self.state, self.memory = state, memory


def encode(state: State) -> dict[str, Any]:
    """Return a state as plain JSON values."""
    return {"name": type(state).__name__, **asdict(state)}


def decode(document: dict[str, Any]) -> State:
    """Return the state that `encode` wrote."""
    kind = next(kind for kind in get_args(State) if kind.__name__ == document["name"])
    state: State = read(kind, document)
    return state


def _read_entry(file: Path) -> dict[str, Any] | None:
    digest, _, body = file.read_bytes().partition(b"\n")
    whole = sha256(body).hexdigest().encode() == digest
    return read(dict[str, Any], json.loads(body)) if whole else None
