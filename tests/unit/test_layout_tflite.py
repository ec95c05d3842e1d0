"""What the regions of a TensorFlow Lite model say is what the schema's own reader reads."""

import struct
from pathlib import Path

import numpy as np
import pytest
import tflite

from neural_diff.errors import Malformed
from neural_diff.layout import regions_of, source
from tests.unit.layout_files import named, raws, some, tflite_file, tflite_model, values

INT8 = tflite.TensorType.INT8


def test_every_tensor_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model"
    written = tflite_file(path)
    found = named(path)
    assert set(found) == set(written) - {"long"}
    model = tflite.Model.GetRootAsModel(path.read_bytes(), 0)
    subgraph = model.Subgraphs(0)
    for number in range(subgraph.TensorsLength()):
        tensor = subgraph.Tensors(number)
        name = tensor.Name().decode()
        if name == "long":
            continue
        expected = model.Buffers(tensor.Buffer()).DataAsNumpy()
        assert expected.tobytes() == written[name][1].tobytes()
        read = raws(path, found[name])
        stored = read[::2] | read[1::2] << 4 if name == "packed" else read
        assert stored.tobytes() == expected.tobytes(), name


def test_codes_and_their_bounds_follow_the_quantisation(tmp_path: Path) -> None:
    path = tmp_path / "model"
    written = tflite_file(path)
    found = named(path)
    bounds = {name: (region.bias, region.lo, region.hi) for name, region in found.items()}
    assert bounds["by_channel"] == (0, -127, 127)
    assert bounds["by_tensor"] == (0, -128, 127)
    assert bounds["offset"] == (128, -128, 127)
    assert bounds["packed"] == (0, -7, 7)
    assert np.array_equal(values(path, found["by_channel"]), written["by_channel"][1])
    assert np.array_equal(values(path, found["offset"]) + 128, written["offset"][1])
    assert (found["brain"].kind, found["half"].kind, found["float"].kind) == ("bf16", "f16", "f32")


def test_the_bytes_of_a_large_model_lie_behind_its_flatbuffer(tmp_path: Path) -> None:
    path, weights = tmp_path / "model", some("int8", 64)
    tensors = {"inside": (INT8, some("int8", 3), 1), "behind": (INT8, weights, 4)}
    start = len(tflite_model(tensors, {"behind": 2}))
    path.write_bytes(tflite_model(tensors, {"behind": start}) + weights.tobytes())
    found = named(path)
    assert found["behind"].file_offset == start
    assert np.array_equal(values(path, found["behind"]), weights)
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(Malformed, match="tensor 'behind' does not end by byte"):
        regions_of(path)


def test_an_offset_that_only_keeps_a_place_is_no_tensor(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(tflite_model({"w": (INT8, some("int8", 9), 1)}, {"w": 1}))
    assert regions_of(path) == []


def test_tensors_that_share_a_buffer_are_given_once(tmp_path: Path) -> None:
    path, weights = tmp_path / "model", some("int8", 64)
    tensors = {"one": (INT8, weights, 1), "two": (INT8, weights, 1)}
    start = len(tflite_model(tensors, {"one": 2, "two": 2}))
    path.write_bytes(tflite_model(tensors, {"one": start, "two": start}) + weights.tobytes())
    assert list(named(path)) == ["one"]
    path.write_bytes(tflite_model(tensors, {"one": start, "two": start + 1}) + bytes(65))
    with pytest.raises(Malformed, match="'one' and 'two' overlap"):
        regions_of(path)


def test_half_a_number_at_the_end_of_a_buffer_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(tflite_model({"w": (tflite.TensorType.FLOAT32, some("int8", 7), 0)}))
    with pytest.raises(Malformed, match="no whole number of 4 bytes"):
        regions_of(path)


def test_a_buffer_that_does_not_exist_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    whole = tflite_model({"w": (INT8, some("int8", 7), 0)})
    # The tensor names buffer 1 in the only 32-bit field of its table that is 1.
    table = tflite.Model.GetRootAsModel(whole, 0).Subgraphs(0).Tensors(0)._tab
    place = table.Pos + table.Offset(8)
    assert whole[place : place + 4] == struct.pack("<I", 1)
    path.write_bytes(whole[:place] + struct.pack("<I", 2**32 - 1) + whole[place + 4 :])
    with pytest.raises(Malformed, match="no buffer 4294967295"):
        regions_of(path)


def hand_made(*words: int) -> bytes:
    """A file that is its identifier and these 32-bit words after it."""
    return struct.pack("<I4s", 8, b"TFL3") + struct.pack(f"<{len(words)}I", *words)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (struct.pack("<I4s", 2**32 - 1, b"TFL3"), "a table of 4 bytes"),
        (hand_made(), "a table of 4 bytes"),
        (hand_made(2**31 - 1), "a table of fields"),
        (hand_made(0x80000000), "a table of fields"),
        (hand_made(0xFFFFFFFC, 0x0004FFFF), "a field's offset"),
    ],
)
def test_a_table_outside_the_file_is_refused(file: bytes, reason: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(file)
    with pytest.raises(Malformed, match=reason):
        regions_of(path)


def test_a_model_whose_parts_are_itself_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "READS_MAX", 10_000)
    path = tmp_path / "model"
    # A table whose fields 0, 2 and 4 are a vector of references that all lead to the table itself.
    count = 2000
    vtable = struct.pack("<7H", 14, 8, 4, 0, 4, 0, 4) + bytes(2)
    table = struct.pack("<iI", 16, 4) + struct.pack("<I", count)
    references = [2**32 - (12 + 4 * number) for number in range(count)]
    body = vtable + table + struct.pack(f"<{count}I", *references)
    path.write_bytes(struct.pack("<I4s", 24, b"TFL3") + body)
    with pytest.raises(Malformed):
        regions_of(path)
    # Subgraphs of one table with many tensors, each without a field.
    path.write_bytes(many_times_the_same(300))
    with pytest.raises(Malformed, match="more than 10000 things"):
        regions_of(path)


def many_times_the_same(count: int) -> bytes:
    """A model of `count` references to one subgraph of `count` references to one tensor."""
    at = {"root": 24, "subgraphs": 36, "subgraph": 40 + 4 * count + 12}
    at["tensors"] = at["subgraph"] + 8
    at["tensor"] = at["tensors"] + 4 + 4 * count + 4
    file = bytearray(at["tensor"] + 4)
    struct.pack_into("<I4s", file, 0, at["root"], b"TFL3")
    struct.pack_into("<5H", file, 8, 10, 8, 0, 0, 4)  # the model's fields: subgraphs
    struct.pack_into("<iI", file, at["root"], 16, at["subgraphs"] - at["root"] - 4)
    struct.pack_into("<I", file, at["subgraphs"], count)
    for place in range(at["subgraphs"] + 4, at["subgraphs"] + 4 + 4 * count, 4):
        struct.pack_into("<I", file, place, at["subgraph"] - place)
    struct.pack_into("<3H", file, at["subgraph"] - 8, 6, 8, 4)  # the subgraph's: tensors
    struct.pack_into("<iI", file, at["subgraph"], 8, 4)
    struct.pack_into("<I", file, at["tensors"], count)
    for place in range(at["tensors"] + 4, at["tensors"] + 4 + 4 * count, 4):
        struct.pack_into("<I", file, place, at["tensor"] - place)
    struct.pack_into("<2H", file, at["tensor"] - 4, 4, 4)  # the tensor's: none
    struct.pack_into("<i", file, at["tensor"], 4)
    return bytes(file)


def test_few_times_the_same_is_a_model_without_tensors(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(many_times_the_same(3))
    assert regions_of(path) == []
