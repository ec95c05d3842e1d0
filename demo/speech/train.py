"""The base model: trained in float with CTC, then quantised to int8 row by row.

CTC with a unidirectional network likes to settle on a stock prefix emitted at the first frame;
for the first epochs everything but blank is therefore forbidden before speech begins.
"""

import math
import random
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from demo.speech.corpora import BASE_COPIES, SEED, Sample, samples
from demo.speech.features import BANDS, Array
from demo.speech.model_file import (
    LAYERS,
    STACK,
    STRIDE,
    SYMBOLS,
    WIDTH,
    load_model,
    read_tensors,
    write_tensors,
)
from demo.speech.recogniser import read_greedily, stacked
from device_agent.scoring import word_errors

BATCH = 16
WEIGHT_DECAY = 1e-4
CLIP = 1.0
FORBIDDEN = -30.0


@dataclass(frozen=True)
class Round:
    """One cycle of the learning rate; the next starts from the file that this one wrote."""

    epochs: int
    rate: float
    onset_epochs: int
    mask_from_epoch: int
    stretch: float


ROUNDS = (Round(30, 3e-3, 4, 5, 0.0), Round(16, 2e-3, 0, 0, 0.12))


class Net(nn.Module):
    """The recogniser in torch: two LSTM layers with one bias each, and a linear output."""

    def __init__(self, mean: Array, scale: Array) -> None:
        """Starts from random weights; mean and scale normalise the 40 bands."""
        super().__init__()
        self.lstm = nn.LSTM(STACK * BANDS, WIDTH, LAYERS)
        self.out = nn.Linear(WIDTH, len(SYMBOLS))
        self.mean, self.scale = mean, scale
        for layer in range(LAYERS):
            idle = getattr(self.lstm, f"bias_hh_l{layer}")
            idle.requires_grad_(False).zero_()
            getattr(self.lstm, f"bias_ih_l{layer}").data[WIDTH : 2 * WIDTH] = 1.0  # remember

    def forward(self, x: Tensor) -> Tensor:
        """Maps (steps, batch, 120) to log-probabilities (steps, batch, symbols) before softmax."""
        scores: Tensor = self.out(self.lstm(x)[0])
        return scores

    def named(self) -> dict[str, nn.Parameter]:
        """Returns the parameters by their names in the model file."""
        pairs = {f"output.{part}": getattr(self.out, part) for part in ("weight", "bias")}
        for k in range(LAYERS):
            pairs[f"layer{k}.input.weight"] = getattr(self.lstm, f"weight_ih_l{k}")
            pairs[f"layer{k}.recurrent.weight"] = getattr(self.lstm, f"weight_hh_l{k}")
            pairs[f"layer{k}.input.bias"] = getattr(self.lstm, f"bias_ih_l{k}")
        return pairs


def batches(data: list[Sample], rng: random.Random, size: int) -> Iterator[list[Sample]]:
    """Yields batches of utterances of similar length, in random order."""
    order = list(data)
    rng.shuffle(order)
    window = size * 32
    cut = []
    for start in range(0, len(order), window):
        part = sorted(order[start : start + window], key=lambda s: len(s.features))
        cut += [part[k : k + size] for k in range(0, len(part) - size + 1, size)]
    rng.shuffle(cut)
    yield from cut


def tensors(
    net: Net, batch: list[Sample], mask: random.Random | None = None, stretch: float = 0.0
) -> tuple[Tensor, Tensor]:
    """Stacks a batch into (steps, batch, 120) and the number of steps of each utterance.

    With `mask`, hides random bands and times (SpecAugment, Park et al. 2019) and stretches the
    band axis by up to `stretch`, as another throat would.
    """
    inputs = []
    for sample in batch:
        x = (sample.features.astype(np.float32) - net.mean) * net.scale
        if mask is not None:
            if stretch:
                x = stretched(x, 1 + mask.uniform(-stretch, stretch))
            for _ in range(2):
                low, wide = mask.randrange(BANDS), mask.randrange(7)
                x[:, low : low + wide] = 0
                begin, long = mask.randrange(len(x)), mask.randrange(10)
                x[begin : begin + long] = 0
        inputs.append(torch.from_numpy(stacked(x)))
    return nn.utils.rnn.pad_sequence(inputs), torch.tensor([len(x) for x in inputs])


def stretched(x: Array, factor: float) -> Array:
    """Reads the bands of (frames, 40) features at `factor` times their place."""
    place = np.minimum(np.arange(BANDS) * factor, BANDS - 1)
    below = np.minimum(place.astype(int), BANDS - 2)
    part = (place - below).astype(np.float32)
    result: Array = x[:, below] * (1 - part) + x[:, below + 1] * part
    return result


