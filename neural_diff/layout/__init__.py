"""Which regions a model file has (maker side; a device is told, and needs no parser).

A file's container is recognised by its bytes: safetensors, GGUF, TensorFlow Lite or ONNX, each
read in a module of its own. What a container says of its tensors is checked against the file, so
the regions lie in it, in order and apart; whatever no region covers travels as it is.
"""

from pathlib import Path

from neural_diff.layout import gguf, onnx, safetensors, tflite
from neural_diff.layout.safetensors import is_safetensors, read_header
from neural_diff.layout.source import opened
from neural_diff.layout.stored import regions_in_order
from neural_diff.region import Region

__all__ = ["read_header", "regions_of"]


def regions_of(path: Path, index: Path | None = None) -> list[Region]:
    """Gives the regions of a model file, in file order; none if its container is not known.

    `index` is the ONNX model that says what is in `path`, a file of data beside it.

    Raises:
        Malformed: the file begins as one of a known container and is broken.
    """
    with opened(path) as source:
        head = source.bytes_at(0, min(8, source.size), "the beginning")
        if index is not None:
            with opened(index) as model:
                return regions_in_order(onnx.tensors_beside(model, path), source)
        if head[:4] == gguf.MAGIC:
            return regions_in_order(gguf.tensors_of(source), source)
        if head[4:] == tflite.IDENTIFIER:
            return regions_in_order(tflite.tensors_of(source), source)
        if is_safetensors(path):
            return regions_in_order(safetensors.tensors_of(path), source)
        if onnx.is_model(source):
            return regions_in_order(onnx.tensors_of(source), source)
        return []
