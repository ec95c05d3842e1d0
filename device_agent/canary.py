"""The trial of a release on this device: both models hear the same canary shard.

The engine is any command that is run as `CMD --model FILE --canary DIR` and prints one JSON
object with its word errors; it runs in a process of its own with a time limit, because a model
that cannot be trusted yet must not be loaded into the agent. The old model's counts are kept by
(model, set, shard, runtime), so a usual update costs one pass. The gate here only keeps a broken
release off this device; whether the release is good is for the fleet to say.
"""

import json
import logging
import math
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from hashlib import sha256
from pathlib import Path
from typing import Any

from device_agent.errors import Rejected
from device_agent.journal import Record
from device_agent.plan import Plan

logger = logging.getLogger(__name__)

OUTPUT_BYTES_MAX = 1 << 20
COUNT_MAX = 1_000_000
COUNTS_KEPT_MAX = 4
MANIFEST = "canary.json"
SPLIT = ("sub", "del", "ins")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
LABEL = re.compile(r"[\x21-\x7e]{1,128}\Z")


@dataclass(frozen=True)
class Shard:
    """What the signed manifest says of a shard."""

    file: str
    set: str
    sha256: str
    bytes: int
    utterances: int
    ref_words: int


@dataclass(frozen=True)
class Counts:
    """Word errors of one model on one shard, and how long it took."""

    split: Mapping[str, int]  # sub, del, ins
    milliseconds: int
    scorer: str
    runtime: str

    @property
    def errors(self) -> int:
        """All of them; how they split is a diagnosis, not a verdict."""
        return sum(self.split.values())


@dataclass(frozen=True)
class Trial:
    """Both models on one shard."""

    old: Counts
    new: Counts
    old_first: bool


@dataclass(frozen=True)
class Engine:
    """The command that runs a model, and how long it may take."""

    command: Sequence[str]
    timeout_s: float


def gate_refuses(old_errors: int, new_errors: int, ref_words: int) -> bool:
    """Whether a device refuses a release on its own few words (design: canary.md 2.5).

    Four standard deviations of a Poisson difference, and at least 5 % of the words: 0 of 400,000
    harmless devices were refused, and 95 % of those whose word error rate tripled.
    """
    worse = new_errors - old_errors
    return worse > max(0.05 * ref_words, 4 * math.sqrt(new_errors + old_errors))


def run_trial(
    engine: Engine,
    models: tuple[tuple[str, Path], tuple[str, Path]],
    shard: Shard,
    folder: Path,
    known: Record,
    *,
    old_first: bool,
) -> Trial | None:
    """Count the errors of both models; None if the old one cannot be heard, and the new one can.

    Args:
        engine: how to run a model.
        models: (SHA-256, file) of the old and of the new one.
        shard: what both must have heard.
        folder: holds the manifest and that shard.
        known: counts of earlier trials; the counts of this one are added.
        old_first: which model hears the shard while the device is still cool.

    Raises:
        Rejected: E_ENGINE or E_SLOW.
    """
    (old_sha256, old_file), (new_sha256, new_file) = models
    old, new = _load(known, old_sha256, shard), None
    if old is None and old_first:
        old = _run_old(engine, old_file, folder, shard)
    else:
        new = run_engine(engine, new_file, folder, shard)
        if old is not None and (old.runtime, old.scorer) == (new.runtime, new.scorer):
            old_first = True  # It was measured before, in an earlier trial.
        else:
            old, old_first = _run_old(engine, old_file, folder, shard), False
    new = new or run_engine(engine, new_file, folder, shard)
    if old is None:
        return None
    _keep(known, shard, {old_sha256: old, new_sha256: new})
    return Trial(old, new, old_first)


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
    with _start([*engine.command, "--model", str(model), "--canary", str(folder)]) as process:
        assert process.stdout is not None
        late = threading.Event()
        timer = threading.Timer(engine.timeout_s, _kill, (process, late))
        timer.start()
        started = time.monotonic()
        try:
            output = process.stdout.read(OUTPUT_BYTES_MAX + 1)
            if len(output) > OUTPUT_BYTES_MAX:
                raise Rejected("E_ENGINE", f"the engine printed more than {OUTPUT_BYTES_MAX} bytes")
            process.wait()
        finally:
            timer.cancel()
            _kill(process, threading.Event())
        spent = round(1000 * (time.monotonic() - started))
    if late.is_set():
        raise Rejected("E_SLOW", f"the engine ran longer than {engine.timeout_s} s")
    if process.returncode != 0:
        raise Rejected("E_ENGINE", f"the engine ended with {process.returncode}")
    return read_counts(output, shard, spent)


