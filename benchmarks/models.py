"""Model files to measure with: five LSTM layers and an output, made from a seed, as safetensors.

The weights of a row are normal; the width of a row is log-normal around that of its tensor. They
are rounded to int8 (one scale a row), int4 (one fp16 scale per 32 weights), fp16 or bf16.
"""

import json
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from benchmarks.laws import Codes, Floats, float_to_half, generator

LAYERS = 5
INPUT = 192
GROUP = 32  # weights under one scale of an int4 model
INT4_KEY = "fleetdiff.int4"
CODE_MAX = {"int8": 127, "int4": 7}
# What the safetensors writer sorts by: the alignment falls, then the name rises.
_ALIGNMENT = {"F32": 4, "F16": 2, "BF16": 2, "I16": 2, "I8": 1, "U8": 1}
_NUMPY = {"F32": "<f4", "F16": "<u2", "BF16": "<u2", "I16": "<i2", "I8": "i1", "U8": "u1"}

Tensors = dict[str, tuple[str, NDArray[np.generic]]]
"""Name -> safetensors dtype and array; fp16 and bf16 as their bits."""


@dataclass(frozen=True)
class Model:
    """What a base model is made from."""

    hidden: int = 768
    outputs: int = 2740
    kind: str = "int8"
    seed: int = 1

    @property
    def shapes(self) -> dict[str, tuple[int, int]]:
        """The weights by name: rows and columns."""
        rows, shapes = 4 * self.hidden, {}
        for layer in range(LAYERS):
            shapes[f"encoder.lstm.weight_hh_l{layer}"] = (rows, self.hidden)
            shapes[f"encoder.lstm.weight_ih_l{layer}"] = (rows, self.hidden if layer else INPUT)
        return shapes | {"output.weight": (self.outputs, self.hidden)}

    @property
    def weights(self) -> int:
        """How many weights the model has."""
        return sum(rows * columns for rows, columns in self.shapes.values())


@dataclass(frozen=True)
class Tensor:
    """The weights of one tensor as they are stored, and what was known when they were made."""

    name: str
    codes: Codes  # int8 and int4: codes; fp16 and bf16: bits
    width: Floats  # standard deviation of each row
    scale: Floats | None  # of each row (int8) or each group (int4)


def tensors_of(model: Model) -> Iterator[Tensor]:
    """Make the weights of a model, tensor by tensor."""
    for name, (rows, columns) in model.shapes.items():
        rng = generator("model", model.seed, model.hidden, name)
        width = rng.uniform(0.03, 0.08) * np.exp(0.25 * rng.standard_normal(rows))
        weights = rng.standard_normal((rows, columns), np.float32)
        weights *= width[:, None].astype(np.float32)
        if model.kind not in CODE_MAX:
            codes: Codes = float_to_half(weights.astype(np.float64), model.kind)
            yield Tensor(name, codes, width, None)
            continue
        grouped = weights if model.kind == "int8" else weights.reshape(-1, GROUP)
        scale = np.abs(grouped).max(axis=1) / CODE_MAX[model.kind]
        if model.kind == "int4":
            scale = scale.astype(np.float16).astype(np.float32)
        codes = np.rint(grouped / scale[:, None])
        codes = codes.clip(-CODE_MAX[model.kind], CODE_MAX[model.kind]).astype(np.int8)
        yield Tensor(name, codes.reshape(rows, columns), width, scale.astype(np.float64))


def stored(model: Model, tensor: Tensor, codes: Codes) -> Tensors:
    """Give what a file holds for a tensor with these codes.

    Nothing else depends on the codes, so a changed model differs in its weights alone.
    """
    name, rows = tensor.name, len(codes)
    if tensor.scale is None:
        return {name: ("F16" if model.kind == "fp16" else "BF16", codes)}
    if model.kind == "int4":
        scale = tensor.scale.astype(np.float16).view(np.uint16).reshape(rows, -1)
        return {name: ("U8", packed(codes)), f"{name}_scale": ("F16", scale)}
    bias = generator("bias", model.seed, name).standard_normal(rows, np.float32) / 8
    return {
        name: ("I8", codes),
        f"{name}_scale": ("F32", tensor.scale.astype(np.float32)),
        name.replace("weight", "bias"): ("F32", bias),
    }


def packed(codes: Codes) -> NDArray[np.uint8]:
    """Pack two 4-bit codes into a byte, the first in the low half."""
    halves = codes.reshape(len(codes), -1, 2).view(np.uint8) & 15
    return halves[:, :, 0] | halves[:, :, 1] << 4


def metadata_of(model: Model) -> dict[str, str]:
    """Give the metadata of a model file: safetensors has no int4, so it says which bytes are."""
    return {INT4_KEY: ",".join(sorted(model.shapes))} if model.kind == "int4" else {}


def write_safetensors(path: Path, tensors: Tensors, metadata: dict[str, str]) -> None:
    """Write a file as the safetensors writer does: larger alignment first, then by name."""
    names = sorted(tensors, key=lambda name: (-_ALIGNMENT[tensors[name][0]], name))
    header: dict[str, object] = {"__metadata__": metadata} if metadata else {}
    end = 0
    for name in names:
        dtype, array = tensors[name]
        header[name] = {
            "dtype": dtype,
            "shape": list(array.shape),
            "data_offsets": [end, end := end + array.nbytes],
        }
    spelled = json.dumps(header, separators=(",", ":")).encode()
    spelled += b" " * (-len(spelled) % 8)
    part = path.with_name(f"{path.name}.part")
    with part.open("wb") as file:
        file.write(len(spelled).to_bytes(8, "little") + spelled)
        for name in names:
            dtype, array = tensors[name]
            file.write(np.ascontiguousarray(array.astype(_NUMPY[dtype], copy=False)).data)
    part.replace(path)
