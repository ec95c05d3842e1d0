"""A device of the simulated fleet: the agent itself, on a disk and a network that are simulated.

Cycle, journal, outbox, check-in, waiting and everything that is said to the server are the
agent's own code; so are what it does at a switch, a commit and a report. In place of files there
are digests, in place of a socket the app in this process, in place of an engine a draw of word
errors, and signatures are not verified. `test_simulated_agrees.py` compares it with a real agent.
"""

import json
from collections.abc import Callable
from contextlib import nullcontext
from dataclasses import replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from types import SimpleNamespace
from typing import Any, Protocol
from urllib.parse import urlencode

from device_agent.canary import Trial, gate_refuses, report_of
from device_agent.check_in import Bundle, CheckIn
from device_agent.client import TRY_LATER, Reply
from device_agent.config import Config
from device_agent.device import LocalDevice
from device_agent.engine import Counts, Shard
from device_agent.errors import Rejected, Unavailable
from device_agent.journal import Journal, Memory
from device_agent.outbox import Outbox
from device_agent.plan import Plan, way_of
from device_agent.states import Idle, State
from device_agent.strict import accept
from tests.service.world import MODEL
from trust.errors import require
from trust.order import read_envelope, read_order, write_time

CONFIG = Config(
    server="https://fleet.example",
    model=MODEL,
    serial="simulated",
    hardware="h1",
    state_dir=Path(),
    root=Path(),
    recogniser=("simulated",),
)
HERE = {"utc_offset_s": 0, "network": "", "idle": False, "charging": False}
HAS = {"memory_bytes": 1 << 31, "room_bytes": 1 << 30, "goes_back": True, "surroundings": HERE}
ENGINE_S, REQUEST_S = 20.0, 0.1


class PowerCut(Exception):
    """The power fails before what would have happened next."""


class Site(Protocol):
    """Where a device stands: its clock, its network and its luck."""

    def ask(
        self,
        device: "SimulatedDevice",
        method: str,
        path: str,
        headers: dict[str, str],
        body: bytes,
    ) -> tuple[int, dict[str, str], bytes]:
        """Bring a request to the server and return status, headers and body of the answer."""

    def spend(self, device: "SimulatedDevice") -> None:
        """Called before whatever a power cut could keep from happening; may raise PowerCut."""

    def errors(self, device: "SimulatedDevice", sha256: str) -> int:
        """Return the word errors that a model makes on the device's shard."""


class Kept(Journal):
    """A journal whose files never fail: what was written last is there after a power cut."""

    def __init__(self, spend: Callable[[], None]) -> None:
        self.newborn, self._generation, self._saves = False, 0, 0
        self.state, self.memory, self._spend = Idle(), Memory(), spend

    def _write(self, state: State, saves: int, memory: Memory) -> None:
        self._spend()
        self.state, self.memory, self._saves = state, memory, saves


class TwoSlots:
    """Digests in place of the files of two slots."""

    def __init__(self, active: str, spend: Callable[[], None]) -> None:
        self.here, self.other, self._spend = active, "", spend

    @property
    def active(self) -> Path:
        return Path(self.here)

    @property
    def spare(self) -> Path:
        return Path(self.other)

    def active_sha256(self, *, fresh: bool) -> str:
        return self.here

    def spare_sha256(self) -> str:
        return self.other

    def spare_holds(self, sha256: str, _components: object) -> bool:
        return self.other == sha256

    def write(self, sha256: str) -> None:
        self._spend()
        self.other = sha256

    def activate(self, sha256: str, refusal: str) -> None:
        self._spend()
        if self.here == sha256:
            return
        if self.other != sha256:
            raise Rejected(refusal, f"no slot holds {sha256[:12]}")
        self.here, self.other = self.other, self.here


class Link:
    """The agent's client, on a network of the simulation."""

    def __init__(self, device: "SimulatedDevice", credential: str) -> None:
        self._device, self.credential = device, credential
        self.identity = SimpleNamespace(judged=nullcontext)

    def poll(self, active: str, root: int, timestamp: int, etag: str) -> Reply:
        question = {"root": root, "t": timestamp, **({"s": active} if active else {})}
        headers = {"if-none-match": etag} if etag else {}
        status, told, body = self.ask("GET", f"poll?{urlencode(question)}", headers)
        after = float(told["poll-after"])
        return Reply(status, told.get("etag", ""), after, body, told.get("next-credential", ""))

    def post(self, path: str, document: dict[str, Any]) -> bytes:
        body = json.dumps(document).encode()
        return self.ask("POST", path, {"content-type": "application/json"}, body)[2]

    def renew(self, told: str) -> None:
        self.credential = told or self.credential

    def blob(self, name: str, length: int) -> None:
        body = self.ask("GET", f"artifacts/{name}", {})[2]
        if (len(body), sha256(body).hexdigest()) != (length, name):
            raise Rejected("E_HASH", f"artifact {name[:12]} has other bytes than its name")

    def ask(
        self, method: str, path: str, headers: dict[str, str], body: bytes = b""
    ) -> tuple[int, dict[str, str], bytes]:
        ours = headers | {"authorization": f"Bearer {self.credential}"}
        status, told, answer = self._device.site.ask(self._device, method, path, ours, body)
        if status in (200, 201, 202, 304):
            return status, told, answer
        if 400 <= status < 500 and status not in TRY_LATER:
            raise Rejected("E_HTTP", f"{status} {answer[:200]!r}")
        after, later = told.get("poll-after"), told.get("retry-after", "0")
        raise Unavailable(
            f"{status} {answer[:200]!r}",
            status,
            None if after is None else float(after),
            later_s=float(later) if status == 503 else 0.0,
        )


