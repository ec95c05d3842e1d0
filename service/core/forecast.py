"""What a rollout will take: bytes, time, and what its canary can see. Pure.

An estimate of the mechanism that runs: every device asks once a poll period, a stage hands out as
many places as its cap allows, and the gate needs so many pairs. It knows of no outage and of no
device that stays away.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from service.core import canary
from service.core.canary import UNIT, Gate, Sums
from service.core.chain import BYTES_S

BUCKETS = 10_000
BASE_RATE = 0.10  # word error rate that is assumed of the model that runs
EULER = 0.5772
PAIRS_MOST = 10_000_000
TALKS = 3  # times that a device asks soon again: for its order, before the switch, after it


@dataclass(frozen=True)
class Group:
    """Devices that fetch the same: those that run one release, on one class of network.

    Attributes:
        release: its name, empty if the bytes are unknown.
        bytes: of the cheapest way, for one device.
    """

    release: str
    network: str
    devices: int
    bytes: int


@dataclass(frozen=True)
class Pace:
    """How fast devices may come.

    Attributes:
        poll_s, soon_s: between two polls, and while an update is under way.
        trial_s: what a device's own trial is thought to take.
        success: share of devices that get there, as the last rollouts of the model show it.
        per_minute_max: devices that may begin in a minute.
    """

    poll_s: float
    soon_s: float
    trial_s: float = 20.0
    success: float = 1.0
    per_minute_max: int | None = None


@dataclass(frozen=True)
class Step:
    """A stage as it is asked for."""

    share_bp: int
    soak_s: int
    in_flight_max: int | None


def forecast(
    groups: Sequence[Group], full_bytes: int, stages: Sequence[Step], gate: Gate, pace: Pace
) -> dict[str, Any]:
    """Return what a rollout takes in all and stage by stage."""
    devices = sum(group.devices for group in groups)
    sent = sum(group.devices * group.bytes for group in groups)
    device_s = _device_s(groups, pace)
    rows, before = list[dict[str, Any]](), 0
    for number, stage in enumerate(stages, 1):
        reached = devices * stage.share_bp // BUCKETS
        pairs = int(reached * pace.success)
        rows.append(
            {
                "number": number,
                "share_bp": stage.share_bp,
                "devices": reached,
                "bytes": sent * stage.share_bp // BUCKETS,
                "seconds": round(_stage_s(reached - before, stage, device_s, pace)),
                "detects_wer_bp": _bp(detectable(gate, pairs)),
                "decides": _decides(gate, pairs),
            }
        )
        before = reached
    return {
        "devices": devices,
        "bytes": sent,
        "bytes_full": devices * full_bytes,
        "seconds": sum(row["seconds"] for row in rows),
        "pairs_needed": pairs_needed(gate),
        "assumed": vars(pace) | {"old_wer_bp": round(BASE_RATE * 10_000)},
        "stages": rows,
        "groups": [vars(group) for group in groups],
    }


def detectable(gate: Gate, pairs: int) -> float | None:
    """Return the least rise of the word error rate that so many pairs would halt; None: none."""

    def halts(step: int) -> bool:
        return canary.decide(gate, _alike(gate, pairs, step * gate.clip / 1000)) == "halt"

    step = _first(halts, 1000)
    return None if step is None else step * gate.clip / 1000


def pairs_needed(gate: Gate) -> int | None:
    """Return after how many pairs a release that changes nothing is promoted; None: never."""
    return _first(lambda pairs: _decides(gate, pairs), PAIRS_MOST)


def _decides(gate: Gate, pairs: int) -> bool:
    return canary.decide(gate, _alike(gate, pairs, 0.0)) == "promote"


def _alike(gate: Gate, pairs: int, change: float) -> Sums:
    """Return the sums of pairs that change by so much in the mean, as noisy as the gate expects."""
    d, b, noise = change * UNIT, BASE_RATE * UNIT, gate.sigma * UNIT
    each = (d, noise**2 + d**2, b, b**2, d * b)
    return Sums(pairs, *(round(pairs * value) for value in each))


def _first(holds: Callable[[int], bool], most: int) -> int | None:
    """Return the least number up to `most` from which something holds, None if nowhere."""
    if not holds(most):
        return None
    least = 0
    while least < most:
        middle = (least + most) // 2
        least, most = (least, middle) if holds(middle) else (middle + 1, most)
    return least


def _device_s(groups: Sequence[Group], pace: Pace) -> float:
    """Return how long one device is under way, in the mean."""
    downloads = sum(g.devices * g.bytes / _rate(g.network) for g in groups)
    devices = sum(group.devices for group in groups)
    return TALKS * pace.soon_s + pace.trial_s + downloads / max(devices, 1)


def _stage_s(devices: int, stage: Step, device_s: float, pace: Pace) -> float:
    """Return how long a stage lasts: until its devices were through, and at least its soak."""
    if devices == 0:
        return stage.soak_s
    waves = max(pace.poll_s, devices * 60 / (pace.per_minute_max or math.inf))
    if stage.in_flight_max is not None:
        # A place that is free again waits for the next one who asks: a period over those who are
        # left, which sums up to a period times the harmonic number.
        asking_s = pace.poll_s * (math.log(devices) + EULER)
        waves = max(waves, (devices * device_s + asking_s) / stage.in_flight_max)
    return max(waves + device_s, stage.soak_s)


def _rate(network: str) -> float:
    # Where bytes are paid for they weigh more than they take.
    return BYTES_S["slow"] if network == "metered" else BYTES_S.get(network, BYTES_S[""])


def _bp(rate: float | None) -> int | None:
    return None if rate is None else round(rate * 10_000)
