"""May this rollout go on? Pure: what was observed in, one decision out.

A tick observes, `decide` judges, the tick applies. Telemetry may halt a rollout by itself and
may promote it only by evidence; "no data" is never "good", so a rollout without a verdict waits,
and after a time limit waits for a person.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any

from service.core import canary
from service.core.canary import Evidence, Gate, Pairs, Sums

BUCKETS = 10_000
GATE_BOUNDS: dict[str, tuple[float, float]] = {
    field.name: field.metadata["bounds"] for field in fields(Gate)
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


@dataclass(frozen=True)
class Decision:
    """What happens to the rollout now.

    Attributes:
        kind: "halt", "advance", "finish", "pause" or "hold".
        reason: a word for machines, e.g. `wer`, `failures`, `more_pairs`.
        because: the sentence for people.
    """

    kind: str
    reason: str
    because: str
    evidence: Evidence


def bucket(salt: str, device_id: str) -> int:
    """Return the device's place in [0, 10000) in this rollout: in a stage if below its share.

    Sticky: raising the share keeps every device that was in.
    """
    digest = hashlib.blake2b(f"{salt}/{device_id}".encode(), digest_size=8).digest()
    return int.from_bytes(digest) % BUCKETS


def arm(salt: str, device_id: str, gate: Gate) -> str:
    """Return "control" for the few that run the old model against itself, else "canary".

    Drawn apart from the bucket, so that every stage has its share of them.
    """
    return (
        "control" if bucket(f"{salt}/arm", device_id) < gate.control_share * BUCKETS else "canary"
    )


def decide(seen: Observation) -> Decision:
    """Return what the rollout does next."""
    found = canary.evidence(seen.gate, seen.pairs.pooled, seen.failures, seen.finished)
    kind, reason, because = _judge(seen, found)
    return Decision(kind, reason, because, found)


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
    return Observation(**written | {"gate": Gate(**written["gate"]), "pairs": found})


def _judge(seen: Observation, found: Evidence) -> tuple[str, str, str]:
    n, gate = seen.pairs.pooled.n, seen.gate
    if is_failing(seen):
        return "halt", "failures", f"{seen.failures} of {seen.finished} devices refused or failed"
    verdict, test = canary.judge(gate, seen.pairs)
    if verdict == "halt":
        sums = canary.tests_of(gate, seen.pairs)[test][1]
        change, where = sums.sd / sums.n / canary.UNIT * 100, _where(test)
        return "halt", "wer", f"word error rate {change:+.1f} points (clipped) on {sums.n} {where}"
    if doubt := None if seen.overridden else _doubt(seen, found, verdict, test):
        reason, because = doubt
        if seen.stage_s < gate.undecided_s:
            return "hold", reason, because
        return "pause", "gate_undecided", f"no verdict after {n} devices: a person decides"
    unproven = n - seen.finished
    if n and seen.finished < gate.proven_share_least * n and not seen.overridden:
        return "hold", "unproven", f"safe; {unproven} devices have yet to show the new bytes"
    if seen.stage_s < seen.soak_s:
        return "hold", "soak", f"safe; soaking for another {seen.soak_s - seen.stage_s:.0f} s"
    if seen.stage < seen.stages:
        return "advance", "safe", f"safe on {n} devices"
    if seen.remaining:
        return "hold", "spreading", f"safe; {seen.remaining} devices have yet to take it"
    return "finish", "done", "every device of the cohort has an outcome"


def is_failing(seen: Observation) -> bool:
    """Whether enough devices fail, even if as many as the budget allows only say so.

    Each device counts once, whatever it says how often. The lies that are a share of all are
    within what is fine.
    """
    honest = max(0, seen.failures - seen.gate.hostile_count)
    failing = canary.log_e_failures(seen.gate, honest, seen.finished)
    return failing >= seen.gate.threshold_failures


def _doubt(
    seen: Observation, found: Evidence, verdict: str | None, test: str
) -> tuple[str, str] | None:
    """Return why the rollout may not go on yet, if it may not: a kind, and a sentence."""
    if test == "placebo":
        return "placebo", "devices that heard the old model twice did not hear the same twice"
    if verdict != "promote":
        return "more_pairs", _how_many_more(*canary.tests_of(seen.gate, seen.pairs)[test], test)
    if found.failures >= seen.gate.threshold_failures:
        few = f"{seen.failures} of {seen.finished} devices refused or failed"
        return "few_failures", f"{few}: too few to halt, too many to go on"
    return None


def _how_many_more(gate: Gate, sums: Sums, test: str) -> str:
    missing, where = canary.pairs_missing(gate, sums), _where(test)
    if missing is None:
        return f"{sums.n} {where} reported; no verdict is in sight yet"
    return f"{sums.n} {where} reported; a verdict needs about {missing} more"


def _where(test: str) -> str:
    return {
        "pooled": "devices",
        "chain": "devices, against the base of the chain,",
    }.get(test, f"devices of {test}")


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
