"""Fleets that are drawn from seeds, whose engines print what the real recogniser counted.

Which shard a device hears, which arm and which stage it is in, what its gate says, what its pair
adds and what then happens is for the product's own code to say: in `Drawn` called one by one, with
a look after every report; in `on_server` on the real server, with the agents' own cycle
(`tests/fleet/simulator.py`).
"""

import random
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import asdict, astuple, dataclass, field
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any
from unittest import mock

from demo.cast import SPEECH
from demo.speech.shards import Shard, read_manifest
from device_agent import canary, engine
from device_agent.device import LocalDevice
from device_agent.plan import Canary, Plan
from service.core import policy, signals
from service.core.canary import Gate, Pairs, Sums, contribution
from service.db.migrate import migrate
from service.db.rollout_tables import LIVE
from service.fleet.sums import Errors, Pair
from tests.fleet.faults import drawn
from tests.fleet.simulated import ENGINE_S, SimulatedDevice
from tests.fleet.simulator import Fleet
from tests.service.line import file, release
from tests.service.world import MODEL, World, digest, opened, patient
from trust import sign
from trust.roles import CanaryTarget

FOLDER = SPEECH / "canary"
SHARDS = read_manifest(FOLDER)
MODELS = tuple(digest(file(n)) for n in range(1, 5))  # what stands for r1 to r4 in a fleet
HALF_BP, ALL_BP = 5000, 10_000
HOURS_MAX = 12
VERDICTS = {"advance": "promoted", "halt": "halted"}

Heard = dict[tuple[str, str], engine.Counts]  # (model, shard) -> what the recogniser counts


@dataclass(frozen=True)
class Outcome:
    """What came of one update, after how many pairs; how many devices refused by themselves."""

    verdict: str
    pairs: int
    refused: int


@dataclass
class Drawn:
    """A fleet: who is in it and how each comes to its shard, arm and stage."""

    seed: int
    devices: int
    heard: Heard
    rng: random.Random = field(init=False)

    def __post_init__(self) -> None:
        self.rng = random.Random(f"seeds/{self.seed}")
        self.ids = [self.rng.randbytes(6).hex() for _ in range(self.devices)]
        self.canary_salt = self.rng.randbytes(16).hex()

    def story(self, gate: Gate) -> list[Outcome]:
        """Roll out one update after another, the mistake whatever came of the others."""
        return [self._rollout(gate, number) for number in range(1, len(MODELS))]

    def _rollout(self, gate: Gate, number: int) -> Outcome:
        """Let the devices of the first stage report in any order until there is a verdict."""
        salt, seen = self.rng.randbytes(16).hex(), _Seen(gate)
        asked = [one for one in self.ids if policy.bucket(salt, one) < HALF_BP]
        for one in self.rng.sample(asked, len(asked)):
            shard = policy.shard_of(self.canary_salt, one, SHARDS)
            counts = [self.heard[MODELS[n], shard.sha256] for n in (number - 1, number, 0)]
            seen.add(policy.arm(salt, one, gate), shard, counts, is_chain=number > 1)
            decision = policy.decide(seen.observation)
            if decision.kind in VERDICTS:
                return Outcome(VERDICTS[decision.kind], *seen.counted)
            seen.reasons = decision.reasons  # paused: who has an order goes on reporting
        return Outcome("left to a person" if seen.reasons else "neither", *seen.counted)


class _Seen:
    """What a server has counted by now."""

    def __init__(self, gate: Gate) -> None:
        self.gate, self.devices, self.refused = gate, 0, 0
        names = ("pooled", "chain", "placebo", *signals.MAY_HALT)
        self.sums = dict.fromkeys(names, Sums())
        self.is_chain = False
        self.reasons: tuple[str, ...] = ()  # why the rollout is paused

    def add(
        self, arm: str, shard: Shard, counts: Sequence[engine.Counts], *, is_chain: bool
    ) -> None:
        """Add a device that reports and has its outcome at once."""
        old, new, base = counts
        self.devices += 1
        self.refused += canary.gate_refuses(old.errors, new.errors, shard.ref_words)
        self.is_chain = is_chain
        if arm == "control":
            self._pair("placebo", old.errors, old.errors, shard)
            return
        self._pair("pooled", old.errors, new.errors, shard)
        if is_chain:
            self._pair("chain", base.errors, new.errors, shard)
        differ = sum(a != b for a, b in zip(old.heard, new.heard, strict=True))
        empty = old.heard.count(""), new.heard.count("")
        said = signals.said(self.gate, signals.Signs(shard.utterances, differ, *empty))
        for name, d in said.items():
            self._sum(name, d, 0)

    def _pair(self, name: str, old: int, new: int, shard: Shard) -> None:
        self._sum(name, *contribution(self.gate, old, new, shard.ref_words))

    def _sum(self, name: str, d: int, b: int) -> None:
        added = list(Pair(d, b, Errors(0, 0, 0)).columns().values())[:6]
        both = zip(astuple(self.sums[name]), added, strict=True)
        self.sums[name] = Sums(*(x + y for x, y in both))

    @property
    def counted(self) -> tuple[int, int]:
        return self.sums["pooled"].n, self.refused

    @property
    def observation(self) -> policy.Observation:
        sums = self.sums
        chain = sums["chain"] if self.is_chain else None
        return policy.Observation(
            gate=self.gate,
            pairs=Pairs(sums["pooled"], {}, chain, sums["placebo"]),
            stage=1,
            stages=2,
            stage_s=0.0,
            soak_s=0,
            finished=self.devices,
            failures=self.refused,
            remaining=0,
            reasons=self.reasons,
            signals={name: sums[name] for name in signals.MAY_HALT},
        )


