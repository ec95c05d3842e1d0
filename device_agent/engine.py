"""The recogniser that a device runs on its canary shard, in a process of its own.

It is any command that is run as `CMD --model FILE --canary DIR`, with `--components DIR` if the
release has some, and prints one JSON object with its word errors, which `scoring` may have counted.
Its time is limited, because a model that cannot be trusted yet must not be loaded into the agent.
"""

import os
import re
import signal
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from subprocess import DEVNULL, PIPE, Popen
from typing import Annotated, Any

from device_agent.deadline import Deadline
from device_agent.disk import COMPONENTS
from device_agent.errors import Rejected
from device_agent.strict import accept

OUTPUT_BYTES_MAX = 1 << 20
SPLIT = ("sub", "del", "ins")
FILE_NAME = re.compile(r"[A-Za-z0-9][A-Za-z0-9._-]{0,127}\Z")
LABEL = re.compile(r"[\x21-\x7e]{1,128}\Z")
MARK = re.compile(r"[0-9a-f]{0,16}\Z")


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
class Engine:
    """The command that runs a model, and how long a whole trial may take."""

    command: Sequence[str]
    timeout_s: float


@dataclass(frozen=True)
class Counts:
    """Word errors of one model on one shard, and how long it took."""

    split: dict[str, int]  # sub, del, ins
    milliseconds: int
    scorer: Annotated[str, LABEL]
    runtime: Annotated[str, LABEL]
    by_utterance: tuple[int, ...] = ()  # errors of each, if the engine tells
    heard: tuple[Annotated[str, MARK], ...] = ()  # and what was heard, hashed; empty for no word

    @property
    def errors(self) -> int:
        """All of them; how they split is a diagnosis, not a verdict."""
        return sum(self.split.values())

    def comparable(self, other: "Counts") -> bool:
        """Whether both were measured in the same way."""
        return (self.runtime, self.scorer) == (other.runtime, other.scorer)


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
        raise Rejected("E_SLOW", f"the engine ran longer than the {engine.timeout_s:.1f} s it had")
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
    each = found.by_utterance
    if each and (len(each), sum(each)) != (shard.utterances, found.errors):
        what = f"{len(each)} utterances with {sum(each)} errors"
        raise Rejected("E_ENGINE", f"{what} are not {shard.utterances} with {found.errors}")
    if found.heard and len(found.heard) != shard.utterances:
        raise Rejected("E_ENGINE", f"{len(found.heard)} transcripts of {shard.utterances}")
    return found


def _kill(process: "Popen[bytes]") -> None:
    """End the engine and whatever it started, unless it ended by itself."""
    if process.poll() is None:
        with suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
