"""Are the demo's good updates promoted and is its mistake halted, whoever is in the fleet?

The real recogniser hears the canary pool with every model of the demo, once as it is and once for
each seed through another microphone: a gain and white noise that are drawn, then mu-law again.
Fleets are drawn from the seeds (`benchmarks/seeds_fleet.py`), with a look after every report. With
`--server N`, N seeds are played again on the real server.
"""

import argparse
import os
import statistics
import sys
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when numpy is imported
import numpy as np

from benchmarks.laws import generator
from benchmarks.rows import Row, publish
from benchmarks.seeds_fleet import FOLDER, MODELS, SHARDS, Drawn, Heard, Outcome, on_server
from demo.cast import BASE, SPEECH
from demo.speech.features import mu_law_decode, mu_law_encode
from demo.speech.model_file import load_model
from demo.speech.recogniser import Score, score_utterances
from demo.speech.shards import Utterance, read_shard
from demo.story import GATE as DEMO
from device_agent import engine
from device_agent.scoring import mark
from neural_diff.make import make_hashed
from service.core import policy
from service.core.canary import Gate

UPDATES = ("r2 sparse", "r3 hashed", "r4 mistake")
GAIN_DB, SNR_DB = (-6, 6), (10, 30)
SPREAD_MAX = 1.25  # a gate's sigma may be so far off; it costs devices, never the promise

Sound = Callable[[Any], Any]


def models() -> dict[str, Any]:
    """Return the models of the demo by what stands for them in a fleet."""
    sparse, mistake = (SPEECH / "updates" / f"{n}.safetensors" for n in ("ledecky", "mistake"))
    with TemporaryDirectory() as folder:
        hashed, buckets = Path(folder, "r3"), SPEECH / "updates" / "biles.buckets.safetensors"
        make_hashed(sparse, buckets, Path(folder, "patch"), hashed)
        found = map(load_model, (BASE, sparse, hashed, mistake))
        return dict(zip(MODELS, found, strict=True))


def microphone(seed: int) -> Sound:
    """Return what a recording becomes through another microphone."""
    rng = generator("seeds", "microphone", seed)

    def heard(samples: Any) -> Any:
        loud = np.sqrt(np.mean(np.square(samples, dtype=np.float64)))
        noise = rng.normal(0, loud / 10 ** (rng.uniform(*SNR_DB) / 20), len(samples))
        sound = (samples + noise) * 10 ** (rng.uniform(*GAIN_DB) / 20)
        return mu_law_decode(mu_law_encode(np.clip(sound, -32_768, 32_767).astype(np.int16)))

    return heard


def hear(known: Mapping[str, Any], sound: Sound) -> Heard:
    """Run the recogniser with every model on every shard."""
    found: Heard = {}
    for shard in SHARDS:
        spoken = read_shard(FOLDER, shard)
        pool = [Utterance(u.id, u.text, u.tag, sound(u.samples)) for u in spoken]
        for name, model in known.items():
            found[name, shard.sha256] = _counts(score_utterances(model, pool))
    return found


def _counts(score: Score) -> engine.Counts:
    total = score.total
    split = {"sub": total.substituted, "del": total.deleted, "ins": total.inserted}
    each = tuple(errors for _, _, errors in score.heard)
    marks = tuple(mark(text) for _, text, _ in score.heard)
    return engine.Counts(split, 100, "wer/1", "numpy", each, marks)


def spread(heard: Heard, old: str, new: str) -> tuple[float, float, float]:
    """Return the mean change of a shard's rate, its deviation, and what the demo's clip leaves.

    The last is the root of the mean square, which is what the test sees.
    """
    changes = [
        (heard[new, s.sha256].errors - heard[old, s.sha256].errors) / s.ref_words for s in SHARDS
    ]
    clipped = np.clip(changes, -DEMO["clip"], DEMO["clip"])
    rms = float(np.sqrt(np.mean(clipped**2)))
    return statistics.mean(changes), statistics.stdev(changes), rms


