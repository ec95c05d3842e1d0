"""Safetensors files are read strictly: a model made wrongly must not travel."""

import json
import struct
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_diff.errors import Malformed
from neural_diff.layout import read_header, regions_of
from neural_diff.layout.safetensors import is_safetensors
from tests.unit.patch_files import save_safetensors


def written(path: Path, header: object, data: bytes = b"") -> Path:
    spelled = header if isinstance(header, bytes) else json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(spelled)) + spelled + data)
    return path


def entry(
    dtype: str = "I8", shape: object = (4,), begin: int = 0, end: int = 4
) -> dict[str, object]:
    return {"dtype": dtype, "shape": shape, "data_offsets": [begin, end]}


def test_tensors_are_regions_in_file_order_and_empty_ones_are_left_out(tmp_path: Path) -> None:
    tensors = {
        "b": ("I8", np.zeros((3, 5), np.int8)),
        "a": ("F16", np.zeros(4, np.float16)),
        "ids": ("I16", np.zeros(4, np.int16)),
        "empty": ("I8", np.zeros((0, 7), np.int8)),
        "scale": ("F32", np.zeros((), np.float32)),
        "c": ("BF16", np.zeros(2, np.uint16)),
    }
    path = save_safetensors(tmp_path / "m", tensors, {"k": "v"})
    found = regions_of(path)
    assert [region.name for region in found] == ["b", "a", "ids", "scale", "c"]
    assert [(region.count, region.width, region.kind) for region in found] == [
        (15, 8, "int"), (4, 16, "f16"), (4, 16, "int"), (1, 32, "f32"), (2, 16, "bf16"),
    ]  # fmt: skip
    assert (found[0].lo, found[0].hi) == (-128, 127)
    assert found[-1].file_offset + found[-1].stored_bytes == path.stat().st_size
    assert read_header(path).tensors[0].shape == (3, 5)
    assert read_header(path).metadata == {"k": "v"}
    assert is_safetensors(path)


@pytest.mark.parametrize(
    ("header", "data"),
    [
        (b"{", b""),
        (b"[]", b""),
        (b"\xff\xff", b""),
        (b"[" * 100_000, b""),
        (b'{"a":%b,"a":%b}' % ((json.dumps(entry()).encode(),) * 2), bytes(4)),
        ({"a": 1}, b""),
        ({"a": {"dtype": "I8"}}, b""),
        ({"a": entry(dtype=[])}, bytes(4)),
        ({"a": {"dtype": "I8", "shape": [4], "data_offsets": [0]}}, bytes(4)),
        ({"a": entry(dtype="I7")}, bytes(4)),
        ({"a": entry(dtype="F16")}, bytes(4)),
        ({"a": entry(shape=[5])}, bytes(4)),
        ({"a": entry(shape=[-4])}, bytes(4)),
        ({"a": entry(shape=[True, 4])}, bytes(4)),
        ({"a": entry(shape=4)}, bytes(4)),
        ({"a": entry(shape=[2**40, 2**40])}, bytes(4)),
        ({"a": entry(begin=4, end=0)}, bytes(4)),
        ({"a": entry(begin=-4, end=0)}, bytes(4)),
        ({"a": entry()}, bytes(3)),
        ({"a": entry()}, bytes(5)),
        ({"a": entry(begin=1, end=5)}, bytes(5)),
        ({"a": entry(), "b": entry(begin=2, end=6)}, bytes(6)),
        ({"a": entry(), "b": entry(begin=5, end=9)}, bytes(9)),
        ({"__metadata__": {"a": 1}, "a": entry()}, bytes(4)),
        ({"__metadata__": [], "a": entry()}, bytes(4)),
    ],
    ids=lambda case: repr(case)[:60],
)  # fmt: skip
def test_a_header_that_does_not_describe_the_file_is_refused(
    header: object, data: bytes, tmp_path: Path
) -> None:
    path = written(tmp_path / "m", header, data)
    with pytest.raises(Malformed) as refused:
        read_header(path)
    assert str(path) in str(refused.value)


@pytest.mark.parametrize("length", [0, 1, 2**31, 2**63, 2**64 - 1])
def test_a_header_length_beyond_the_file_is_refused(length: int, tmp_path: Path) -> None:
    path = tmp_path / "m"
    path.write_bytes(struct.pack("<Q", length) + b"{}" + bytes(20))
    with pytest.raises(Malformed, match="no safetensors"):
        read_header(path)


@given(st.binary(max_size=40))
def test_other_bytes_are_refused_or_a_file_without_tensors(
    tmp_path_factory: pytest.TempPathFactory, data: bytes
) -> None:
    path = tmp_path_factory.getbasetemp() / "any"
    path.write_bytes(data)
    try:
        assert regions_of(path) == []
    except Malformed:
        return
