"""Updates of the recogniser, learnt as the device will apply them.

The forward pass is the device model: W = scale * clamp(code + step, -127, 127), where codes and
scales are those of the file the device runs and only the integer steps are learnt (straight
through the rounding, Bengio et al. 2013). A sparse update prunes its steps gradually (Zhu and
Gupta 2017) by Fisher saliency |u| * sqrt(v), v being Adam's second moment; a hashed update learns
bucket values through the very hash that the device computes (HashedNets, Chen et al. 2015).
Biases and scales stay as they are. Old data is replayed so that old words do not get worse.
"""

import math
import random
from collections.abc import Iterator
from copy import deepcopy
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from demo.speech.corpora import Sample
from demo.speech.model_file import layout, read_tensors
from demo.speech.train import CLIP, Net, batches, ctc, read_net, tensors
from neural_diff.hashed import locate, region_seed

LOW, HIGH = -127, 127
BUCKET_SHARE = 0.105
BUCKETS_MIN = 64
STRETCH = 0.12
LEARNING_RATE_END = 0.05
PRUNE_FROM, PRUNE_UNTIL = 0.15, 0.70
REMASKS = 50
ADAM = (0.9, 0.999, 1e-12)

Batches = Iterator[list[Sample]]


@dataclass
class DeviceModel:
    """A model file in torch: frozen codes and scales of all weights as two flat vectors."""

    net: Net
    names: list[str]
    codes: Tensor
    scales: Tensor

    @classmethod
    def read(cls, path: Path) -> "DeviceModel":
        """Reads a model file."""
        raw, net = read_tensors(path), read_net(path)
        names = sorted(n for n, (kind, _) in layout().items() if kind == "int8")
        codes = torch.cat([torch.tensor(raw[n].astype(np.float32)).flatten() for n in names])
        scales = [np.repeat(raw[f"{n}_scale"], raw[n].shape[1]) for n in names]
        return cls(net, names, codes, torch.from_numpy(np.concatenate(scales)))

    def changed(self, steps: Tensor) -> Tensor:
        """Returns all codes after a change."""
        return (self.codes + steps).clamp(LOW, HIGH)

    def show(self, codes: Tensor) -> None:
        """Puts codes into the network as the device would dequantise them."""
        for parameter, part in zip(
            self._parameters(), self._split(codes * self.scales), strict=True
        ):
            parameter.data.copy_(part.view_as(parameter))

    def gradient(self) -> Tensor:
        """Returns the gradient per step of every weight."""
        parts = [p.grad.flatten() for p in self._parameters() if p.grad is not None]
        return torch.cat(parts) * self.scales

    def tensors(self, codes: Tensor) -> dict[str, NDArray[np.int8]]:
        """Returns codes as the int8 tensors of a model file."""
        shapes, parts = layout(), self._split(codes)
        return {
            n: part.numpy().astype(np.int8).reshape(shapes[n][1])
            for n, part in zip(self.names, parts, strict=True)
        }

    def sizes(self) -> list[int]:
        """Returns the number of weights of every tensor."""
        return [math.prod(layout()[n][1]) for n in self.names]

    def _parameters(self) -> list[torch.nn.Parameter]:
        return [self.net.named()[n] for n in self.names]

    def _split(self, flat: Tensor) -> tuple[Tensor, ...]:
        return torch.split(flat, self.sizes())


class Sparse:
    """Steps of a few weights only; which ones is found while training."""

    def __init__(self, count: int, share: float) -> None:
        """Starts with all `count` weights free; at most `share` of them remain."""
        self.values, self.free = torch.zeros(count), torch.ones(count)
        self.share, self.remasked = share, 0

    def steps(self) -> Tensor:
        """Returns the integer step of every weight."""
        return self.free * self.values.round()

    def gradient(self, per_step: Tensor) -> Tensor:
        """Passes on gradients of the weights that are free."""
        return per_step * self.free

    def after(self, progress: float, second_moment: Tensor) -> None:
        """Prunes on a cubic schedule, fifty times, and then leaves the mask alone."""
        part = min(1.0, (progress - PRUNE_FROM) / (PRUNE_UNTIL - PRUNE_FROM))
        if part < 0 or math.floor(part * REMASKS) <= self.remasked:
            return
        self.remasked = math.floor(part * REMASKS)
        share = self.share + (1 - self.share) * (1 - part) ** 3
        saliency = self.values.abs() * second_moment.sqrt() * (self.values.abs() >= 0.5)
        kept = torch.topk(saliency, int(share * len(saliency))).indices
        self.free = torch.zeros_like(self.free)
        self.free[kept] = 1.0