def measured(pool: Heard, others: Sequence[Heard]) -> list[Row]:
    """Return how far the changes of shards are apart, against the demo's setting."""
    rows, sigmas = [], []
    for update, *both in zip(UPDATES, MODELS, MODELS[1:], strict=False):
        mean, sigma, rms = (100 * value for value in spread(pool, *both))
        noisy = [100 * spread(other, *both)[1] for other in others]
        told = {
            "mean change": mean,
            "sigma": sigma,
            "root mean square, clipped": rms,
            "sigma through other microphones, least": min(noisy),
            "sigma through other microphones, most": max(noisy),
        }
        rows += [Row(update, figure, value, "points") for figure, value in told.items()]
        marks = [[mark for s in SHARDS for mark in pool[model, s.sha256].heard] for model in both]
        other = 100 * statistics.mean(a != b for a, b in zip(*marks, strict=True))
        rows.append(Row(update, "transcripts that differ", other, "%"))
        sigmas.append(sigma)
    sigma = float(np.sqrt(np.mean(np.square(sigmas))))
    off = max(sigma / 100 / DEMO["sigma"], 100 * DEMO["sigma"] / sigma)
    rows.append(Row("all three", "sigma, root mean square", sigma, "points"))
    return [*rows, Row("all three", "sigma, off the demo's setting", off, "times", SPREAD_MAX)]


def told(work: str, stories: Mapping[int, Sequence[Outcome]]) -> list[Row]:
    """Return how each update ended, seed by seed and in all; the mistake is to be halted."""
    rows = []
    for place, update in enumerate(UPDATES):
        wanted = "halted" if update == UPDATES[-1] else "promoted"
        ended = {seed: found[place] for seed, found in stories.items() if len(found) > place}
        right = [outcome.pairs for outcome in ended.values() if outcome.verdict == wanted]
        name = f"{work}, {update}"
        for seed, outcome in ended.items():
            figure = f"seed {seed}, {outcome.verdict}, {outcome.refused} refused, after"
            rows.append(Row(name, figure, outcome.pairs, "pairs"))
        rows.append(Row(name, f"seeds of {len(stories)}, {wanted}", len(right), ""))
        rows.append(Row(name, f"seeds, not {wanted}", len(stories) - len(right), "", 0))
        if right:
            rows.append(Row(name, "pairs, median", statistics.median(right), ""))
            rows.append(Row(name, "pairs, least", min(right), ""))
            rows.append(Row(name, "pairs, most", max(right), ""))
    return rows


def main() -> int:
    """Hear, draw every fleet, and publish."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seeds", type=int, default=20)
    parser.add_argument("--server", type=int, default=0, metavar="N")
    args = parser.parse_args()
    seeds, known = range(1, args.seeds + 1), models()
    pool = hear(known, lambda samples: samples)
    noisy = {seed: hear(known, microphone(seed)) for seed in seeds}
    same = dict.fromkeys(seeds, pool)
    rows = measured(pool, list(noisy.values()))
    demo = policy.gate_of(DEMO)
    for work, devices, gate, heard in (
        ("demo's gate, 60 devices", 60, demo, same),
        ("demo's gate, 60 devices, other microphones", 60, demo, noisy),
        ("default gate, 1,000 devices", 1000, Gate(), same),
        ("default gate, 1,000 devices, other microphones", 1000, Gate(), noisy),
    ):
        stories = {seed: Drawn(seed, devices, heard[seed]).story(gate) for seed in seeds}
        print(work, *stories.items(), sep="\n  ", file=sys.stderr, flush=True)
        rows += told(work, stories)
    if args.server:
        played = {seed: on_server(seed, 60, noisy[seed], DEMO) for seed in seeds[: args.server]}
        rows += told("demo's gate, real server, other microphones", played)
    return publish("seeds", rows)


if __name__ == "__main__":
    sys.exit(main())
