"""Small model files by the ecosystem's own writers, and what regions say is in a file."""

import warnings
from collections.abc import Mapping
from pathlib import Path

import flatbuffers
import gguf
import ml_dtypes
import numpy as np
import onnx
import tflite
from gguf.quants import quantize
from onnx import TensorProto, helper, numpy_helper
from safetensors.numpy import save_file

from neural_diff import view
from neural_diff.layout import regions_of
from neural_diff.region import Region, check_places, region_of, spell_region

RNG = np.random.default_rng(3)
DTYPES = {4: "u1", 8: "u1", 16: "<u2", 32: "<u4"}
Q = gguf.GGMLQuantizationType


def raws(path: Path, region: Region) -> np.ndarray:
    """Gives the bits of a region's elements, as a device would read them."""
    start, length = region.file_offset, view.bytes_of(region, region.count)
    held = path.read_bytes()[start : start + length]
    return np.frombuffer(view.elements_of(region, bytearray(held)), DTYPES[region.width])


def values(path: Path, region: Region) -> np.ndarray:
    """Gives a region's codes or floats."""
    found = raws(path, region)
    if region.kind == "bf16":
        return found.view(ml_dtypes.bfloat16)
    if region.kind != "int":
        return found.view({"f16": "<f2", "f32": "<f4"}[region.kind])
    code = found.astype(np.int64) - region.bias
    half = 1 << (region.width - 1)
    return code if region.bias else (code + half) % (2 * half) - half


def named(path: Path, index: Path | None = None) -> dict[str, Region]:
    """Gives the regions by name, once they keep all rules of a manifest."""
    regions = regions_of(path, index)
    size = path.stat().st_size
    check_places(tuple(regions), size)
    for region in regions:
        assert region_of(spell_region(region), "region") == region
    assert len({region.name for region in regions}) == len(regions)
    return {region.name: region for region in regions}


def some(dtype: str, *shape: int) -> np.ndarray:
    if np.dtype(dtype).kind == "f":
        return RNG.standard_normal(shape).astype(dtype)
    bounds = np.iinfo(dtype)
    return RNG.integers(bounds.min, bounds.max, shape, dtype, endpoint=True)


def safetensors_file(path: Path) -> dict[str, np.ndarray]:
    dtypes = ("int8", "uint8", "int16", "uint16", "int32", "uint32", "float16", "float32", "int64")
    tensors = {dtype: some(dtype, 3, 5) for dtype in dtypes}
    tensors["packed"] = some("uint8", 4, 2)
    tensors["empty"] = np.zeros((0, 3), np.float32)
    save_file(tensors, path, {"fleetdiff.int4": "packed", "version": "1"})
    return tensors


