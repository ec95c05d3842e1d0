"""What a trial tells without a reference: it may halt or warn, and never promotes. Pure.

Of each signal a device's pair says that the new model is worse (1), better (-1) or neither (0), or
nothing, if its agent does not tell. The rule is the canary's own, for these numbers in place of
changes of the word error rate: evidence that their mean, the share of the devices with 1 less that
of those with -1, is above the gate's `signal_share`. Luck goes both ways and moves no mean.
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace

from service.core.canary import UNIT, Gate, Sums, harm
from service.core.words import counted

# Transcripts that differ have no sign: those of a better model do, too.
MAY_HALT = {"differ": False, "empty": True, "latency": True}
EMPTY_RISE = 0.05  # so many more of the utterances without a word are worse
DIFFER_MOST = 0.8  # more of the utterances heard otherwise are another language, not an update
SIGMA = 0.25  # where the rule is sharpest: a sixteenth of the devices expected, all of them worse


@dataclass(frozen=True)
class Signs:
    """What one device's trial tells; None where it does not.

    Attributes:
        differ: utterances with another transcript.
        old_empty, new_empty: utterances in which a model heard nothing.
        old_ms, new_ms: how long each took, one after the other.
    """

    utterances: int
    differ: int | None = None
    old_empty: int | None = None
    new_empty: int | None = None
    old_ms: int | None = None
    new_ms: int | None = None


def said(gate: Gate, signs: Signs) -> dict[str, int]:
    """Return what a device adds to each signal that it tells of, in `UNIT`s."""
    found: dict[str, int] = {}
    if signs.differ is not None:
        found["differ"] = signs.differ > DIFFER_MOST * signs.utterances
    if signs.old_empty is not None and signs.new_empty is not None:
        rise, most = signs.new_empty - signs.old_empty, EMPTY_RISE * signs.utterances
        found["empty"] = (rise > most) - (-rise > most)
    if signs.old_ms and signs.new_ms:
        slower = signs.new_ms > gate.latency_ratio * signs.old_ms
        found["latency"] = slower - (signs.old_ms > gate.latency_ratio * signs.new_ms)
    return {name: UNIT * sign for name, sign in found.items()}


def rule(gate: Gate) -> Gate:
    """Return the rule for each signal; they share the chance that any speaks wrongly."""
    alpha = gate.alpha_signals / len(MAY_HALT)
    return replace(gate, margin_rel=0.0, clip=1.0, sigma=SIGMA, alpha_halt=alpha)


def evidence(gate: Gate, sums: Sums) -> float:
    """Return how strongly a signal speaks, in nats, lies allowed for."""
    return harm(rule(gate), sums, gate.signal_share)


def state(gate: Gate, name: str, sums: Sums) -> str:
    """Return what a signal says: quiet, warn or halt."""
    enough = sums.n >= gate.pairs_halt_least
    if not enough or evidence(gate, sums) < rule(gate).threshold_halt:
        return "quiet"
    return "halt" if MAY_HALT[name] else "warn"


def halting(gate: Gate, signals: Mapping[str, Sums]) -> str | None:
    """Return the first signal that halts, if any does."""
    return next((name for name in signals if state(gate, name, signals[name]) == "halt"), None)


def devices(sums: Sums) -> tuple[int, int]:
    """Return how many devices say worse, and how many better."""
    either, net = sums.sdd // UNIT**2, sums.sd // UNIT
    return (either + net) // 2, (either - net) // 2


def sentence(name: str, sums: Sums) -> str:
    """Return what a signal says, for people."""
    worse, better = devices(sums)
    return f"{name}: worse on {worse} of {counted(sums.n, 'device')}, better on {better}"
