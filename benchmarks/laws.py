"""The laws by which a model's weights change, and what an update costs at least under its law.

Each law draws the new codes from the old ones and gives the exact code length of what it drew:
-log2 P(support, values | old codes), in bits. No code, however clever, is shorter on average: the
law itself is the best model of its own data. What a maker cannot know (how active a row is, where
in its rounding cell a weight was) is integrated out, not given for free.
"""

import hashlib
import math
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

Codes = NDArray[np.integer]
Floats = NDArray[np.float64]

BLOCK = 32  # clustered changes come in blocks of one row
INSIDE = 0.4  # share of changed weights in an active block
MAGNITUDE_POWER = 1.5
FLIP_STEPS = 12  # a requantised weight moves by fewer codes than this


@dataclass(frozen=True)
class Drawn:
    """New codes and their exact code length; `support_bits` is the part that says where."""

    codes: Codes
    bits: float
    support_bits: float = 0.0


def generator(*parts: object) -> np.random.Generator:
    """Give the random numbers that belong to a name, the same ones each time."""
    digest = hashlib.sha256("|".join(map(str, parts)).encode()).digest()
    return np.random.Generator(np.random.SFC64(list(digest)))


def uniform_support(
    rng: np.random.Generator, old: Codes, density: float
) -> tuple[NDArray[np.bool_], float]:
    """Every weight changes with the same probability."""
    mask = rng.random(old.shape, np.float32) < density
    count = int(mask.sum())
    bits = -count * math.log2(density) - (old.size - count) * math.log2(1 - density)
    return mask, bits


def clustered_support(
    rng: np.random.Generator, old: Codes, density: float
) -> tuple[NDArray[np.bool_], float]:
    """Blocks of 32 in a row are active or not, rows differ (log-normal); active ones change 40 %.

    The activity of a row is not known: the probability of a row is the mean over all activities.
    """
    rows, blocks = old.shape[0], old.shape[1] // BLOCK
    grid = np.linspace(-8, 8, 801)
    weight = np.exp(-grid * grid / 2)
    weight /= weight.sum()
    mean = density / INSIDE
    for _ in range(40):  # what the cut at 1 takes from the very active rows, all rows give back
        mean *= density / INSIDE / float(weight @ np.minimum(mean * np.exp(grid), 1.0))
    share = np.minimum(mean * np.exp(rng.standard_normal((rows, 1))), 1.0)
    active = rng.random((rows, blocks)) < share
    inside = rng.random((rows, blocks, BLOCK), np.float32) < INSIDE
    mask = inside & active[:, :, None]
    counts = mask.sum(axis=2)
    touched = (counts > 0).sum(axis=1)
    ways = np.arange(blocks + 1)[:, None]  # a row with that many touched blocks
    alive = np.minimum(mean * np.exp(grid), 1.0)
    silent = 1 - alive * (1 - (1 - INSIDE) ** BLOCK)
    with np.errstate(divide="ignore", under="ignore"):
        chance = (weight * alive**ways * silent ** (blocks - ways)).sum(axis=1)
    bits = -float(np.log2(chance[touched]).sum())
    ones, cells = int(counts.sum()), int(touched.sum()) * BLOCK
    bits -= ones * math.log2(INSIDE) + (cells - ones) * math.log2(1 - INSIDE)
    return mask.reshape(old.shape), bits


def magnitude_support(
    rng: np.random.Generator, old: Codes, density: float, offset: float
) -> tuple[NDArray[np.bool_], float]:
    """Large weights change more often: P grows with (|code| + offset) to the power 1.5."""
    table, place = _by_magnitude(old)
    weight = (table + offset) ** MAGNITUDE_POWER
    counts = np.bincount(place.ravel(), minlength=len(table))
    chance = np.minimum(density * weight / ((weight * counts).sum() / old.size), 1.0)
    mask = rng.random(old.shape, np.float32) < chance.astype(np.float32)[place]
    changed = np.bincount(place[mask], minlength=len(table))
    with np.errstate(divide="ignore", invalid="ignore"):
        bits = np.where(changed, changed * np.log2(chance), 0)
        bits += np.where(counts > changed, (counts - changed) * np.log2(1 - chance), 0)
    return mask, -float(bits.sum())


