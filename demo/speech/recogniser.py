"""A small streaming speech recogniser that runs on numpy, and its word error rate on a canary.

Log-mel features, three frames stacked every 20 ms, two unidirectional LSTM layers, and CTC
(Graves et al. 2006) read greedily. It sees no further ahead than its 45 ms of stacked frames, so
it can stream; here it runs over whole recordings, all of a shard at once.

    python -m demo.speech.recogniser --model MODEL --canary FOLDER

prints one JSON object with the errors on every shard found in the folder beside `canary.json`.
Anything wrong with the model, the manifest or a shard is one line on stderr and exit code 2.
"""

import argparse
import json
import os
import platform
import sys
import time
from dataclasses import dataclass, field
from hashlib import sha256
from pathlib import Path
from typing import Any

os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")  # read once, when numpy is imported
import numpy as np

if not __package__:  # run as a script: the project's root is two folders up
    sys.path[0] = str(Path(__file__).resolve().parents[2])

from demo.speech.features import BANDS, Array, log_mel
from demo.speech.model_file import (
    LAYERS,
    STACK,
    STRIDE,
    SYMBOLS,
    WIDTH,
    BadModel,
    load_model,
)
from demo.speech.shards import BadCanary, Utterance, read_manifest, read_shard, shards_at
from device_agent.scoring import SCORER, Errors, mark, normalise, word_errors

BAD_INPUT_EXIT = 2


@dataclass
class Score:
    """Errors over all utterances and per tag, and what was heard, with its errors."""

    total: Errors = field(default_factory=Errors)
    by_tag: dict[str, Errors] = field(default_factory=dict)
    heard: list[tuple[Utterance, str, int]] = field(default_factory=list)


def main(arguments: list[str] | None = None) -> int:
    """Scores a model on the shards of a folder and prints one JSON object."""
    parser = argparse.ArgumentParser(description="word error rate of a model on canary shards")
    parser.add_argument("--model", type=Path, required=True, help="safetensors model file")
    parser.add_argument("--canary", type=Path, required=True, help="folder with canary.json")
    parser.add_argument("--shard", action="append", help="only this shard; repeatable")
    parser.add_argument("--transcripts", action="store_true", help="list what was heard")
    options = parser.parse_args(arguments)
    try:
        report = evaluate(options.model, options.canary, options.shard, options.transcripts)
    except (BadModel, BadCanary) as error:
        print(f"recogniser: {error}", file=sys.stderr)
        return BAD_INPUT_EXIT
    print(json.dumps(report, ensure_ascii=False))
    return 0


def evaluate(
    model_path: Path, canary: Path, only: list[str] | None = None, transcripts: bool = False
) -> dict[str, Any]:
    """Returns the report of a model file on the shards present, or on those named in `only`.

    Raises BadModel or BadCanary.
    """
    started = time.process_time()
    model = load_model(model_path)
    manifest = read_manifest(canary)
    shards = shards_at(canary, manifest, only)
    score = score_utterances(model, [u for shard in shards for u in read_shard(canary, shard)])
    report = {
        "utterances": len(score.heard),
        "ref_words": score.total.ref_words,
        "sub": score.total.substituted,
        "del": score.total.deleted,
        "ins": score.total.inserted,
        "by_utterance": [errors for _, _, errors in score.heard],
        "heard": [mark(text) for _, text, _ in score.heard],
        "shards": [shard.id for shard in shards],
        "canary_set": sha256((canary / "canary.json").read_bytes()).hexdigest(),
        "scorer": SCORER,
        "runtime": f"numpy-{np.__version__}/{platform.machine()}/int8",
        "milliseconds": round(1000 * (time.process_time() - started)),
        "by_tag": {
            tag: {"ref_words": found.ref_words, "errors": found.total}
            for tag, found in sorted(score.by_tag.items())
        },
    }
    if transcripts:
        report["transcripts"] = [
            {"id": u.id, "tag": u.tag, "ref": u.text, "hyp": text, "errors": errors}
            for u, text, errors in score.heard
        ]
    return report


def score_utterances(model: dict[str, Array], utterances: list[Utterance]) -> Score:
    """Recognises all utterances in one batch and counts their word errors."""
    score = Score()
    hypotheses = transcribe(model, [log_mel(u.samples) for u in utterances])
    for utterance, raw in zip(utterances, hypotheses, strict=True):
        text = normalise(raw)
        found = word_errors(utterance.text.split(), text.split())
        score.total.add(found)
        score.by_tag.setdefault(utterance.tag, Errors()).add(found)
        score.heard.append((utterance, text, found.total))
    return score


def transcribe(model: dict[str, Array], features: list[Array]) -> list[str]:
    """Returns what the model hears in each (frames, 40) feature array."""
    inputs = [stacked((f - model["features.mean"]) * model["features.scale"]) for f in features]
    steps = [len(x) for x in inputs]
    hidden = np.zeros((max(steps, default=0), len(inputs), STACK * BANDS), np.float32)
    for i, x in enumerate(inputs):
        hidden[: len(x), i] = x
    for layer in range(LAYERS):
        hidden = _lstm(hidden, model, f"layer{layer}")
    return read_greedily(hidden @ model["output.weight"].T + model["output.bias"], steps)


def stacked(features: Array) -> Array:
    """Joins three frames every two: (frames, 40) becomes (steps, 120)."""
    steps = max(0, (len(features) - STACK) // STRIDE + 1)
    rows = np.arange(steps)[:, None] * STRIDE + np.arange(STACK)
    joined: Array = features[rows].reshape(steps, STACK * features.shape[1])
    return joined


def read_greedily(scores: Array, steps: list[int]) -> list[str]:
    """Reads CTC scores (steps, batch, symbols): the best symbols, repeats and blanks dropped."""
    best = scores.argmax(axis=2)
    texts = []
    for i, count in enumerate(steps):
        path = best[:count, i].tolist()
        kept = [k for k, before in zip(path, [0, *path], strict=False) if k and k != before]
        texts.append("".join(SYMBOLS[k] for k in kept))
    return texts


def _lstm(x: Array, model: dict[str, Array], name: str) -> Array:
    """Runs one LSTM layer over (steps, batch, inputs); gates in the order i, f, g, o."""
    driven = x @ model[f"{name}.input.weight"].T + model[f"{name}.input.bias"]
    recurrent = np.ascontiguousarray(model[f"{name}.recurrent.weight"].T)
    h = c = np.zeros((x.shape[1], WIDTH), np.float32)
    out = np.empty((len(x), x.shape[1], WIDTH), np.float32)
    for t in range(len(x)):
        gates = driven[t] + h @ recurrent
        i, f, o = (_sigmoid(gates[:, k * WIDTH : (k + 1) * WIDTH]) for k in (0, 1, 3))
        c = f * c + i * np.tanh(gates[:, 2 * WIDTH : 3 * WIDTH])
        h = out[t] = o * np.tanh(c)
    return out


def _sigmoid(x: Array) -> Array:
    y: Array = np.float32(0.5) * (np.float32(1) + np.tanh(np.float32(0.5) * x))
    return y


if __name__ == "__main__":
    sys.exit(main())
