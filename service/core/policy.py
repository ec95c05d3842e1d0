"""May this rollout go on? Pure: what was observed in, one decision out.

A tick observes, `decide` judges, the tick applies. Telemetry may halt a rollout by itself and
may promote it only by evidence; "no data" is never "good", so a rollout without a verdict waits,
and after a time limit waits for a person.
"""

import hashlib
from dataclasses import dataclass, fields
from typing import Any

from service.core import canary
from service.core.canary import Evidence, Gate, Sums

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
        remaining: devices of this stage that are neither on the release nor out of the rollout.
        overridden: a person decided that this stage may pass without a verdict.
    """

    gate: Gate
    sums: Sums
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
    found = canary.evidence(seen.gate, seen.sums, seen.failures, seen.finished)
    verdict = canary.decide(seen.gate, seen.sums)
    kind, reason, because = _judge(seen, found, verdict)
    return Decision(kind, reason, because, found)


def _judge(seen: Observation, found: Evidence, verdict: str | None) -> tuple[str, str, str]:
    n = seen.sums.n
    if found.failures >= seen.gate.threshold_failures:
        return "halt", "failures", f"{seen.failures} of {seen.finished} devices refused or failed"
    if verdict == "halt":
        change = f"{found.change * 100:+.1f}"
        return "halt", "wer", f"word error rate {change} points (clipped) on {n} devices"
    if verdict != "promote" and not seen.overridden:
        if seen.stage_s >= seen.gate.undecided_s:
            return "pause", "gate_undecided", f"no verdict after {n} devices: a person decides"
        return "hold", "more_pairs", _how_many_more(seen)
    unproven = n - seen.finished
    if n and seen.finished < seen.gate.proven_share_least * n and not seen.overridden:
        return "hold", "unproven", f"safe; {unproven} devices have yet to show the new bytes"
    if seen.stage_s < seen.soak_s:
        return "hold", "soak", f"safe; soaking for another {seen.soak_s - seen.stage_s:.0f} s"
    if seen.stage < seen.stages:
        return "advance", "safe", f"safe on {n} devices"
    if seen.remaining:
        return "hold", "spreading", f"safe; {seen.remaining} devices have yet to take it"
    return "finish", "done", "every device of the cohort has an outcome"


def _how_many_more(seen: Observation) -> str:
    missing = canary.pairs_missing(seen.gate, seen.sums)
    if missing is None:
        return f"{seen.sums.n} devices reported; no verdict is in sight yet"
    return f"{seen.sums.n} devices reported; a verdict needs about {missing} more"


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
