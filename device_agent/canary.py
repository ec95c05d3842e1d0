"""The trial of a release on this device: both models hear the same canary shard.

The engine is any command that is run as `CMD --model FILE --canary DIR`, with `--components DIR`
if the release has some, and prints one JSON
object with its word errors; it runs in a process of its own with a time limit, because a model
that cannot be trusted yet must not be loaded into the agent. The old model's counts are kept by
(model, set, shard, runtime), so a usual update costs one pass. The gate here only keeps a broken
release off this device; whether the release is good is for the fleet to say.
"""

import logging
import math
import os
import re
import signal
import time
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from hashlib import sha256
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Annotated, Any

from device_agent.deadline import Deadline
from device_agent.disk import COMPONENTS
from device_agent.errors import Rejected
from device_agent.plan import Plan
from device_agent.strict import accept

logger = logging.getLogger(__name__)

OUTPUT_BYTES_MAX = 1 << 20
MANIFEST = "canary.json"
SPLIT = ("sub", "del", "ins")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
LABEL = re.compile(r"[\x21-\x7e]{1,128}\Z")


@dataclass(frozen=True)
class Shard:
    """A shard as the signed manifest lists it, and the digest of that manifest."""

    file: Annotated[str, FILE_NAME]
    sha256: str
    bytes: int
    utterances: int
    ref_words: int
    set: str = ""


@dataclass(frozen=True)
class Manifest:
    """The signed manifest of a canary set, as far as a device needs it."""

    shards: tuple[Shard, ...]


@dataclass(frozen=True)
class Counts:
    """Word errors of one model on one shard, and how long it took."""

    split: dict[str, int]  # sub, del, ins
    milliseconds: int
    scorer: Annotated[str, LABEL]
    runtime: Annotated[str, LABEL]

    @property
    def errors(self) -> int:
        """All of them; how they split is a diagnosis, not a verdict."""
        return sum(self.split.values())


@dataclass(frozen=True)
class Trial:
    """Both models on one shard; `kept` are counts for the next trial."""

    old: Counts
    new: Counts
    old_first: bool
    kept: dict[str, Counts]


@dataclass(frozen=True)
class Engine:
    """The command that runs a model, and how long it may take."""

    command: Sequence[str]
    timeout_s: float


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
    engine: Engine, models: Models, shard: Shard, folder: Path, known: Known, *, old_first: bool
) -> Trial | None:
    """Count the errors of both models; None if the old one cannot be heard, and the new one can.

    Args:
        engine: how to run a model.
        models: (SHA-256, file) of the old and of the new one.
        shard: what both must have heard.
        folder: holds the manifest and that shard.
        known: counts of earlier trials, as the last one kept them.
        old_first: which model hears the shard while the device is still cool.

    Raises:
        Rejected: E_ENGINE or E_SLOW.
    """
    (old_sha256, old_file), (new_sha256, new_file) = models
    old = known.get(_key(old_sha256, shard))
    if old is None and old_first:
        old = _run_old(engine, old_file, folder, shard)
        new = run_engine(engine, new_file, folder, shard)
    else:
        new = run_engine(engine, new_file, folder, shard)
        # A model that was measured before, in the same way, was measured first.
        old_first = old is not None and (old.runtime, old.scorer) == (new.runtime, new.scorer)
        old = old if old_first else _run_old(engine, old_file, folder, shard)
    if old is None:
        return None
    kept = {_key(old_sha256, shard): old, _key(new_sha256, shard): new}
    return Trial(old, new, old_first, kept)


def _run_old(engine: Engine, model: Path, folder: Path, shard: Shard) -> Counts | None:
    """A running model that cannot be heard must not keep its successor out."""
    try:
        return run_engine(engine, model, folder, shard)
    except Rejected as error:
        logger.warning("the running model has no counts: %s", error)
        return None