class Listener(SimulatedDevice):
    """A device whose trial is the agent's own; its engine prints what the recogniser counted."""

    heard_before: Heard

    def evaluate(self, plan: Plan) -> None:
        """Try a release as a real agent does."""
        self.took_s += ENGINE_S
        with mock.patch.object(canary, "run_engine", self._run):
            LocalDevice.evaluate(self, plan)

    def _run(
        self, _engine: engine.Engine, model: Path, _folder: Path, shard: engine.Shard
    ) -> engine.Counts:
        return self.heard_before[model.name, shard.sha256]

    def _fetch_canary(self, offered: Canary) -> tuple[Path, engine.Shard]:
        said = next(asdict(shard) for shard in SHARDS if shard.sha256 == offered.shard_sha256)
        del said["id"]
        return Path(), engine.Shard(**said, set=offered.set)


@contextmanager
def fleet(folder: Path, devices: int, seed: int, heard: Heard) -> Iterator[Fleet]:
    """Open a server with all releases and the real canary set, and a fleet on the base."""
    database = f"sqlite:///{folder / 'fleetdiff.db'}"
    migrate(database)
    settings = patient(database=database, artifacts=str(folder / "artifacts"), poll_after_s=600)
    kind = type("Listener", (Listener,), {"heard_before": heard})
    with drawn(seed), opened(settings, folder) as world:
        world.found()
        for number in range(1, 5):
            release(world, number, *([number - 1] if number > 1 else []), back=True)
        for shard in SHARDS:
            world.upload((FOLDER / shard.file).read_bytes())
        manifest = (FOLDER / "canary.json").read_bytes()
        target = CanaryTarget("home-en-1", world.upload(manifest), len(manifest))
        world.sign_family(sign.target_of(MODEL, target))
        world.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})
        known = [(phone.id, phone.credential) for phone in world.fleet(devices, MODELS[0])]
        kinds = dict.fromkeys(range(devices), kind)
        made = Fleet(world, known, MODELS[0], seed=seed, liars=kinds)
        yield made
        made.close()


def on_server(seed: int, devices: int, heard: Heard, gate: Mapping[str, Any]) -> list[Outcome]:
    """Roll out one update after another until one is not completed."""
    stages = [{"share_bp": HALF_BP}, {"share_bp": ALL_BP}]
    outcomes: list[Outcome] = []
    with TemporaryDirectory() as folder, fleet(Path(folder), devices, seed, heard) as made:
        for number in range(2, 5):
            rollout = made.world.start_rollout(f"r{number}", "all", stages=stages, gate=gate)
            for _ in range(4 * HOURS_MAX):
                made.run(hours=0.25)
                if made.rollout()["state"] not in LIVE:
                    break
            outcomes.append(_outcome(made.world, rollout))
            if outcomes[-1].verdict != "promoted":
                break
    return outcomes


def _outcome(world: World, rollout: str) -> Outcome:
    view = world.ok("GET", f"/v1/rollouts/{rollout}")
    items = world.ok("GET", f"/v1/rollouts/{rollout}/decisions")["items"]
    verdicts = [d for d in items if d["decision"] in ("advance", "halt")]
    pairs = verdicts[0]["evidence"]["seen"]["pairs"]["pooled"]["n"] if verdicts else 0
    verdict = {"completed": "promoted", "halted": "halted"}.get(view["state"], "neither")
    return Outcome(verdict, pairs, sum(stage["refused"] for stage in view["stages"]))
