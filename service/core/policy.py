"""May this rollout go on? Pure: what was observed in, one decision out.

A tick observes, `decide` judges, the tick applies. Telemetry may halt a rollout by itself and
may promote it only by evidence; "no data" is never "good", so a rollout without a verdict waits,
and after a time limit waits for a person.
"""

import hashlib
import hmac
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field, fields
from typing import Any, TypeVar

from service.core import canary, signals
from service.core.canary import Evidence, Gate, Pairs, Sums
from service.core.words import counted

T = TypeVar("T")
BUCKETS = 10_000
SUMS_DISAGREE = "sums_disagree"
# Why a rollout is paused, and what ends that; every other reason takes a person.
PASSING = {
    "budget": "somebody raises its byte budget",
    "edge_ended": "the family signs the way back again",
    "metadata_expiring": "people sign again what runs out",
    "patches_missing": "its patches are published, or somebody accepts full downloads",
}
GATE_BOUNDS: dict[str, tuple[float, float]] = {
    known.name: known.metadata["bounds"] for known in fields(Gate)
}


@dataclass(frozen=True)
class Observation:
    """What a tick sees of one running rollout.

    Attributes:
        stage, stages: which stage runs, of how many.
        stage_s, soak_s: how long it runs, and how long it must at least.
        finished, failures: devices with an outcome, and those among them that refused or failed.
        remaining: in the last stage, devices that are neither on the release nor out of the
            rollout, or as many of them as were counted.
        overridden: a person decided that this stage may pass without a verdict.
        reasons: why it is paused; empty while it runs.
        finished_before, failures_before: those that a person had seen when he resumed it.
        under_way, silent: devices with an order, and those among them not heard of for long.
        bytes_left, bytes_each: of its budget, and what one more device takes at the least.
        signed_s: how much longer what people signed holds than an update may take.
        lacking: from which releases patches are missing, as a sentence.
        edge_ended: that no way of a rollback is signed any more, as a sentence.
        signals: what devices tell without a reference; nothing in it makes a release look safe.
    """

    gate: Gate
    pairs: Pairs
    stage: int
    stages: int
    stage_s: float
    soak_s: int
    finished: int
    failures: int
    remaining: int
    overridden: bool = False
    reasons: tuple[str, ...] = ()
    finished_before: int = 0
    failures_before: int = 0
    under_way: int = 0
    silent: int = 0
    bytes_left: int | None = None
    bytes_each: int = 0
    signed_s: float | None = None
    lacking: str = ""
    edge_ended: str = ""
    signals: Mapping[str, Sums] = field(default_factory=dict)

    @property
    def outcomes(self) -> tuple[int, int]:
        """Failures and outcomes since a person resumed it; a success may fail later."""
        failures = self.failures - self.failures_before
        return failures, max(failures, self.finished - self.finished_before)


@dataclass(frozen=True)
class Decision:
    """What happens to the rollout now.

    Attributes:
        kind: "halt", "advance", "finish", "pause", "resume" or "hold".
        reason: a word for machines, e.g. `wer`, `failures`, `more_pairs`.
        because: the sentence for people.
        reasons: why it is paused from now on; empty: it is not.
    """

    kind: str
    reason: str
    because: str
    evidence: Evidence
    reasons: tuple[str, ...] = ()


