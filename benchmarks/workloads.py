"""The workloads: pairs of model files, made from seeds, with the least an update can cost.

Files lie in `build/bench/files`, named by a digest of their parameters and of the code that makes
them, so a second run makes nothing.
"""

import hashlib
import json
from collections.abc import Callable
from dataclasses import asdict, dataclass, replace
from functools import cache
from pathlib import Path

import numpy as np

from benchmarks import hashing, laws, models
from benchmarks.models import CODE_MAX, Model, Tensor, Tensors
from benchmarks.rows import FOLDER

FILES = FOLDER / "files"
SPEECH = Path(__file__).parents[1] / "demo" / "speech"
VALUE_SCALE = {"int8": 3.0, "int4": 1.0}  # codes
OFFSET = {"int8": 1.0, "int4": 0.25}  # of the magnitude law
BUCKET_SCALE = 2.0
NOISE = 0.05  # standard deviation of the noise on a float weight, of that of its row
PATCH_SEED = bytes(range(16))


@dataclass(frozen=True)
class Work:
    """One update: by which law how many weights of which model change."""

    name: str
    family: str
    model: Model
    law: str
    density: float = 0.0
    goal: float | None = None  # bytes of the patch against the bound
    quick: bool = False  # measured with all peers even in a quick run
    step: int = 1  # which update in a row, each on top of the one before


@dataclass(frozen=True)
class Built:
    """The files of a workload; `bound_bytes` is None where no law is known."""

    work: Work
    old: Path
    new: Path
    buckets: Path | None
    bound_bytes: float | None
    weights: int
    changed: int


INT8, INT4, FP16, BF16 = Model(), Model(kind="int4"), Model(kind="fp16"), Model(kind="bf16")
LARGE = Model(hidden=1408, outputs=4096)

_GOALS = {
    "uniform": {0.005: 1.015, 0.02: 1.01, 0.1: 1.01},
    "clustered": {0.005: 1.03, 0.02: 1.02, 0.1: 1.02},
    "magnitude": {0.005: 1.03, 0.02: 1.025, 0.1: 1.025},
}

WORKS = [
    *(
        Work(f"int8 {law} {density:.1%}", "int8", INT8, law, density, goal, density == 0.02)
        for law, goals in _GOALS.items()
        for density, goal in goals.items()
    ),
    Work("int4 uniform 2.0%", "int4", INT4, "uniform", 0.02, 1.025, True),
    Work("int4 uniform 10.0%", "int4", INT4, "uniform", 0.1, 1.025),
    Work("int4 clustered 2.0%", "int4", INT4, "clustered", 0.02, 1.05),
    Work("int4 magnitude 10.0%", "int4", INT4, "magnitude", 0.1, 1.025),
    Work("fp16 noise 10.0%", "float", FP16, "noise", 0.1, 1.02),
    Work("bf16 noise 10.0%", "float", BF16, "noise", 0.1, 1.025),
    Work("int8 flips 1.0%", "flips", INT8, "flips", 0.01, 1.015),
    Work("int8 flips 5.0%", "flips", INT8, "flips", 0.05, 1.015),
    Work("int8 flips 20.0%", "flips", INT8, "flips", 0.2, 1.03),
    Work("int8 hashed 2.0%", "hashed", INT8, "hashed", 0.02, 1.02),
    Work("int8 hashed 10.0%", "hashed", INT8, "hashed", 0.1, 1.02),
    Work("78M int8 uniform 2.0%", "large", LARGE, "uniform", 0.02, 1.01),
    Work("another model", "other", INT8, "other"),
    Work("demo sparse", "demo", INT8, "demo sparse", quick=True),
    Work("demo hashed", "demo", INT8, "demo hashed", quick=True),
]
BY_NAME = {work.name: work for work in WORKS}


def chain(length: int) -> list[Work]:
    """Give updates of 2 %, each on top of the one before."""
    first = BY_NAME["int8 uniform 2.0%"]
    return [replace(first, name=f"chain {step}", step=step) for step in range(1, length + 1)]


def build(work: Work) -> Built:
    """Make the files of a workload, or find them."""
    if work.law.startswith("demo"):
        return _demo(work)
    old = _base(work.model) if work.step == 1 else build(replace(work, step=work.step - 1)).new
    if work.law == "other":
        other = _base(replace(work.model, seed=2))
        return Built(work, old, other, None, None, work.model.weights, work.model.weights)
    name = f"{work.model.kind}-{work.law}-{_digest(work.model, work.law, work.density, work.step)}"
    new, facts = FILES / f"{name}.safetensors", FILES / f"{name}.json"
    buckets = FILES / f"{name}.buckets.safetensors" if work.law == "hashed" else None
    if not facts.exists():
        tensors, found = _change(work, buckets)
        models.write_safetensors(new, tensors, models.metadata_of(work.model))
        facts.write_text(json.dumps(found) + "\n")
    found = json.loads(facts.read_text())
    weights = work.model.weights
    return Built(work, old, new, buckets, found["bits"] / 8, weights, found["changed"])