def gguf_file(path: Path) -> dict[str, np.ndarray]:
    """Writes plain and block-quantised tensors; gives the weights by name."""
    writer = gguf.GGUFWriter(path, "whisper")
    writer.add_array("tokenizer.ggml.tokens", ["a", "b", "été"])
    writer.add_array("numbers", [1, 2, 3])
    writer.add_uint32("general.file_type", 7)
    plain = {t: some(t, 3, 64) for t in ("float32", "float16", "int8", "int16", "int32", "int64")}
    for name, array in plain.items():
        writer.add_tensor(name, array)
    weights = some("float32", 2, 64)
    for kind in (Q.Q4_0, Q.Q4_1, Q.Q5_0, Q.Q5_1, Q.Q8_0, Q.BF16):
        writer.add_tensor(kind.name, quantize(weights, kind), raw_dtype=kind)
    for kind in (Q.Q2_K, Q.Q3_K, Q.Q4_K, Q.Q5_K, Q.Q6_K, Q.IQ4_NL, Q.IQ4_XS, Q.TQ2_0):
        per_block, length = gguf.GGML_QUANT_SIZES[kind]
        blocks = some("uint8", 2, 512 // per_block * length)
        writer.add_tensor(kind.name, blocks, raw_dtype=kind)
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    return plain | {"weights": weights}


def vector(builder: flatbuffers.Builder, start: object, references: list[int]) -> int:
    start(builder, len(references))  # type: ignore[operator]
    for reference in reversed(references):
        builder.PrependUOffsetTRelative(reference)
    return int(builder.EndVector())


def tflite_model(
    tensors: Mapping[str, tuple[int, np.ndarray, int]], behind: Mapping[str, int] | None = None
) -> bytes:
    """Builds a model of tensors (type, bytes, scales); `behind` gives offsets outside of it."""
    builder, places, buffers, listed = flatbuffers.Builder(), behind or {}, [], []
    for name, (_, array, _) in {"": (0, np.zeros(0), 0), **tensors}.items():
        data = None if name in places else builder.CreateByteVector(array.tobytes())
        tflite.BufferStart(builder)
        if data is None:
            tflite.BufferAddOffset(builder, places[name])
            tflite.BufferAddSize(builder, array.nbytes)
        else:
            tflite.BufferAddData(builder, data)
        buffers.append(tflite.BufferEnd(builder))
    for number, (name, (type_, _, scales)) in enumerate(tensors.items(), 1):
        text = builder.CreateString(name)
        scale = builder.CreateNumpyVector(np.ones(scales, np.float32))
        tflite.QuantizationParametersStart(builder)
        tflite.QuantizationParametersAddScale(builder, scale)
        quantization = tflite.QuantizationParametersEnd(builder)
        tflite.TensorStart(builder)
        tflite.TensorAddType(builder, type_)
        tflite.TensorAddBuffer(builder, number)
        tflite.TensorAddName(builder, text)
        if scales:
            tflite.TensorAddQuantization(builder, quantization)
        listed.append(tflite.TensorEnd(builder))
    held = vector(builder, tflite.SubGraphStartTensorsVector, listed)
    tflite.SubGraphStart(builder)
    tflite.SubGraphAddTensors(builder, held)
    subgraphs = vector(builder, tflite.ModelStartSubgraphsVector, [tflite.SubGraphEnd(builder)])
    all_buffers = vector(builder, tflite.ModelStartBuffersVector, buffers)
    tflite.ModelStart(builder)
    tflite.ModelAddVersion(builder, 3)
    tflite.ModelAddSubgraphs(builder, subgraphs)
    tflite.ModelAddBuffers(builder, all_buffers)
    builder.Finish(tflite.ModelEnd(builder), file_identifier=b"TFL3")
    return bytes(builder.Output())


def tflite_file(path: Path) -> dict[str, tuple[int, np.ndarray, int]]:
    kinds = tflite.TensorType
    tensors = {
        "float": (kinds.FLOAT32, some("float32", 3, 5), 0),
        "half": (kinds.FLOAT16, some("float16", 7), 0),
        "brain": (kinds.BFLOAT16, some("uint16", 6), 0),
        "by_channel": (kinds.INT8, some("int8", 9), 3),
        "by_tensor": (kinds.INT8, some("int8", 9), 1),
        "offset": (kinds.UINT8, some("uint8", 11), 1),
        "packed": (kinds.INT4, some("uint8", 5), 2),
        "short": (kinds.INT16, some("int16", 4), 0),
        "bias": (kinds.INT32, some("int32", 4), 3),
        "long": (kinds.INT64, some("int64", 4), 0),
    }
    path.write_bytes(tflite_model(tensors))
    return tensors


def onnx_file(path: Path, external: str | None = None) -> dict[str, np.ndarray]:
    """Writes initializers, a constant and a branch's; `external` puts them in a file of data."""
    dtypes = ("float32", "float16", "int8", "uint8", "int16", "uint16", "int32", "int64")
    arrays = {dtype: some(dtype, 3, 5) for dtype in dtypes}
    arrays["bfloat16"] = some("float32", 8).astype(ml_dtypes.bfloat16)
    arrays["int4"] = RNG.integers(-8, 8, (3, 5)).astype(ml_dtypes.int4)
    arrays["uint4"] = RNG.integers(0, 16, 8).astype(ml_dtypes.uint4)
    initializers = [numpy_helper.from_array(array, name) for name, array in arrays.items()]
    initializers.append(helper.make_tensor("typed", TensorProto.FLOAT, [2], [1.0, 2.0]))
    arrays["constant"], arrays["branch"] = some("float32", 6), some("int8", 6)
    constant = helper.make_node(
        "Constant", [], ["c"], value=numpy_helper.from_array(arrays["constant"], "constant")
    )
    out = helper.make_tensor_value_info("o", TensorProto.FLOAT, None)
    branch = helper.make_graph(
        [helper.make_node("Identity", ["branch"], ["o"])], "then", [], [out],
        [numpy_helper.from_array(arrays["branch"], "branch")],
    )  # fmt: skip
    choice = helper.make_node("If", ["x"], ["y"], then_branch=branch)
    graph = helper.make_graph([constant, choice], "g", [], [out], initializers)
    model = helper.make_model(graph, producer_name="tests")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        onnx.save(
            model, path, save_as_external_data=external is not None, location=external,
            size_threshold=0,
        )  # fmt: skip
    return arrays