def sparse(
    rng: np.random.Generator,
    old: Codes,
    law: str,
    density: float,
    scale: float,
    offset: float,
    limit: int,
) -> Drawn:
    """Change a share of the codes by two-sided geometric steps, within [-limit, limit].

    Where is said by `law`: uniform, clustered or magnitude; the last also takes larger steps at
    larger weights.
    """
    scales = np.broadcast_to(scale, old.shape)
    if law == "magnitude":
        mask, where = magnitude_support(rng, old, density, offset)
        scales = magnitude_scale(old, scale)
    else:
        support = clustered_support if law == "clustered" else uniform_support
        mask, where = support(rng, old, density)
    values = geometric_values(rng, old[mask], scales[mask], -limit, limit)
    new = old.copy()
    new[mask] = values.codes
    return Drawn(new, where + values.bits, where)


def magnitude_scale(old: Codes, scale: float) -> Floats:
    """Give the value scale of each weight: `scale` on average, half of it growing with |code|."""
    size = np.abs(old.astype(np.float64))
    return (size / size.mean() + 1) * (scale / 2)


def _by_magnitude(old: Codes) -> tuple[Floats, NDArray[np.intp]]:
    place = np.abs(old.astype(np.intp))
    return np.arange(int(place.max()) + 1, dtype=np.float64), place


def geometric_values(
    rng: np.random.Generator, old: Codes, scale: Floats | float, lo: int, hi: int
) -> Drawn:
    """Move every code given by a two-sided geometric step, P(d) in proportion to exp(-|d|/scale).

    A step is never zero and never leaves [lo, hi]; the law is normalised over what is possible.
    """
    ratio = np.broadcast_to(np.exp(-1 / np.asarray(scale, np.float64)), old.shape)
    room_up, room_down = hi - old.astype(np.int64), old.astype(np.int64) - lo
    mass_up, mass_down = _mass(ratio, room_up), _mass(ratio, room_down)
    up = rng.random(old.shape) * (mass_up + mass_down) < mass_up
    room = np.where(up, room_up, room_down)
    spread = rng.random(old.shape) * (1 - ratio**room)
    step = 1 + np.floor(np.log1p(-spread) / np.log(ratio)).astype(np.int64)
    step = np.clip(step, 1, room)
    bits = np.log2(mass_up + mass_down) - step * np.log2(ratio)
    return Drawn((old + np.where(up, step, -step)).astype(old.dtype), float(bits.sum()))


def _mass(ratio: Floats, room: NDArray[np.int64]) -> Floats:
    return ratio * (1 - ratio**room) / (1 - ratio)


def buckets(rng: np.random.Generator, count: int, scale: float) -> Drawn:
    """Draw the buckets of a hashed change: two-sided geometric, zero included."""
    ratio = math.exp(-1 / scale)
    drawn = rng.geometric(1 - ratio, count) - rng.geometric(1 - ratio, count)
    bits = -count * math.log2((1 - ratio) / (1 + ratio)) - float(np.abs(drawn).sum()) * math.log2(
        ratio
    )
    return Drawn(drawn.astype(np.int16), bits)


def flip_chances(sigma: Floats) -> Floats:
    """Give P(a code moves by d) for d = 0, 1, ... (columns), per Gaussian step sigma (rows).

    A weight lies anywhere in its rounding cell; `sigma` is in codes. In closed form with
    G(x) = x Phi(x) + phi(x): P(d) = sigma [G((d+1)/sigma) - 2 G(d/sigma) + G((d-1)/sigma)];
    reflected, so that nothing cancels.
    """
    away = np.arange(FLIP_STEPS + 1) / sigma[:, None]
    tail = 0.5 * _erfc(away / math.sqrt(2))
    loss = np.exp(-away * away / 2) / math.sqrt(2 * math.pi) - away * tail  # G(-away)
    loss = np.maximum(loss, 0.0)
    chances = np.empty((len(sigma), FLIP_STEPS))
    chances[:, 1:] = sigma[:, None] * (loss[:, 2:] - 2 * loss[:, 1:-1] + loss[:, :-2])
    chances[:, 1:] = np.maximum(chances[:, 1:], 1e-300)
    chances[:, 0] = 1 - 2 * chances[:, 1:].sum(axis=1)
    return chances


