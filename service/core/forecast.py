"""What a rollout will take: bytes, time, and what its canary can see. Pure.

An estimate of the mechanism that runs: every device asks once a poll period, a stage hands out as
many places as its cap and what is left of its bytes allow, and the gate needs so many pairs; who
asks outside of the window waits for it. It knows of no outage, of no device that stays away or is
never idle, and of nobody who raises a budget late.
"""

import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from service.core import canary, conditions
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
        bytes_worst: of all its ways; so much is reserved for one device.
    """

    release: str
    network: str
    devices: int
    bytes: int
    bytes_worst: int


@dataclass(frozen=True)
class Hours:
    """When devices may begin.

    Attributes:
        window: from minute to minute of a device's own day.
        zones: by how many seconds their clocks are ahead of UTC.
        from_s: seconds after midnight UTC at which the rollout starts.
    """

    window: Mapping[str, int]
    zones: Sequence[int]
    from_s: int


@dataclass(frozen=True)
class Pace:
    """How fast devices may come.

    Attributes:
        poll_s, soon_s: between two polls, and while an update is under way.
        trial_s: what a device's own trial is thought to take.
        success: share of devices that get there, as the last rollouts of the model show it.
        per_minute_max: devices that may begin in a minute.
        bytes_max: that they may fetch together.
        hours: in which they may begin; None: at any time.
    """

    poll_s: float
    soon_s: float
    trial_s: float = 20.0
    success: float = 1.0
    per_minute_max: int | None = None
    bytes_max: int | None = None
    hours: Hours | None = None


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
    devices, sent = _whole(groups)
    took_s = _stages_s(groups, stages, pace)
    rows = []
    for number, (stage, seconds) in enumerate(zip(stages, took_s, strict=True), 1):
        reached = devices * stage.share_bp // BUCKETS
        pairs = int(reached * pace.success)
        rows.append(
            {
                "number": number,
                "share_bp": stage.share_bp,
                "devices": reached,
                "bytes": sent * stage.share_bp // BUCKETS,
                "seconds": seconds,
                "detects_wer_bp": _bp(detectable(gate, pairs)),
                "decides": _decides(gate, pairs),
            }
        )
    anytime_s = sum(_stages_s(groups, stages, replace(pace, hours=None)))
    return {
        "devices": devices,
        "bytes": sent,
        "bytes_full": devices * full_bytes,
        "seconds": sum(took_s),
        "seconds_anytime": anytime_s,
        "pairs_needed": pairs_needed(gate),
        "budget": None if pace.bytes_max is None else _budget(groups, rows, pace.bytes_max),
        "assumed": {n: v for n, v in vars(pace).items() if n != "hours"}
        | {"old_wer_bp": round(BASE_RATE * 10_000)},
        "stages": rows,
        "groups": [vars(group) for group in groups],
    }


def _whole(groups: Sequence[Group]) -> tuple[int, int]:
    """Return how many devices there are, and the bytes of all."""
    return sum(g.devices for g in groups), sum(g.devices * g.bytes for g in groups)


def _worst(groups: Sequence[Group]) -> int:
    """Return what must be left of a budget for the next device, at the least."""
    return min((group.bytes_worst for group in groups if group.devices), default=0)


def _budget(
    groups: Sequence[Group], rows: Sequence[dict[str, Any]], bytes_max: int
) -> dict[str, int | None]:
    """Return for how many devices the bytes last, in which stage they end, and what would do.

    A device comes while what is left holds the worst of its ways; what it did not take is given
    back.
    """
    (devices, sent), worst = _whole(groups), _worst(groups)
    each = sent / max(devices, 1)
    room = bytes_max - worst
    lasts = devices if not each and room >= 0 else max(0, math.floor(room / (each or 1)) + 1)
    short = (row["number"] for row in rows if row["devices"] > lasts)
    last = max((group.bytes_worst - group.bytes for group in groups if group.devices), default=0)
    return {
        "devices": min(lasts, devices),
        "stage": next(short, None),
        "bytes_needed": sent + last,
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


def _stages_s(groups: Sequence[Group], stages: Sequence[Step], pace: Pace) -> list[int]:
    """Return how long each stage lasts: until its devices were through, and at least its soak."""
    (devices, sent), device_s = _whole(groups), _device_s(groups, pace)
    reached, left, now_s = 0, pace.bytes_max, pace.hours.from_s if pace.hours else 0
    found = []
    for stage in stages:
        more = devices * stage.share_bp // BUCKETS - reached
        took_s = float(stage.soak_s)
        if more:
            spent, places = sent * more // devices, stage.in_flight_max or math.inf
            if left is not None:
                places = min(places, _places(left, left - spent, _worst(groups)))
                left -= spent
            took_s = max(took_s, _began_s(more, places, device_s, pace, now_s) + device_s)
        found.append(round(took_s))
        reached, now_s = reached + more, now_s + found[-1]
    return found


def _places(before: int, after: int, worst: int) -> float:
    """Return how many devices a budget lets be on their way at once, in the mean of a stage.

    Each reserves its worst. Where the bytes end, somebody raises them until they do not matter.
    """
    after = max(after, worst)
    if not worst or before < worst:
        return math.inf
    return (before if before == after else (before - after) / math.log(before / after)) / worst


def _began_s(devices: int, places: float, device_s: float, pace: Pace, now_s: int) -> float:
    """Return after how long the last of some devices begins."""
    # A place that is free again waits for the next one who asks: a period over those who are left,
    # which sums up to a period times the harmonic number.
    harmonic, asks_s = math.log(devices) + EULER, pace.poll_s
    turns_s = max(
        asks_s,
        devices * 60 / (pace.per_minute_max or math.inf),
        (devices * device_s + pace.poll_s * harmonic) / places,
    )
    if (hours := pace.hours) is None:
        return turns_s
    open_s = conditions.open_min(hours.window) * conditions.MINUTE_S
    if open_s < asks_s:  # of all days, on so many does nobody ask in time who comes last
        asks_s = max(asks_s, open_s * harmonic / -math.log1p(-open_s / asks_s))
    days = [conditions.open_minutes(hours.window, zone) for zone in hours.zones]
    waits = [(list(map(any, zip(*days, strict=True))), turns_s), *((day, asks_s) for day in days)]
    return max(conditions.open_after_s(day, now_s, needs_s) for day, needs_s in waits)


def _rate(network: str) -> float:
    # Where bytes are paid for they weigh more than they take.
    return BYTES_S["slow"] if network == "metered" else BYTES_S.get(network, BYTES_S[""])


def _bp(rate: float | None) -> int | None:
    return None if rate is None else round(rate * 10_000)
