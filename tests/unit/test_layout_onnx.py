"""What the regions of an ONNX model, or of its data, say is what the `onnx` package reads."""

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, external_data_helper, helper, numpy_helper

from neural_diff.errors import Malformed
from neural_diff.layout import regions_of, source
from tests.unit.layout_files import named, onnx_file, some, values


def equal(path: Path, found: dict, arrays: dict[str, np.ndarray]) -> None:
    for name, region in found.items():
        array = arrays[name].reshape(-1)
        read = values(path, region)[: array.size]
        expected = array.astype(read.dtype) if region.kind == "int" else array
        assert np.array_equal(read + region.bias if region.bias else read, expected), name


def test_every_tensor_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    arrays = onnx_file(path)
    found = named(path)
    assert set(found) == set(arrays) - {"int64"}
    equal(path, found, arrays)
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in found:
            assert np.array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])
    assert found["int4"].count == 16, "the half of a byte that is left is one more element"


def test_the_tensors_of_a_file_of_data_are_said_by_its_model(tmp_path: Path) -> None:
    path, data = tmp_path / "model.onnx", tmp_path / "weights.bin"
    arrays = onnx_file(path, data.name)
    found, inside = named(data, index=path), named(path)
    assert set(found) | set(inside) == set(arrays) - {"int64"}
    assert {"float32", "int8", "int4", "bfloat16"} <= set(found)
    equal(data, found, arrays)
    equal(path, inside, arrays)
    assert regions_of(data) == [], "alone it is no known container"
    for tensor in onnx.load(path).graph.initializer:
        if tensor.name in found:
            assert np.array_equal(numpy_helper.to_array(tensor), arrays[tensor.name])


def external(name: str, **said: str) -> TensorProto:
    tensor = helper.make_tensor(name, TensorProto.INT8, [8], bytes(8), raw=True)
    external_data_helper.set_external_data(tensor, "weights.bin")
    tensor.ClearField("raw_data")
    del tensor.external_data[:]
    for key, value in said.items():
        tensor.external_data.add(key=key, value=value)
    return tensor


def model(*tensors: TensorProto) -> bytes:
    graph = helper.make_graph([], "g", [], [], list(tensors))
    return helper.make_model(graph, producer_name="tests").SerializeToString()


def data_regions(tmp_path: Path, *tensors: TensorProto, size: int = 64) -> list[str]:
    data, index = tmp_path / "weights.bin", tmp_path / "model.onnx"
    data.write_bytes(bytes(size))
    index.write_bytes(model(*tensors))
    return list(named(data, index=index))


HERE = {"location": "weights.bin"}


def test_offset_and_length_may_be_left_out_and_tied_weights_are_given_once(tmp_path: Path) -> None:
    tensors = [external("a", **HERE), external("b", **HERE, offset="0", length="8")]
    assert data_regions(tmp_path, *tensors, external("c", **HERE, offset="8")) == ["a", "c"]


@pytest.mark.parametrize(
    ("said", "reason"),
    [
        ({"offset": "-1"}, "'-1' is no number"),
        ({"offset": "57"}, "does not end by byte 64"),
        ({"offset": "9" * 30}, "is no number"),
        ({"offset": "٣"}, "is no number"),
        ({"length": "7"}, "has 7 bytes, not 8"),
        ({"length": ""}, "'' is no number"),
        ({"location": "other.bin"}, r"no tensor is in weights.bin.*other.bin"),
        ({"location": "sub/weights.bin"}, "no tensor is in weights.bin"),
        ({"location": "../weights.bin"}, "no tensor is in weights.bin"),
        ({"location": "weights.bin\0"}, "no tensor is in weights.bin"),
        ({"location": ""}, "no tensor is in weights.bin"),
        ({"location": "."}, "no tensor is in weights.bin"),
        ({"location": "eights.bin"}, "no tensor is in weights.bin"),
    ],
)
def test_external_data_that_does_not_fit_is_refused(
    said: dict[str, str], reason: str, tmp_path: Path
) -> None:
    with pytest.raises(Malformed, match=reason):
        data_regions(tmp_path, external("w", **HERE | said))