_erfc = np.vectorize(math.erfc, otypes=[np.float64])


def flips(rng: np.random.Generator, old: Codes, sigma: Floats, lo: int, hi: int) -> Drawn:
    """Requantise after a Gaussian step with frozen scales; `sigma` is in codes, one a row."""
    place = rng.random(old.shape) - 0.5
    step = np.rint(place + sigma[:, None] * rng.standard_normal(old.shape)).astype(np.int64)
    new = np.clip(old + step, lo, hi)
    moved = np.abs(new - old)
    chances = flip_chances(sigma)
    beyond = np.cumsum(chances[:, ::-1], axis=1)[:, ::-1].copy()  # moved so far or farther
    beyond[:, 0] = 1 - beyond[:, 1]  # at the end of the range: anything but inwards
    row = np.broadcast_to(np.arange(len(old))[:, None], old.shape)
    at_end = ((new == hi) & (new >= old)) | ((new == lo) & (new <= old))
    bits = -np.log2(chances)[row, moved]
    bits[at_end] = -np.log2(beyond[row[at_end], moved[at_end]])
    return Drawn(new.astype(old.dtype), float(bits.sum()))


def half_to_float(raw: NDArray[np.uint16], kind: str) -> Floats:
    """Give the values of fp16 or bf16 numbers."""
    if kind == "fp16":
        return raw.view(np.float16).astype(np.float64)
    return (raw.astype(np.uint32) << 16).view(np.float32).astype(np.float64)


def float_to_half(values: Floats, kind: str) -> NDArray[np.uint16]:
    """Round to the nearest fp16 or bf16 number, ties to even."""
    if kind == "fp16":
        return values.astype(np.float16).view(np.uint16)
    bits = values.astype(np.float32).view(np.uint32)
    return ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)


def _cell_ends(raw: NDArray[np.uint16], kind: str) -> tuple[Floats, Floats]:
    """Give the ends of the interval that rounds to each number."""
    order = np.where(raw >= 0x8000, -(raw & 0x7FFF).astype(np.int32) - 1, raw.astype(np.int32))
    here = half_to_float(raw, kind)
    ends = []
    for side in (-1, 1):
        near = order + side
        bits = np.where(near < 0, 0x8000 | (-near - 1), near).astype(np.uint16)
        ends.append((here + half_to_float(bits, kind)) / 2)
    return ends[0], ends[1]


def float_noise(
    rng: np.random.Generator,
    raw: NDArray[np.uint16],
    kind: str,
    density: float,
    scale: Floats,
) -> Drawn:
    """Add Laplace noise (`scale`, one a row) to a share of the weights and round again.

    Noise that rounds to the same number is no change, so P(same) holds both. The probability of a
    number is the mass of its rounding cell.
    """
    chosen = rng.random(raw.shape, np.float32) < density
    old, scale = half_to_float(raw, kind), np.broadcast_to(scale[:, None], raw.shape)
    new = raw.copy()
    noisy = old[chosen] + rng.laplace(0, 1, int(chosen.sum())) * scale[chosen]
    new[chosen] = float_to_half(noisy, kind)
    below, above = _cell_ends(new, kind)
    mass = density * laplace_mass((below - old) / scale, (above - old) / scale)
    mass[new == raw] += 1 - density
    return Drawn(new, -float(np.log2(mass).sum()))


def laplace_mass(below: Floats, above: Floats) -> Floats:
    """Give the mass of a standard Laplace variable in [below, above], exact in the tails too."""
    left, right = np.exp(-np.abs(below)) / 2, np.exp(-np.abs(above)) / 2
    return np.where(below >= 0, left - right, np.where(above <= 0, right - left, 1 - left - right))
