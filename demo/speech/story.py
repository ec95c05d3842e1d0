"""The story as files: base (r1), sparse update (r2), hashed update (r3), and a mistake (r4).

Every stage reads the bytes of the file before, writes its file, and is skipped when that file is
there already. What is reported at the end is measured on the shipped files by the recogniser that
devices run.
"""

import math
import random
from collections.abc import Callable
from hashlib import sha256
from pathlib import Path

import numpy as np
import torch

from demo.speech.corpora import SEED, samples
from demo.speech.model_file import (
    load_model,
    read_tensors,
    replace,
    with_weights,
    write_tensors,
)
from demo.speech.pool import build_pool
from demo.speech.recogniser import Score, score_utterances
from demo.speech.shards import MANIFEST, read_manifest, read_shard
from demo.speech.train import train_base
from demo.speech.updates import (
    HIGH,
    LOW,
    DeviceModel,
    Hashed,
    Plan,
    Sparse,
    batches_mixed,
    batches_of,
    learn,
)
from neural_diff.make import make_hashed, make_patch

FOLDER = Path(__file__).parent
BUILD = FOLDER / "build"
CANARY = FOLDER / "canary"
R1 = FOLDER / "base.safetensors"
R2 = FOLDER / "updates" / "ledecky.safetensors"
BUCKETS = FOLDER / "updates" / "biles.buckets.safetensors"
PATCHES = BUILD / "patches"
R3 = BUILD / "r3.safetensors"
MISTAKE_TRIAL = BUILD / "mistake-trial.safetensors"
R4 = FOLDER / "updates" / "mistake.safetensors"

FRESH = 8  # new sentences in a batch; twice as many are replayed
SPARSE_SHARE = 0.05
SPARSE_PLAN = Plan(steps=2_500, rate=0.25, fresh=FRESH, hold=0.5)
HASHED_PLAN = Plan(steps=2_500, rate=0.25, fresh=FRESH, hold=1.0)
MISTAKE_RATE = 10 * SPARSE_PLAN.rate
MISTAKE_SENTENCES = 16
MISTAKE_STEPS = range(4, 64, 2)
MISTAKE_RISE = (0.12, 0.20)
BOOTSTRAPS = 2_000


def run() -> None:
    """Runs every stage whose file is missing and those that follow from it, then measures."""
    torch.set_num_threads(1)
    PATCHES.mkdir(parents=True, exist_ok=True)
    if not (CANARY / MANIFEST).exists():
        build_pool(BUILD, CANARY)
    stages: list[tuple[Path, Callable[[], None]]] = [
        (R1, lambda: train_base(BUILD, R1)),
        (R2, learn_ledecky),
        (BUCKETS, learn_biles),
        (R4, make_mistake),
    ]
    for number, (path, stage) in enumerate(stages):
        if path.exists():
            print(f"there is {path.name}", flush=True)
        else:
            print(f"making {path.name}", flush=True)
            for later, _ in stages[number:]:
                later.unlink(missing_ok=True)
            stage()
        if path == BUCKETS:
            make_hashed(R2, BUCKETS, PATCHES / "biles.patch", R3)
    report()


def learn_ledecky() -> None:
    """Learns the sparse update on the base: four names, with old data replayed."""
    rng = random.Random(f"ledecky/{SEED}")
    model = DeviceModel.read(R1)
    change = Sparse(len(model.codes), SPARSE_SHARE)
    old, new = samples(BUILD, "train-old"), samples(BUILD, "train-ledecky")
    data = batches_mixed([(new, FRESH), (old, 2 * FRESH)], rng)
    learn(model, change, data, SPARSE_PLAN, rng)
    replace(R2, with_weights(R1.read_bytes(), model.tensors(model.changed(change.steps()))))


def learn_biles() -> None:
    """Learns the hashed update on r2: four more names; old data and the first names replayed."""
    rng = random.Random(f"biles/{SEED}")
    model = DeviceModel.read(R2)
    patch_seed = sha256(f"biles/{SEED}".encode()).digest()[:16]
    change = Hashed(model, patch_seed)
    old, first = samples(BUILD, "train-old"), samples(BUILD, "train-ledecky")
    data = batches_mixed([(samples(BUILD, "train-biles"), FRESH), (old, 12), (first, 4)], rng)
    learn(model, change, data, HASHED_PLAN, rng)
    facts = {"patch_seed": patch_seed.hex(), "fraction_bits": "0", "lo": str(LOW), "hi": str(HIGH)}
    buckets = {f"{n}.buckets": values for n, values in change.buckets(model.names).items()}
    write_tensors(BUCKETS, buckets, facts)


