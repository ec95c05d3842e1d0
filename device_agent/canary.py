"""The trial of a release on this device: both models hear the same canary shard.

Counts are kept by (model, set, shard, runtime), so a usual update costs one pass, and the base of a
chain is remembered for as long as it is asked for. The gate here only keeps a broken release off
this device; whether the release is good is for the fleet to say.
"""

import logging
import math
import re
import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Annotated, Any

from device_agent.engine import Counts, Engine, Shard, run_engine
from device_agent.errors import Rejected
from device_agent.plan import Canary, Plan
from device_agent.scoring import NORMALISER
from device_agent.strict import accept
from trust.order import read_time, write_time

logger = logging.getLogger(__name__)

MANIFEST = "canary.json"
NORMALISERS = re.compile(re.escape(NORMALISER) + r"\Z")
UNITS = re.compile(r"(word|char)\Z")
KEPT_MAX = 8  # counts of models


@dataclass(frozen=True)
class Manifest:
    """The signed manifest of a canary set, as far as a device needs it."""

    shards: tuple[Shard, ...]
    normaliser: Annotated[str, NORMALISERS]
    unit: Annotated[str, UNITS]
    expires: str = ""


@dataclass(frozen=True)
class Trial:
    """Both models on one shard.

    Attributes:
        again: of the old model once more, in the control arm.
        base: of the release at which the chain begins, if the server asks and it is known.
        kept: counts for the next trial.
        together: both were heard now, so that their times are of one load.
    """

    old: Counts
    new: Counts
    again: Counts | None
    base: Counts | None
    old_first: bool
    kept: dict[str, Counts]
    together: bool = False


Models = tuple[tuple[str, Path], tuple[str, Path]]
Known = Mapping[str, Counts]


def gate_refuses(old_errors: int, new_errors: int, ref_words: int) -> bool:
    """Whether a device refuses a release on its own few words (design: canary.md 2.5).

    Four standard deviations of a Poisson difference, and at least 5 % of the words: 0 of 400,000
    harmless devices were refused, and 95 % of those whose word error rate tripled.
    """
    worse = new_errors - old_errors
    return worse > max(0.05 * ref_words, 4 * math.sqrt(new_errors + old_errors))


def run_trial(
    engine: Engine,
    models: Models,
    shard: Shard,
    folder: Path,
    known: Known,
    asked: Canary,
    *,
    old_first: bool,
) -> Trial | None:
    """Count the errors of both models; None if the old one cannot be heard, and the new one can.

    Of two that must be heard, the first may take half of the time.

    Args:
        engine: how to run a model.
        models: (SHA-256, file) of the old and of the new one.
        shard: what both must have heard.
        folder: holds the manifest and that shard.
        known: counts of earlier trials, as the last one kept them.
        asked: by the server: in which arm this device is, and where the chain begins.
        old_first: which model hears the shard while the device is still cool.

    Raises:
        Rejected: E_ENGINE or E_SLOW.
    """
    (old_sha256, old_file), (new_sha256, new_file) = models
    ends = time.monotonic() + engine.timeout_s

    def hear(model: Path, share: float) -> Counts:
        left = replace(engine, timeout_s=share * max(0.0, ends - time.monotonic()))
        return run_engine(left, model, folder, shard)

    def hear_old(share: float) -> Counts | None:
        # A running model that cannot be heard must not keep its successor out.
        try:
            return hear(old_file, share)
        except Rejected as error:
            logger.warning("the running model has no counts: %s", error)
            return None

    old = before = known.get(_key(old_sha256, shard))
    if old is None and old_first:
        old = hear_old(0.5)
        new = hear(new_file, 1)
    else:
        new = hear(new_file, 1 if old else 0.5)
        # A model that was measured before, in the same way, was measured first.
        old_first = old is not None and old.comparable(new)
        old = old if old_first else hear_old(1)
    if old is None:
        return None
    base_key = _key(asked.base or "", shard)
    base = known.get(base_key)
    heard = {_key(old_sha256, shard): old, _key(new_sha256, shard): new}
    kept = {key: known[key] for key in known if key not in (*heard, base_key)}
    kept = dict([*(kept | ({base_key: base} if base else {}) | heard).items()][-KEPT_MAX:])
    again = hear_old(1) if asked.arm == "control" else None
    base = base if base and base.comparable(new) else None
    return Trial(old, new, again, base, old_first, kept, together=old is not before)