def report_of(
    trial: Trial, shard: Shard, plan: Plan, device_id: str, attempt: int, *, refused: bool
) -> dict[str, Any]:
    """Return a trial as the service is told of it; the same trial has the same `report_id`."""
    assert plan.canary is not None
    key = (plan.release, device_id, shard.set, plan.canary.shard, str(attempt))
    return {
        "report_id": sha256("|".join(key).encode()).hexdigest()[:32],
        "attempt": attempt,
        "deployment": plan.deployment,
        "old_model": plan.base,
        "new_model": plan.sha256,
        "canary_set": shard.set,
        "shard": plan.canary.shard,
        "scorer": trial.new.scorer,
        "runtime": trial.new.runtime,
        "utterances": shard.utterances,
        "ref_words": shard.ref_words,
        "order": "old_first" if trial.old_first else "new_first",
        "old": trial.old.split,
        "new": trial.new.split,
        "old_ms": trial.old.milliseconds,
        "new_ms": trial.new.milliseconds,
        "gate": "refused" if refused else "activated",
    }


def run_engine(engine: Engine, model: Path, folder: Path, shard: Shard) -> Counts:
    """Run the engine on one model and return its counts.

    Raises:
        Rejected: E_SLOW over the time limit; E_ENGINE if it crashes, prints anything but counts,
            or counts that cannot be.
    """
    command = [*engine.command, "--model", str(model), "--canary", str(folder)]
    beside = model.with_name(COMPONENTS)
    if any(beside.glob("*")):
        command += ["--components", str(beside)]
    started = time.monotonic()
    try:
        process = Popen(command, stdin=DEVNULL, stdout=PIPE, stderr=DEVNULL, start_new_session=True)
    except (FileNotFoundError, PermissionError) as error:
        raise Rejected("E_ENGINE", f"the engine cannot be started: {error}") from error
    with process, Deadline(engine.timeout_s, partial(_kill, process)) as late:
        assert process.stdout is not None
        try:
            output = process.stdout.read(OUTPUT_BYTES_MAX + 1)
            if len(output) > OUTPUT_BYTES_MAX:
                raise Rejected("E_ENGINE", f"the engine printed more than {OUTPUT_BYTES_MAX} bytes")
            process.wait()
        finally:
            _kill(process)
    if late.passed:
        raise Rejected("E_SLOW", f"the engine ran longer than {engine.timeout_s} s")
    if process.returncode != 0:
        raise Rejected("E_ENGINE", f"the engine ended with {process.returncode}")
    return read_counts(output, shard, round(1000 * (time.monotonic() - started)))


def read_counts(output: bytes, shard: Shard, milliseconds: int) -> Counts:
    """Return the counts that an engine printed, if they can be true of this shard.

    Raises:
        Rejected: E_ENGINE.
    """
    document = accept(dict[str, Any], output, "E_ENGINE")
    heard = {name: document.get(name) for name in ("canary_set", "utterances", "ref_words")}
    if list(heard.values()) != [shard.set, shard.utterances, shard.ref_words]:
        raise Rejected(
            "E_ENGINE", f"the engine heard something else than the shard: {heard!s:.200}"
        )
    split = {name: document.get(name) for name in SPLIT}
    found = accept(Counts, {**document, "split": split, "milliseconds": milliseconds}, "E_ENGINE")
    subs, dels, ins = found.split.values()
    if subs + dels > shard.ref_words or ins > shard.ref_words:
        raise Rejected("E_ENGINE", f"more errors than the shard's {shard.ref_words} words: {split}")
    return found


def read_manifest(manifest: bytes, shard_sha256: str) -> Shard:
    """Return what a verified manifest says of the shard with this digest.

    Raises:
        Rejected: E_CANARY.
    """
    listed = {s.sha256: s for s in accept(Manifest, manifest, "E_CANARY").shards}
    shard = listed.get(shard_sha256)
    if shard is None:
        raise Rejected("E_CANARY", f"the manifest does not list shard {shard_sha256[:12]}")
    if shard.file == MANIFEST or not (shard.bytes and shard.utterances and shard.ref_words):
        raise Rejected("E_CANARY", f"the manifest has an impossible {shard}")
    return replace(shard, set=sha256(manifest).hexdigest())


def _kill(process: "Popen[bytes]") -> None:
    """End the engine and whatever it started, unless it ended by itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)


def _key(model_sha256: str, shard: Shard) -> str:
    return f"{model_sha256} {shard.set} {shard.sha256}"