def test_data_in_a_folder_below_the_model_is_found_by_the_end_of_its_path(tmp_path: Path) -> None:
    data, index = tmp_path / "model.onnx.data" / "0", tmp_path / "model.onnx"
    data.parent.mkdir()
    data.write_bytes(bytes(8))
    index.write_bytes(model(external("w", location="./model.onnx.data/0")))
    assert list(named(data, index=index)) == ["w"]


def test_an_index_that_is_no_model_is_refused(tmp_path: Path) -> None:
    data, index = tmp_path / "weights.bin", tmp_path / "model.onnx"
    data.write_bytes(bytes(8))
    for wrong in (b"", b"\xff" * 40, model()):
        index.write_bytes(wrong)
        with pytest.raises(Malformed, match=str(index)):
            regions_of(data, index=index)


def raw(name: str, shape: list[int], data: bytes, type_: int = TensorProto.FLOAT) -> TensorProto:
    return TensorProto(name=name, dims=shape, data_type=type_, raw_data=data)


@pytest.mark.parametrize(
    ("tensor", "reason"),
    [
        (raw("w", [2], bytes(7)), "has 7 bytes, not 8"),
        (raw("w", [-2], bytes(8)), "bytes, not"),
        (raw("w", [2**62, 2**62], bytes(8)), "bytes, not"),
        (raw("w", [3], bytes(1), TensorProto.INT4), "has 1 bytes, not 2"),
        (raw("w", [1] * 65, bytes(4)), "has 65 dimensions"),
    ],
)
def test_a_tensor_whose_shape_is_not_its_bytes_is_refused(
    tensor: TensorProto, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(model(tensor))
    with pytest.raises(Malformed, match=reason):
        regions_of(path)


def message(number: int, body: bytes) -> bytes:
    """A field of protobuf with a length, below 128 or written in five bytes."""
    size = len(body)
    length = (
        bytes([size])
        if size < 128
        else bytes((size >> 7 * place & 127) | (128 if place < 4 else 0) for place in range(5))
    )
    return bytes([number << 3 | 2]) + length + body


def nested(depth: int) -> bytes:
    graph = b""
    for _ in range(depth):
        graph = message(1, message(5, message(6, graph)))
    return b"\x08\x0a" + message(7, graph)


@pytest.mark.parametrize(
    "file",
    [
        b"\x08\x0a\x3a",
        b"\x08\x0a\x3a\x05",
        b"\x08\x0a\x3a" + b"\xff" * 9 + b"\x01",
        b"\x08\x0a\x3a" + b"\xff" * 12,
        b"\x08\x0a\x12\x00\x3b",
        b"\x08\x0a\x12\x00\x3d\x00",
        b"\x08\x0a\x12\x00",
    ],
    ids=repr,
)
def test_a_file_that_only_begins_as_a_model_is_an_unknown_one(file: bytes, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(file)
    assert regions_of(path) == []


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"\x08\x0a" + message(7, b"\x2a\x02\x08"), "does not end within its message"),
        (b"\x08\x0a" + message(7, b"\x2a"), "a number does not end"),
        (b"\x08\x0a" + message(7, b"\x2b"), "wire type 3"),
        (nested(2000), "messages within each other"),
    ],
    ids=lambda case: repr(case)[:40],
)
def test_a_broken_graph_is_refused(file: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(file)
    with pytest.raises(Malformed, match=reason):
        regions_of(path)


def test_loops_within_loops_are_read_as_deep_as_models_go(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    path.write_bytes(nested(20))
    assert regions_of(path) == []


def test_a_message_of_endless_fields_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "READS_MAX", 1000)
    path = tmp_path / "model.onnx"
    path.write_bytes(b"\x08\x0a" + message(7, b"\x10\x00" * 5000))
    with pytest.raises(Malformed, match="more than 1000 things"):
        regions_of(path)


def test_another_protobuf_is_no_known_container(tmp_path: Path) -> None:
    path = tmp_path / "saved_model.pb"
    path.write_bytes(b"\x08\x01" + message(2, b"\x0a\x02hi"))
    assert regions_of(path) == []


def test_names_and_order_are_the_files(tmp_path: Path) -> None:
    path = tmp_path / "model.onnx"
    tensors = [numpy_helper.from_array(some("int8", 4), name) for name in "zax"]
    path.write_bytes(model(*tensors))
    assert list(named(path)) == ["z", "a", "x"]