class Hashed:
    """One step per bucket; the hash says which weights share it, and with which sign."""

    def __init__(self, model: DeviceModel, patch_seed: bytes) -> None:
        """Starts with empty buckets, about about a tenth as many as weights."""
        self.counts = [max(BUCKETS_MIN, round(n * BUCKET_SHARE)) for n in model.sizes()]
        self.values, self.free = torch.zeros(sum(self.counts)), torch.ones(1)
        places, signs, offset = [], [], 0
        for name, size, count in zip(model.names, model.sizes(), self.counts, strict=True):
            place, sign, _ = locate(region_seed(patch_seed, name), 0, size, count, 0)
            places.append(torch.from_numpy(place) + offset)
            signs.append(torch.from_numpy(sign))
            offset += count
        self.place, self.sign = torch.cat(places), torch.cat(signs)

    def steps(self) -> Tensor:
        """Returns the integer step of every weight."""
        return self.values.round()[self.place] * self.sign

    def gradient(self, per_step: Tensor) -> Tensor:
        """Adds up the gradients of the weights of each bucket."""
        return torch.zeros_like(self.values).index_add(0, self.place, per_step * self.sign)

    def after(self, progress: float, second_moment: Tensor) -> None:
        """Has nothing to prune."""

    def buckets(self, names: list[str]) -> dict[str, NDArray[np.int16]]:
        """Returns the bucket values of every tensor."""
        parts = self.values.round().numpy().astype(np.int16)
        cut = np.split(parts, np.cumsum(self.counts)[:-1])
        return dict(zip(names, cut, strict=True))


@dataclass(frozen=True)
class Plan:
    """How an update is trained.

    `rate` is in quantisation steps per iteration. The first `fresh` samples of a batch are new to
    the model; on the others it is also held to what it said before, with weight `hold` against
    the CTC loss (distillation, Li and Hoiem 2016).
    """

    steps: int
    rate: float
    fresh: int
    hold: float


def learn(
    model: DeviceModel,
    change: Sparse | Hashed,
    data: Batches,
    plan: Plan,
    mask: random.Random | None = None,
) -> None:
    """Trains a change with Adam (Kingma and Ba 2015), the rate falling to 5 % along a cosine.

    With `mask`, features are masked and stretched at random.
    """
    model.show(model.codes)
    teacher = deepcopy(model.net)
    first, second = torch.zeros_like(change.values), torch.zeros_like(change.values)
    b1, b2, epsilon = ADAM
    losses: list[float] = []
    for step in range(1, plan.steps + 1):
        model.show(model.changed(change.steps()))
        batch = next(data)
        x, lengths = tensors(model.net, batch, mask, STRETCH)
        model.net.zero_grad()
        scores = model.net(x)
        loss = ctc(scores, lengths, batch)
        if plan.fresh < len(batch):
            old = slice(plan.fresh, None)
            loss = loss + plan.hold * drift(teacher, x[:, old], scores[:, old], lengths[old])
        torch.autograd.backward(loss)
        torch.nn.utils.clip_grad_norm_(model.net.parameters(), CLIP)
        gradient = change.gradient(model.gradient())
        first.mul_(b1).add_(gradient, alpha=1 - b1)
        second.mul_(b2).addcmul_(gradient, gradient, value=1 - b2)
        fade = (1 + math.cos(math.pi * step / plan.steps)) / 2
        rate = plan.rate * (LEARNING_RATE_END + (1 - LEARNING_RATE_END) * fade)
        scaled = (second / (1 - b2**step)).sqrt() + epsilon
        change.values -= rate * (first / (1 - b1**step) / scaled) * change.free
        change.after(step / plan.steps, second)
        losses.append(loss.item())
        if step % 250 == 0:
            print(f"  step {step}: loss {np.mean(losses[-250:]):.4f}", flush=True)


def drift(teacher: Net, x: Tensor, scores: Tensor, lengths: Tensor) -> Tensor:
    """Returns the mean Kullback-Leibler divergence per step from what the teacher says."""
    with torch.no_grad():
        wanted = teacher(x).log_softmax(-1)
    valid = torch.arange(len(x))[:, None] < lengths[None, :]
    each: Tensor = (wanted.exp() * (wanted - scores.log_softmax(-1))).sum(-1)
    return each[valid].mean()


def batches_mixed(parts: list[tuple[list[Sample], int]], rng: random.Random) -> Batches:
    """Yields batches for ever that take so many samples of each list."""
    streams = [batches_of(data, count, rng) for data, count in parts]
    while True:
        yield [sample for stream in streams for sample in next(stream)]


def batches_of(data: list[Sample], size: int, rng: random.Random) -> Batches:
    """Yields batches of one list for ever."""
    while True:
        yield from batches(data, rng, size)