def ctc(scores: Tensor, steps: Tensor, batch: list[Sample], force_onset: bool = False) -> Tensor:
    """Returns the mean CTC loss of a batch, per symbol."""
    if force_onset:
        onsets = torch.tensor([s.onset // STRIDE for s in batch])
        early = torch.arange(len(scores))[:, None] < onsets[None, :]
        penalty = torch.zeros(*early.shape, len(SYMBOLS))
        penalty[..., 1:] = early[..., None] * FORBIDDEN
        scores = scores + penalty
    targets = [torch.tensor([SYMBOLS.index(c) for c in s.text]) for s in batch]
    return nn.functional.ctc_loss(
        scores.log_softmax(-1), torch.cat(targets), steps, torch.tensor([len(t) for t in targets])
    )


def dev_wer(net: Net, data: list[Sample]) -> float:
    """Returns the word error rate of the torch module on a list of samples."""
    errors = words = 0
    with torch.no_grad():
        for start in range(0, len(data), 100):
            part = data[start : start + 100]
            x, steps = tensors(net, part)
            for sample, text in zip(
                part, read_greedily(net(x).numpy(), steps.tolist()), strict=True
            ):
                found = word_errors(sample.text.split(), text.split())
                errors, words = errors + found.total, words + found.ref_words
    return errors / words


def train_base(build: Path, path: Path) -> None:
    """Trains the base model from the seed, round after round, and writes it to `path`."""
    net = None
    for number, plan in enumerate(ROUNDS):
        stored = build / f"base-round-{number}.safetensors"
        if not stored.exists():
            train_round(build, stored, number, plan, net)
        net = read_net(stored)
    facts = {
        "recogniser": "log-mel 40, LSTM 2 x 192, CTC",
        "seed": str(SEED),
        "epochs": "+".join(str(plan.epochs) for plan in ROUNDS),
        "torch": torch.__version__,
        "numpy": np.__version__,
        "python": sys.version.split()[0],
        "dev_wer": f"{dev_wer(read_net(stored), samples(build, 'dev-old')):.4f}",
    }
    write_tensors(path, read_tensors(stored), facts)


def train_round(build: Path, path: Path, number: int, plan: Round, net: Net | None) -> None:
    """Trains for one cycle of the learning rate, from random weights if `net` is None."""
    torch.manual_seed(SEED + number)
    torch.set_num_threads(1)
    rng = random.Random(SEED + number)
    copies, dev = samples(build, "train-old"), samples(build, "dev-old")
    if net is None:
        every = np.concatenate([s.features for s in copies[:2000]]).astype(np.float32)
        net = Net(every.mean(0), 1 / every.std(0))
    utterances = len(copies) // BASE_COPIES
    optimiser = torch.optim.AdamW(
        [p for p in net.parameters() if p.requires_grad], plan.rate, weight_decay=WEIGHT_DECAY
    )
    schedule = torch.optim.lr_scheduler.OneCycleLR(
        optimiser, plan.rate, total_steps=plan.epochs * (utterances // BATCH + 1), pct_start=0.15
    )
    started = time.monotonic()
    for epoch in range(plan.epochs):
        losses = []
        for batch in batches(rng.sample(copies, utterances), rng, BATCH):
            mask = rng if epoch >= plan.mask_from_epoch else None
            x, lengths = tensors(net, batch, mask, plan.stretch)
            loss = ctc(net(x), lengths, batch, epoch < plan.onset_epochs)
            optimiser.zero_grad()
            torch.autograd.backward(loss)
            nn.utils.clip_grad_norm_(net.parameters(), CLIP)
            optimiser.step()
            schedule.step()
            losses.append(loss.item())
        if not math.isfinite(losses[-1]):
            raise RuntimeError("training diverged")
        wer, seconds = dev_wer(net, dev), time.monotonic() - started
        print(f"round {number} epoch {epoch + 1}: loss {np.mean(losses):.3f}", end=" ")
        print(f"dev WER {wer:.3f} {seconds:.0f} s", flush=True)
    write_tensors(path, quantised(net), {})


def read_net(path: Path) -> Net:
    """Returns a model file as a network."""
    model = load_model(path)
    net = Net(model["features.mean"], model["features.scale"])
    for name, parameter in net.named().items():
        parameter.data.copy_(torch.from_numpy(np.array(model[name])))
    return net


def quantised(net: Net) -> dict[str, Any]:
    """Returns the tensors of the model file: int8 codes with one float32 scale per row."""
    result: dict[str, Any] = {"features.mean": net.mean, "features.scale": net.scale}
    for name, parameter in net.named().items():
        values = parameter.detach().numpy().astype(np.float32)
        if name.endswith("bias"):
            result[name] = values
        else:
            scale = (np.abs(values).max(axis=1) / 127).astype(np.float32)
            result[name] = np.clip(np.round(values / scale[:, None]), -127, 127).astype(np.int8)
            result[f"{name}_scale"] = scale
    return result
