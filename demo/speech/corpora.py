"""The corpora of the story by name, and their features as training sees them.

`features` lays a room over every utterance several times with different noise and gain and
caches the log-mel features in the build folder, so that an epoch of training costs no synthesis.
"""

import random
from dataclasses import dataclass
from functools import partial
from pathlib import Path

import numpy as np

from demo.speech.features import HOP_SAMPLES, Array, log_mel
from demo.speech.grammar import UPDATE_NAMES, home_sentence, sports_sentence
from demo.speech.synthesis import Corpus, corpus, in_room, noise_bank

SEED = 20_261
TRAIN_UTTERANCES = 12_000
UPDATE_UTTERANCES = 1_000
DEV_UTTERANCES = 200
CANARY_UTTERANCES = {"old": 200, "ledecky": 100, "biles": 100}
BASE_COPIES = 3
UPDATE_COPIES = 5
WARPS = np.linspace(0.88, 1.12, 9)


@dataclass(frozen=True)
class Sample:
    """Features (frames, 40) of one utterance, its text, and the frame at which speech begins."""

    features: Array
    text: str
    onset: int


def spoken(build: Path, name: str) -> Corpus:
    """Returns a corpus by name: `<hall>-<tag>`, such as `train-old` or `canary-ledecky`."""
    hall, tag = name.split("-")
    counts = {
        "train": TRAIN_UTTERANCES if tag == "old" else UPDATE_UTTERANCES,
        "dev": DEV_UTTERANCES,
        "canary": CANARY_UTTERANCES[tag],
    }
    names = UPDATE_NAMES.get(tag)
    sentence = partial(sports_sentence, names=names) if names else home_sentence
    return corpus(build, name, hall, tag, counts[hall], SEED, sentence)


def samples(build: Path, name: str) -> list[Sample]:
    """Returns the noisy samples of a corpus, several copies of each utterance in training."""
    clean = spoken(build, name)
    training = clean.hall == "train"
    copies = (BASE_COPIES if clean.tag == "old" else UPDATE_COPIES) if training else 1
    path = build / f"features-{name}-{len(clean.texts)}x{copies}-{SEED}.npz"
    if not path.exists():
        _render(build, path, clean, copies)
    with np.load(path) as stored:
        cuts = np.cumsum(stored["lengths"])[:-1]
        parts = np.split(stored["features"], cuts)
        return [
            Sample(part, clean.texts[i % len(clean.texts)], int(stored["onsets"][i]))
            for i, part in enumerate(parts)
        ]


def _render(build: Path, path: Path, clean: Corpus, copies: int) -> None:
    print(f"rendering {copies} noisy copies of {path.name}", flush=True)
    rng = random.Random(f"{path.name}/{SEED}")
    noises = noise_bank(clean.hall, spoken(build, f"{clean.hall}-old"), SEED)
    parts: list[Array] = []
    onsets = []
    for _ in range(copies):
        for sound in clean.sounds:
            heard, lead = in_room(sound, clean.hall, noises, rng)
            warp = float(rng.choice(WARPS)) if clean.hall == "train" else 1.0
            parts.append(log_mel(heard, warp).astype(np.float16))
            onsets.append(lead // HOP_SAMPLES)
    unfinished = path.with_suffix(".part.npz")
    lengths = np.array([len(part) for part in parts])
    np.savez(unfinished, features=np.concatenate(parts), lengths=lengths, onsets=np.array(onsets))
    unfinished.rename(path)