class Told(CheckIn):
    """Checking in without verifying signatures; what is believed then is as in the agent."""

    def __post_init__(self) -> None:
        self._root_version, self.timestamp = 1, 0

    def _verified(self, role: str, otherwise: int) -> int:
        return self.timestamp if role == "timestamp" else otherwise

    def _verify(self, bundle: Bundle, active: str) -> Plan | None:
        stamp = bundle.metadata.get("timestamp.json")
        if stamp is not None:
            self.timestamp = json.loads(stamp)["signed"]["version"]
        if bundle.order is None:
            return None
        order = read_order(read_envelope(json.dumps(bundle.order).encode()).payload)
        until = write_time(order.expires)
        require(order.expires > self.clock(), "E_FREEZE", f"the order expired at {until}")
        given_up = order.deployment in self.journal.memory.given_up
        if order.sha256 == active or bundle.plan is None or given_up:
            return None
        plan = accept(Plan, bundle.plan, "E_PLAN")
        return replace(plan, order_seq=order.seq, base=active)


class SimulatedDevice(LocalDevice):
    """One device; what a liar does otherwise, its subclass overrides."""

    def __init__(
        self,
        site: Site,
        number: int,
        known: tuple[str, str],
        running: str,
        clock: Callable[[], datetime],
    ) -> None:
        self.site, self.number, self.config = site, number, CONFIG
        self.device_id, credential = known
        self._clock = clock
        self.journal = Kept(self._spend)
        self.slots: Any = TwoSlots(running, self._spend)
        self.outbox = Outbox(self.journal, lambda: write_time(clock()))
        self.client: Any = Link(self, credential)
        told = (self.config, self.client, self.slots, self.journal, self.outbox, clock)
        self.check_in = Told(*told)
        self.blobs: dict[str, int] = {}  # of this attempt, as far as they came whole
        self.shards: dict[str, int] = {}  # of the canary; they stay
        self.ran = {running}  # every model that ever was the active one, in truth
        self.state: State = Idle()
        self.failures, self.took_s = 0, 0.0

    def check(self) -> Plan | None:
        if self.journal.memory.capacity != HAS:
            self.outbox.add_capacity(HAS)
        return self.check_in.ask()

    def fetch(self, plan: Plan, pipeline: int, failed: str) -> None:
        self._say(plan, "downloading")
        if failed:
            self._say(plan, "note", reason=failed, detail=way_of(plan.pipelines[pipeline - 1]))
        self.flush()
        if not self.spare_holds(plan):
            for step in plan.pipelines[pipeline]:
                self._bring(self.blobs, step.sha256, step.bytes)
        if offered := self._canary_of(plan):
            self._bring(self.shards, offered.set, offered.set_bytes)
            self._bring(self.shards, offered.shard_sha256, offered.shard_bytes)

    def build(self, plan: Plan, pipeline: int) -> None:
        steps = plan.pipelines[pipeline]
        if not self.spare_holds(plan):
            if steps[0].op != "full" and self.slots.here != plan.base:
                raise Rejected("E_BASE", "the patch is for another model")
            self.slots.write(plan.sha256)
        size = sum(step.bytes for step in steps)
        self._say(plan, "applied", detail=way_of(steps), bytes=size)
        self._clear_downloads()

    def evaluate(self, plan: Plan) -> None:
        offered = self._canary_of(plan)
        if offered is None:
            return
        self.took_s += ENGINE_S
        words = self.words
        old, new = self.heard(plan)
        attempt = self.journal.memory.attempt_at(plan.release, plan.deployment)
        self.journal.remember(attempt=(plan.release, plan.deployment, attempt))
        refused = gate_refuses(old, new, words)
        counts = self._counts(old)
        again = counts if offered.arm == "control" else None
        trial = Trial(counts, self._counts(new), again, None, old_first=True, kept={})
        shard = Shard("", offered.shard_sha256, 0, self.utterances, words, offered.set)
        about = (plan, self.device_id, attempt, self._clock())
        said = report_of(trial, shard, *about, refused=refused)
        self.outbox.add_report(said)
        if refused:
            raise Rejected("E_GATE", f"{new} errors where the running model makes {old}")

    utterances, words = 20, 100  # of a shard of the small world

    def heard(self, plan: Plan) -> tuple[int, int]:
        """Return the word errors of the old and the new model, as this device reports them."""
        old, new = (self.site.errors(self, model) for model in (plan.base, plan.sha256))
        return old, new

    def _bring(self, kept: dict[str, int], name: str, length: int) -> None:
        if name not in kept:
            self.client.blob(name, length)
            self._spend()
            kept[name] = length

    def _counts(self, errors: int) -> Counts:
        return Counts({"sub": errors, "del": 0, "ins": 0}, 10, "wer/1", "simulated/1")

    def _fetched(self) -> dict[str, int]:
        return self.blobs

    def _clear_downloads(self, wanted: Any = ()) -> None:
        self.blobs = {name: size for name, size in self.blobs.items() if name in wanted}

    def _spend(self) -> None:
        self.site.spend(self)