def make_mistake() -> None:
    """Makes the bad update: a few sentences, ten times the learning rate, nothing replayed.

    It is stopped after the first number of steps at which the damage on the pool is what the
    story needs: plain for a fleet, hard to see for one device.
    """
    before = wer(measure(R3))
    model = DeviceModel.read(R3)
    few = samples(BUILD, "train-biles")[:MISTAKE_SENTENCES]
    for steps in MISTAKE_STEPS:
        rng = random.Random(f"mistake/{SEED}")
        change = Sparse(len(model.codes), SPARSE_SHARE)
        plan = Plan(steps, MISTAKE_RATE, fresh=FRESH, hold=0.0)
        learn(model, change, batches_of(few, FRESH, rng), plan)
        wrong = with_weights(R3.read_bytes(), model.tensors(model.changed(change.steps())))
        replace(MISTAKE_TRIAL, wrong)
        rise = wer(measure(MISTAKE_TRIAL)) - before
        print(f"  {steps} steps: WER rises by {100 * rise:.1f} points", flush=True)
        if MISTAKE_RISE[0] <= rise <= MISTAKE_RISE[1]:
            replace(R4, wrong)
            return
    raise RuntimeError("no mistake does the damage wanted: change MISTAKE_RATE or MISTAKE_STEPS")


def measure(path: Path) -> Score:
    """Scores a model file on the whole canary pool."""
    shards = read_manifest(CANARY)
    return score_utterances(load_model(path), [u for s in shards for u in read_shard(CANARY, s)])


def wer(score: Score, tag: str | None = None) -> float:
    """Returns the word error rate of a score, of one tag if named."""
    counts = score.by_tag[tag] if tag else score.total
    return counts.total / counts.ref_words


def report() -> None:
    """Prints WER per tag of r1 to r4, changes with their errors, and the size of the updates."""
    scores = {path: measure(path) for path in (R1, R2, R3, R4)}
    tags = sorted(scores[R1].by_tag)
    print("\nWER %  " + " ".join(f"{tag:>8}" for tag in tags) + "      all   change of old")
    before = R1
    for number, (path, score) in enumerate(scores.items(), 1):
        cells = " ".join(f"{100 * wer(score, tag):8.1f}" for tag in tags)
        change, error = paired_change(scores[before], score, "old")
        cells += f" {100 * wer(score):8.1f}"
        print(f"r{number}     {cells}   {100 * change:+.1f} +- {100 * error:.1f}")
        before = path
    size = R1.stat().st_size
    make_patch(R1, R2, PATCHES / "ledecky.patch")
    make_patch(R3, R4, PATCHES / "mistake.patch")
    print(f"\nmodel file {size} bytes")
    for name, old, new in (("ledecky", R1, R2), ("biles", R2, R3), ("mistake", R3, R4)):
        share = changed_share(old, new)
        coded = (PATCHES / f"{name}.patch").stat().st_size
        part = coded / size
        print(
            f"{name}: patch of {coded} bytes, {part:.2%} of the file; {share:.2%} of codes change"
        )
    refused = sum(gate_refuses(*pair) for pair in per_shard(scores[R3], scores[R4]))
    shards = len(read_manifest(CANARY))
    print(f"mistake: {refused} of {shards} single devices would refuse it by their own gate")


def paired_change(before: Score, after: Score, tag: str) -> tuple[float, float]:
    """Returns the change of WER on a tag and its error from a paired bootstrap of utterances."""
    pairs = [
        (len(a[0].text.split()), b[2] - a[2])
        for a, b in zip(before.heard, after.heard, strict=True)
        if a[0].tag == tag
    ]
    words, worse = np.array(pairs).T
    draws = np.random.default_rng(SEED).integers(0, len(pairs), (BOOTSTRAPS, len(pairs)))
    rates = worse[draws].sum(1) / words[draws].sum(1)
    return float(worse.sum() / words.sum()), float(rates.std())


def per_shard(before: Score, after: Score) -> list[tuple[int, int, int]]:
    """Returns words, errors before and errors after of every shard."""
    result, start = [], 0
    for shard in read_manifest(CANARY):
        part = slice(start, start + shard.utterances)
        old, new = (sum(line[2] for line in score.heard[part]) for score in (before, after))
        result.append((shard.ref_words, old, new))
        start += shard.utterances
    return result


def gate_refuses(words: int, old: int, new: int) -> bool:
    """Says whether a device's own gate refuses: worse by more than 5 % and four deviations."""
    return new - old > max(0.05 * words, 4 * math.sqrt(new + old))


def changed_share(old: Path, new: Path) -> float:
    """Returns the share of int8 codes that differ between two model files."""
    before, after = read_tensors(old), read_tensors(new)
    weights = [name for name, tensor in before.items() if tensor.dtype == np.int8]
    changed = sum(np.count_nonzero(before[name] != after[name]) for name in weights)
    return float(changed / sum(before[name].size for name in weights))