def without(known: Known, model_sha256: str, shard: Shard, timeout_s: float) -> Known:
    """Return what is known, but not of a model that takes little of the time: it is heard again."""
    key = _key(model_sha256, shard)
    quick = key in known and known[key].milliseconds < 250 * timeout_s
    return {name: counts for name, counts in known.items() if name != key or not quick}


def report_of(
    trial: Trial,
    shard: Shard,
    plan: Plan,
    device_id: str,
    attempt: int,
    now: datetime,
    *,
    refused: bool,
) -> dict[str, Any]:
    """Return a trial as the service is told of it; the same trial has the same `report_id`.

    In the control arm it is told of the old model only, heard twice: what differs then is not
    the model.
    """
    assert plan.canary is not None
    key = (plan.release, device_id, shard.set, plan.canary.shard, str(attempt))
    old, new = trial.old, trial.again or trial.new
    more: dict[str, Any] = {"base": trial.base.split} if trial.base else {}
    if old.by_utterance and new.by_utterance:
        pairs = list(zip(old.by_utterance, new.by_utterance, strict=True))
        more["worse_utts"] = sum(a < b for a, b in pairs)
        more["better_utts"] = sum(a > b for a, b in pairs)
    if old.heard and new.heard:
        both = zip(old.heard, new.heard, strict=True)
        more["differ_utts"] = sum(a != b for a, b in both)
        more["old_empty"], more["new_empty"] = old.heard.count(""), new.heard.count("")
    return more | {
        "report_id": sha256("|".join(key).encode()).hexdigest()[:32],
        "attempt": attempt,
        "deployment": plan.deployment,
        "old_model": plan.base,
        "new_model": plan.base if trial.again else plan.sha256,
        "canary_set": shard.set,
        "shard": plan.canary.shard,
        "scorer": new.scorer,
        "runtime": new.runtime,
        "utterances": shard.utterances,
        "ref_words": shard.ref_words,
        "order": "old_first" if trial.old_first else "new_first",
        "old": old.split,
        "new": new.split,
        "old_ms": old.milliseconds,
        "new_ms": new.milliseconds,
        "together": trial.together,
        "gate": "refused" if refused else "activated",
        "window_start": write_time(now.replace(minute=0, second=0)),
    }


def read_manifest(manifest: bytes, shard_sha256: str, now: datetime) -> Shard:
    """Return what a verified manifest says of the shard with this digest.

    Raises:
        Rejected: E_CANARY if it is not understood, counts in a way that is not known here, or
            is too old.
    """
    found = accept(Manifest, manifest, "E_CANARY")
    try:
        expired = found.expires and read_time(found.expires) <= now
    except ValueError as error:
        raise Rejected("E_CANARY", f"expires: {error}") from error
    if expired:
        raise Rejected("E_CANARY", f"the canary set expired at {found.expires}")
    listed = {s.sha256: s for s in found.shards}
    shard = listed.get(shard_sha256)
    if shard is None:
        raise Rejected("E_CANARY", f"the manifest does not list shard {shard_sha256[:12]}")
    if shard.file == MANIFEST or not (shard.bytes and shard.utterances and shard.ref_words):
        raise Rejected("E_CANARY", f"the manifest has an impossible {shard}")
    return replace(shard, set=sha256(manifest).hexdigest())


def _key(model_sha256: str, shard: Shard) -> str:
    return f"{model_sha256} {shard.set} {shard.sha256}"