def _demo(work: Work) -> Built:
    """The real updates of the demo's recogniser; nobody knows their law."""
    old, new = SPEECH / "base.safetensors", SPEECH / "updates" / "ledecky.safetensors"
    buckets = None
    if work.law == "demo hashed":
        old, buckets = new, SPEECH / "updates" / "biles.buckets.safetensors"
        FILES.mkdir(parents=True, exist_ok=True)
        new = FILES / "demo-hashed.safetensors"
        new.write_bytes(hashing.hashed_model(old, buckets))
    before, after = (np.fromfile(path, np.uint8) for path in (old, new))
    weights, changed = hashing.weights_of(old), int((before != after).sum())
    return Built(work, old, new, buckets, None, weights, changed)


@cache
def _code_digest() -> str:
    sources = [Path(module.__file__ or "").read_bytes() for module in (laws, models, hashing)]
    return hashlib.sha256(b"".join([*sources, Path(__file__).read_bytes()])).hexdigest()


def _digest(model: Model, *parameters: object) -> str:
    spelled = json.dumps([asdict(model), *parameters, _code_digest()], sort_keys=True)
    return hashlib.sha256(spelled.encode()).hexdigest()[:16]


def _base(model: Model) -> Path:
    FILES.mkdir(parents=True, exist_ok=True)
    path = FILES / f"{model.kind}-base-{_digest(model)}.safetensors"
    if not path.exists():
        tensors: Tensors = {}
        for tensor in models.tensors_of(model):
            tensors |= models.stored(model, tensor, tensor.codes)
        models.write_safetensors(path, tensors, models.metadata_of(model))
    return path


def _change(work: Work, buckets: Path | None) -> tuple[Tensors, dict[str, float]]:
    """Draw the updates up to this one; gives the new tensors and what the last update costs."""
    change = _CHANGES.get(work.law, _sparse)
    if work.law == "flips":
        change = _flips_of(work)
    tensors: Tensors = {}
    drawn_buckets: Tensors = {}
    bits, changed = 0.0, 0
    for tensor in models.tensors_of(work.model):
        codes = tensor.codes
        for step in range(1, work.step + 1):
            before = codes
            rng = laws.generator(asdict(work.model), work.law, work.density, step, tensor.name)
            drawn = change(work, replace(tensor, codes=before), rng)
            codes = drawn.codes
            if buckets:
                drawn_buckets[f"{tensor.name}.buckets"] = ("I16", codes)
                seed = hashing.region_seed(PATCH_SEED, tensor.name)
                codes = hashing.moved(before, drawn.codes, seed, 0, -127, 127)
        bits += drawn.bits
        changed += int((codes != before).sum())
        tensors |= models.stored(work.model, tensor, codes)
    if buckets:
        said = {"patch_seed": PATCH_SEED.hex(), "fraction_bits": "0", "lo": "-127", "hi": "127"}
        models.write_safetensors(buckets, drawn_buckets, said)
    return tensors, {"bits": bits, "changed": changed}


_Change = Callable[[Work, Tensor, np.random.Generator], laws.Drawn]


def _sparse(work: Work, tensor: Tensor, rng: np.random.Generator) -> laws.Drawn:
    old, kind, scale = tensor.codes, work.model.kind, VALUE_SCALE[work.model.kind]
    return laws.sparse(rng, old, work.law, work.density, scale, OFFSET[kind], CODE_MAX[kind])


def _noise(work: Work, tensor: Tensor, rng: np.random.Generator) -> laws.Drawn:
    scale = NOISE * tensor.width / np.sqrt(2)
    return laws.float_noise(rng, tensor.codes, work.model.kind, work.density, scale)


def _buckets(work: Work, tensor: Tensor, rng: np.random.Generator) -> laws.Drawn:
    return laws.buckets(rng, round(work.density * tensor.codes.size), BUCKET_SCALE)


_CHANGES: dict[str, _Change] = {"noise": _noise, "hashed": _buckets}


def _flips_of(work: Work) -> _Change:
    """Find the step of all weights that flips the share asked for; gives its change."""
    scales = [
        np.repeat(tensor.scale, tensor.codes.shape[1] // models.INPUT)
        for tensor in models.tensors_of(work.model)
        if tensor.scale is not None
    ]
    some = np.sort(np.concatenate(scales))[32::64]  # quantiles of the scales of all weights
    low, high = 0.0, float(some.max())
    for _ in range(24):
        step = (low + high) / 2
        flipped = 1 - laws.flip_chances(step / some)[:, 0].mean()
        low, high = (step, high) if flipped < work.density else (low, step)

    def change(work: Work, tensor: Tensor, rng: np.random.Generator) -> laws.Drawn:
        assert tensor.scale is not None
        limit = CODE_MAX[work.model.kind]
        return laws.flips(rng, tensor.codes, step / tensor.scale, -limit, limit)

    return change
