"""How a release compares with its base on the whole canary set, before anybody signs it.

The recogniser is run as a device runs it, shard by shard. The change of the word error rate comes
with an interval from a paired bootstrap whose blocks are utterances (Bisani and Ney 2004), and
with its resolution: a small set cannot show a small change, however good it looks.
"""

import json
import shlex
import subprocess
from argparse import Namespace
from collections.abc import Sequence
from dataclasses import replace
from hashlib import sha256
from itertools import chain
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any, NamedTuple

from release_manager import show
from release_manager.client import hash_file
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.models import MANIFEST, Shard, read_canary
from release_manager.show import Reply
from trust.fields import write
from trust.roles import SHARDS_MAX, Evaluation

RESAMPLES = 10_000
POWER = 1.96 + 0.84  # standard errors: 5 % wrong alarms, 80 % found
PPM = 1_000_000


class Interval(NamedTuple):
    """A change in errors, the interval of 95 % around it, and the smallest that would show."""

    change: float
    lower: float
    upper: float
    resolution: float


def evaluate(args: Namespace, settings: Settings) -> Reply:
    """Hear BASE and TARGET on the whole canary set in FOLDER; writes what release publish signs.

    Example:
      fleetdiff release evaluate r1.bin r2.bin canary --recogniser "python asr.py" -o r2.eval
    """
    _, shards = read_canary(args.folder)
    if len(shards) > SHARDS_MAX:
        raise Refused(f"{len(shards)} shards; at most {SHARDS_MAX} are signed", "make larger ones")
    heard: list[list[list[int]]] = []
    for model in (args.base, args.target):
        with show.progress(f"hearing {model.name}") as report:
            heard.append([])
            for number, shard in enumerate(shards):
                heard[-1].append(_hear(args.recogniser, model, args.folder, shard))
                report(sum(s.bytes for s in shards[: number + 1]), sum(s.bytes for s in shards))
    pairs = zip(*map(chain.from_iterable, heard), strict=True)
    base, words = hash_file(args.base)[0], sum(shard.ref_words for shard in shards)
    found = interval([b - a for a, b in pairs], base)
    change, lower, upper, resolution = (round(PPM * errors / words) for errors in found)
    canary_set = hash_file(args.folder / MANIFEST)[0]
    old, new = (tuple(map(sum, model)) for model in heard)
    evaluation = Evaluation(canary_set, base, old, new, change, lower, upper, resolution)
    document = {"target": hash_file(args.target)[0], "ref_words": words, **write(evaluation)}
    args.out.write_text(show.json_text(document) + "\n")
    return Reply(_told(evaluation, words, args.margin) | {"file": str(args.out)})


def interval(changes: Sequence[int], seed: str) -> Interval:
    """Return the change in errors over all utterances, from the change of each.

    A resample draws as many utterances again; only how often each value comes matters, so all of
    it is one multinomial draw. The same input gives the same interval.
    """
    import numpy as np  # here and not above: it would slow down every command

    values, counts = np.unique(changes, return_counts=True)
    dice = np.random.default_rng(list(sha256(seed.encode()).digest()))
    sums = dice.multinomial(len(changes), counts / len(changes), RESAMPLES) @ values
    lower, upper = np.quantile(sums, [0.025, 0.975])
    return Interval(sum(changes), float(lower), float(upper), POWER * float(sums.std()))


def read_evaluation(args: Namespace, target: str, canary_set: str) -> Evaluation:
    """Return what `evaluate` wrote, to be signed with the release of a file with digest `target`.

    Raises:
        Refused: it is of another file or canary set, or says that the release is worse.
    """
    file, again = args.evaluation, "make it again: fleetdiff release evaluate"
    try:
        document = json.loads(file.read_bytes())
        of, words = document.pop("target"), document.pop("ref_words")
        evaluation = Evaluation.read(document)
        worse = _told(evaluation, words, args.margin)["verdict"] == "worse"
    except (ValueError, KeyError, TypeError, AttributeError, ZeroDivisionError) as error:
        raise Refused(f"{file} is no evaluation: {error!r}", again) from None
    if (of, evaluation.canary_set) != (target, canary_set):
        raise Refused(f"{file} is about another model file or canary set", again)
    if worse and not args.accept_worse:
        raise Refused(
            f"word error rate {evaluation.lower_ppm / 1e4:+.2f} points or more: worse than the "
            f"margin of {args.margin / 100:g} % of the old rate",
            "do not publish it; who must gives --accept-worse, which is signed with it",
        )
    return replace(evaluation, worse_accepted=worse)


def _told(evaluation: Evaluation, words: int, margin_bp: int) -> dict[str, Any]:
    rate = PPM * sum(evaluation.old) / words
    most, lower, upper = margin_bp / 10_000 * rate, evaluation.lower_ppm, evaluation.upper_ppm
    verdict = "worse" if lower > most else "within the margin" if upper <= most else "cannot tell"
    return {
        "shards": len(evaluation.old),
        "ref_words": words,
        "old_wer_bp": round(rate / 100),
        "new_wer_bp": round(PPM * sum(evaluation.new) / words / 100),
        **{f"{n}_bp": getattr(evaluation, f"{n}_ppm") / 100 for n in Interval._fields},
        "verdict": verdict,
    }


def _hear(command: str, model: Path, folder: Path, shard: Shard) -> list[int]:
    """Return the errors of each utterance of a shard, as the recogniser counts them."""
    with TemporaryDirectory(prefix="fleetdiff-") as alone:
        for name in (MANIFEST, shard.file):
            Path(alone, name).symlink_to((folder / name).resolve())
        words = [*shlex.split(command), "--model", str(model), "--canary", alone]
        done = subprocess.run(words, stdin=subprocess.DEVNULL, capture_output=True)
    fix = f"run it yourself: {shlex.join(words[:-1])} DIR"
    if done.returncode:
        last = done.stderr.decode(errors="replace").strip().splitlines()[-1:]
        raise Refused(f"the recogniser ended with {done.returncode}: {' '.join(last)}", fix)
    try:
        told = json.loads(done.stdout)
        each = told["by_utterance"]
        total = told["sub"] + told["del"] + told["ins"]
        fits = all(type(errors) is int and errors >= 0 for errors in each)
        fits = fits and (len(each), sum(each)) == (shard.utterances, total)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"the recogniser prints no counts by utterance: {error!r}", fix) from None
    heard = [told.get(name) for name in ("canary_set", "utterances", "ref_words")]
    if not fits or heard != [hash_file(folder / MANIFEST)[0], shard.utterances, shard.ref_words]:
        raise Refused(f"the recogniser heard something else than {shard.file}: {heard}", fix)
    return list(each)
