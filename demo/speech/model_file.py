"""The model file: safetensors with int8 weights, one float32 scale per row, float32 biases.

The reader checks every byte of the layout and refuses what does not fit. The writer orders
tensors by name, so the same tensors and metadata always give the same bytes.
"""

import json
from pathlib import Path
from typing import Any

import numpy as np

from demo.speech.features import BANDS, Array

SYMBOLS = "_ abcdefghijklmnopqrstuvwxyz'"  # the first is CTC's blank
STACK, STRIDE = 3, 2
WIDTH = 192
LAYERS = 2
HEADER_BYTES_MAX = 1 << 20
MODEL_BYTES_MAX = 16 << 20
KINDS = {"I8": "<i1", "I16": "<i2", "F32": "<f4"}


class BadModel(ValueError):
    """A model file is damaged, or its tensors are not those of this recogniser."""


def load_model(path: Path) -> dict[str, Array]:
    """Reads a model file and returns its weights as float32, int8 rows times their scales."""
    raw = read_tensors(path)
    expected = layout()
    found = {name: (str(t.dtype), t.shape) for name, t in raw.items()}
    if found != expected:
        wrong = sorted(n for n in {*found, *expected} if found.get(n) != expected.get(n))
        n = wrong[0]
        raise BadModel(f"{path}: tensor {n} is {found.get(n)}, expected {expected.get(n)}")
    for name, tensor in raw.items():
        if tensor.dtype == np.float32 and not np.isfinite(tensor).all():
            raise BadModel(f"{path}: tensor {name} holds values that are not finite")
    model = {name: t for name, t in raw.items() if t.dtype == np.float32}
    for name in raw.keys() - model.keys():
        model[name] = raw[name].astype(np.float32) * raw[f"{name}_scale"][:, None]
    return model


def layout() -> dict[str, tuple[str, tuple[int, ...]]]:
    """Returns the dtype and shape of every tensor of a model file."""
    shapes: dict[str, tuple[int, ...]] = {"output.weight": (len(SYMBOLS), WIDTH)}
    for layer in range(LAYERS):
        inputs = WIDTH if layer else STACK * BANDS
        shapes[f"layer{layer}.input.weight"] = (4 * WIDTH, inputs)
        shapes[f"layer{layer}.recurrent.weight"] = (4 * WIDTH, WIDTH)
    tensors: dict[str, tuple[str, tuple[int, ...]]] = {}
    for name, shape in shapes.items():
        tensors[name] = ("int8", shape)
        tensors[f"{name}_scale"] = ("float32", shape[:1])
        if "recurrent" not in name:
            tensors[name.replace("weight", "bias")] = ("float32", shape[:1])
    return tensors | {f"features.{k}": ("float32", (BANDS,)) for k in ("mean", "scale")}


def read_tensors(path: Path) -> dict[str, Any]:
    """Reads the tensors of a safetensors file of int8, int16 and float32; the whole file counts."""
    try:
        data = path.read_bytes() if path.stat().st_size <= MODEL_BYTES_MAX else b""
        size = int.from_bytes(data[:8], "little")
        if len(data) < 8 or size > min(HEADER_BYTES_MAX, len(data) - 8):
            raise BadModel(
                f"{path}: not a safetensors file, or longer than {MODEL_BYTES_MAX} bytes"
            )
        header = json.loads(data[8 : 8 + size])
        header.pop("__metadata__", None)
        body, end, tensors = memoryview(data)[8 + size :], 0, {}
        for name, t in sorted(header.items(), key=lambda item: item[1]["data_offsets"]):
            begin, stop = t["data_offsets"]
            values = np.frombuffer(body[begin:stop], KINDS[t["dtype"]]).reshape(t["shape"])
            if begin != end or values.nbytes != stop - begin:
                raise BadModel(f"{path}: tensor {name} does not fit its place in the file")
            end, tensors[name] = stop, values
        if end != len(body):
            raise BadModel(f"{path}: {len(body) - end} bytes after the last tensor")
    except OSError as error:
        raise BadModel(f"{path}: {error.strerror}") from error
    except BadModel:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise BadModel(f"{path}: damaged safetensors file: {error}") from error
    return tensors


def write_tensors(path: Path, tensors: dict[str, Any], metadata: dict[str, str]) -> None:
    """Writes a safetensors file, tensors ordered by name, through a temporary file."""
    names = {np.dtype(kind): name for name, kind in KINDS.items()}
    header: dict[str, Any] = {"__metadata__": dict(sorted(metadata.items()))}
    end = 0
    for name, tensor in sorted(tensors.items()):
        span = [end, end + tensor.nbytes]
        header[name] = {
            "dtype": names[tensor.dtype],
            "shape": list(tensor.shape),
            "data_offsets": span,
        }
        end = span[1]
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    body = b"".join(np.ascontiguousarray(t).tobytes() for _, t in sorted(tensors.items()))
    replace(path, len(text).to_bytes(8, "little") + text + body)


def read_metadata(path: Path) -> dict[str, str]:
    """Returns the `__metadata__` of a safetensors file."""
    data = path.read_bytes()
    header = json.loads(data[8 : 8 + int.from_bytes(data[:8], "little")])
    found: dict[str, str] = header.get("__metadata__", {})
    return found


def with_weights(base: bytes, weights: dict[str, Any]) -> bytes:
    """Returns a model file of the very same header whose int8 tensors are replaced."""
    size = int.from_bytes(base[:8], "little")
    header, result = json.loads(base[8 : 8 + size]), bytearray(base)
    for name, tensor in weights.items():
        begin, stop = (8 + size + at for at in header[name]["data_offsets"])
        data = np.ascontiguousarray(tensor, np.int8).tobytes()
        if len(data) != stop - begin:
            raise BadModel(f"tensor {name} has {len(data)} bytes, expected {stop - begin}")
        result[begin:stop] = data
    return bytes(result)


def replace(path: Path, data: bytes) -> None:
    """Writes a whole file or none of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    part = path.with_name(path.name + ".part")
    part.write_bytes(data)
    part.replace(path)