def bucket(salt: str, device_id: str) -> int:
    """Return the device's place in [0, 10000) in this rollout: in a stage if below its share.

    Sticky: raising the share keeps every device that was in.
    """
    digest = hashlib.blake2b(f"{salt}/{device_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % BUCKETS


def shard_of(salt: str, device_id: str, shards: Sequence[T]) -> T:
    """Return the canary shard of a device, by a keyed hash: the same at every update."""
    digest = hmac.digest(salt.encode(), device_id.encode(), hashlib.sha256)
    return shards[int.from_bytes(digest[:8]) % len(shards)]


def arm(salt: str, device_id: str, gate: Gate) -> str:
    """Return "control" for the few that run the old model against itself, else "canary".

    Drawn apart from the bucket, so that every stage has its share of them.
    """
    return (
        "control" if bucket(f"{salt}/arm", device_id) < gate.control_share * BUCKETS else "canary"
    )


def decide(seen: Observation) -> Decision:
    """Return what the rollout does next."""
    found = canary.evidence(seen.gate, seen.pairs.pooled, *seen.outcomes)
    if seen.reasons:
        # Devices under way go on reporting, and harm is harm; unless the sums are none.
        harm = None if SUMS_DISAGREE in seen.reasons else _harm(seen)
        return Decision("halt", *harm, found) if harm else _paused(seen, found)
    kind, reason, because = _judge(seen, found)
    return Decision(kind, reason, because, found, (reason,) if kind == "pause" else ())


def held_by(seen: Observation) -> dict[str, str]:
    """Return reason -> sentence of what would keep it paused whoever resumes it."""
    found = {}
    if seen.signed_s is not None and seen.signed_s <= 0:
        found["metadata_expiring"] = "what people signed runs out before an update would be done"
    for name, told in (("patches_missing", seen.lacking), ("edge_ended", seen.edge_ended)):
        if told:
            found[name] = told
    if seen.bytes_left is not None and seen.bytes_left < seen.bytes_each:
        left = ("byte of its budget is left", "bytes of its budget are left")
        takes = f"and a device takes {seen.bytes_each}"
        found["budget"] = f"{counted(seen.bytes_left, *left)}, {takes}"
    return found


def waits_for(reasons: Collection[str]) -> str:
    """Return what a rollout that is paused for these reasons waits for, in words."""
    return ", and ".join(dict.fromkeys(PASSING.get(r, "a person resumes it") for r in reasons))


def recall(written: dict[str, Any]) -> Observation:
    """Return the observation that a decision was made of, from what `asdict` made of it."""
    pairs = written["pairs"]
    chain = pairs["chain"]
    found = Pairs(
        pooled=Sums(**pairs["pooled"]),
        classes={name: Sums(**sums) for name, sums in pairs["classes"].items()},
        chain=None if chain is None else Sums(**chain),
        placebo=Sums(**pairs["placebo"]),
    )
    told = {name: Sums(**sums) for name, sums in written.get("signals", {}).items()}
    values = {"gate": Gate(**written["gate"]), "reasons": tuple(written.get("reasons", ()))}
    return Observation(**written | values | {"pairs": found, "signals": told})


def _paused(seen: Observation, found: Evidence) -> Decision:
    """Let go what has ended, and nothing else: it runs again once no reason is left."""
    so = held_by(seen)
    left = {reason for reason in seen.reasons if reason not in PASSING or reason in so}
    left |= {"metadata_expiring"} & so.keys()
    now = tuple(sorted(left))
    if left == {*seen.reasons}:
        return Decision("hold", "paused", waits_for(now), found, now)
    ended = ", ".join(sorted({*seen.reasons} - left))
    if not now:
        return Decision("resume", "passed", f"ended: {ended}", found)
    because = f"it waits until {waits_for(now)}" + f"; ended: {ended}" * bool(ended)
    return Decision("pause", "+".join(now), because, found, now)


def _judge(seen: Observation, found: Evidence) -> tuple[str, str, str]:
    if harm := _harm(seen):
        return "halt", *harm
    gate, finished = seen.gate, seen.outcomes[1]
    if found.failures >= gate.threshold_failures:
        told = f"{_told(seen)}: too few to halt, too many to go on"
        return "pause", "failure_rate", told
    if (finished + seen.silent) * gate.proven_share_least > finished + gate.hostile_count:
        silent = f"{seen.silent} of {counted(seen.under_way, 'device')} under way fell silent"
        told = counted(finished, "has an outcome", "have an outcome")
        return "pause", "silence", f"{silent}; {told}"
    kind, reason, because = _proceed(seen)
    so = held_by(seen) if kind != "finish" else {}
    if reason == "soak" or kind != "hold" or seen.under_way:
        so.pop("budget", None)  # nobody waits for bytes
    if kind == "pause" or not so:
        return kind, reason, because
    first = min(so)
    return "pause", first, so[first]


def _harm(seen: Observation) -> tuple[str, str] | None:
    """Return what shows that the release is harmful, if anything does: a word and a sentence."""
    if is_failing(seen):
        return "failures", _told(seen)
    verdict, test = canary.judge(seen.gate, seen.pairs)
    if verdict == "halt":
        sums = canary.tests_of(seen.gate, seen.pairs)[test][1]
        change = sums.sd / sums.n / canary.UNIT * 100
        return "wer", f"word error rate {change:+.1f} points (clipped) on {_which(sums.n, test)}"
    if signal := signals.halting(seen.gate, seen.signals):
        return "signals", signals.sentence(signal, seen.signals[signal])
    return None


def _told(seen: Observation) -> str:
    failures, finished = seen.outcomes
    return f"{failures} of {counted(finished, 'device')} refused or failed"


def _proceed(seen: Observation) -> tuple[str, str, str]:
    """Return where a rollout stands in which nothing went wrong."""
    n, gate = seen.pairs.pooled.n, seen.gate
    devices, have = counted(n, "device"), ("device has", "devices have")
    verdict, test = canary.judge(gate, seen.pairs)
    if doubt := None if seen.overridden else _doubt(seen, verdict, test):
        reason, because = doubt
        if seen.stage_s < gate.undecided_s:
            return "hold", reason, because
        return "pause", "gate_undecided", f"no verdict after {devices}: a person decides"
    if n and seen.finished < gate.proven_share_least * n and not seen.overridden:
        unproven = counted(n - seen.finished, *have)
        return "hold", "unproven", f"safe; {unproven} yet to show the new bytes"
    if seen.stage_s < seen.soak_s:
        return "hold", "soak", f"safe; soaking for another {seen.soak_s - seen.stage_s:.0f} s"
    if seen.stage < seen.stages:
        return "advance", "safe", f"safe on {devices}"
    if seen.remaining:
        return "hold", "spreading", f"safe; {counted(seen.remaining, *have)} yet to take it"
    return "finish", "done", "every device of the cohort has an outcome"


def is_failing(seen: Observation) -> bool:
    """Whether enough devices fail, even if as many as the budget allows only say so.

    Each device counts once, whatever it says how often. The lies that are a share of all are
    within what is fine.
    """
    failures, finished = seen.outcomes
    honest = max(0, failures - seen.gate.hostile_count)
    failing = canary.log_e_failures(seen.gate, honest, finished)
    return failing >= seen.gate.threshold_failures


def _doubt(seen: Observation, verdict: str | None, test: str) -> tuple[str, str] | None:
    """Return why the rollout may not go on yet, if it may not: a kind, and a sentence."""
    if test == "placebo":
        return "placebo", "devices that heard the old model twice did not hear the same twice"
    if verdict != "promote":
        return "more_pairs", _how_many_more(*canary.tests_of(seen.gate, seen.pairs)[test], test)
    return None


def _how_many_more(gate: Gate, sums: Sums, test: str) -> str:
    missing, which = canary.pairs_missing(gate, sums), _which(sums.n, test)
    if missing is None:
        return f"{which} reported; no verdict is in sight yet"
    return f"{which} reported; a verdict needs about {missing} more"


def _which(number: int, test: str) -> str:
    of = {"pooled": "", "chain": ", against the base of the chain,"}.get(test, f" of {test}")
    return counted(number, "device") + of


def gate_of(document: dict[str, Any]) -> Gate:
    """Return the gate that a rollout's row holds.

    Raises:
        ValueError: an unknown field, or a value that makes no sense, by name.
    """
    unknown = sorted(set(document) - set(GATE_BOUNDS))
    if unknown:
        raise ValueError(f"unknown gate fields {unknown}; known are {sorted(GATE_BOUNDS)}")
    gate = Gate(**document)
    for name, (least, most) in GATE_BOUNDS.items():
        value = getattr(gate, name)
        number = isinstance(value, int | float) and not isinstance(value, bool)
        if not number or not least <= value <= most:  # NaN is not between either
            raise ValueError(f"{name} must lie between {least} and {most}")
    if not gate.failures_fine < gate.failures_bad:
        raise ValueError("failures_fine must lie below failures_bad")
    return gate