def read_counts(output: bytes, shard: Shard, milliseconds: int) -> Counts:
    """Return the counts that an engine printed, if they can be true of this shard.

    Raises:
        Rejected: E_ENGINE.
    """
    try:
        document = json.loads(output)
        numbers = [document[name] for name in (*SPLIT, "utterances", "ref_words")]
        labels = [document[name] for name in ("scorer", "runtime")]
        heard = document["canary_set"]
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Rejected("E_ENGINE", f"the engine printed no counts: {error!r}") from error
    if not all(type(n) is int and 0 <= n <= COUNT_MAX for n in numbers):
        raise Rejected("E_ENGINE", f"the engine printed impossible counts: {numbers}")
    if not all(isinstance(text, str) and LABEL.match(text) for text in labels):
        raise Rejected("E_ENGINE", "the engine's scorer or runtime is not a label")
    sub, deleted, ins, utterances, ref_words = numbers
    if (heard, utterances, ref_words) != (shard.set, shard.utterances, shard.ref_words):
        raise Rejected("E_ENGINE", "the engine heard something else than the shard")
    if sub + deleted > ref_words or ins > ref_words:
        raise Rejected("E_ENGINE", f"more errors than words: {numbers}")
    return Counts(dict(zip(SPLIT, numbers, strict=False)), milliseconds, *labels)


def read_manifest(manifest: bytes, shard_sha256: str) -> Shard:
    """Return what a verified manifest says of the shard with this digest.

    Raises:
        Rejected: E_CANARY.
    """
    try:
        rows = [row for row in json.loads(manifest)["shards"] if row["sha256"] == shard_sha256]
        file, numbers = rows[0]["file"], [rows[0][k] for k in ("bytes", "utterances", "ref_words")]
    except (ValueError, KeyError, TypeError, IndexError, RecursionError) as error:
        raise Rejected("E_CANARY", f"the manifest does not list the shard: {error!r}") from error
    if not isinstance(file, str) or not FILE_NAME.match(file) or file == MANIFEST:
        raise Rejected("E_CANARY", f"the manifest names a file {str(file)[:80]!r}")
    if not all(type(n) is int and n > 0 for n in numbers):
        raise Rejected("E_CANARY", f"the manifest has impossible sizes for {file}")
    return Shard(file, sha256(manifest).hexdigest(), shard_sha256, *numbers)


def _start(command: list[str]) -> "subprocess.Popen[bytes]":
    try:
        return subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            start_new_session=True,
        )
    except (FileNotFoundError, PermissionError) as error:
        raise Rejected("E_ENGINE", f"the engine cannot be started: {error}") from error


def _kill(process: "subprocess.Popen[bytes]", late: threading.Event) -> None:
    """End the engine and whatever it started."""
    if process.returncode is None:
        late.set()
        try:
            os.killpg(process.pid, signal.SIGKILL)
        except ProcessLookupError:
            late.clear()


def _load(known: Record, model_sha256: str, shard: Shard) -> Counts | None:
    entry = (known.document or {}).get(_key(model_sha256, shard))
    return None if entry is None else Counts(**entry)


def _keep(known: Record, shard: Shard, counts: Mapping[str, Counts]) -> None:
    entries: dict[str, Any] = dict(known.document or {})
    for model_sha256, found in counts.items():
        entries.pop(_key(model_sha256, shard), None)
        entries[_key(model_sha256, shard)] = asdict(found)
    known.save(dict(list(entries.items())[-COUNTS_KEPT_MAX:]))


def _key(model_sha256: str, shard: Shard) -> str:
    return f"{model_sha256} {shard.set} {shard.sha256}"
