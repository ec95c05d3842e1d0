"""What the regions of a safetensors file say is what its own library reads."""

import struct
from pathlib import Path

import ml_dtypes
import numpy as np
import pytest
from safetensors import TensorSpec, serialize_file
from safetensors.numpy import load_file, save_file

from neural_diff.errors import Malformed
from neural_diff.layout import regions_of
from neural_diff.layout.safetensors import is_safetensors
from tests.unit.layout_files import named, raws, safetensors_file, some, values


def test_every_tensor_reads_as_the_library_reads_it(tmp_path: Path) -> None:
    path = tmp_path / "model"
    safetensors_file(path)
    found, expected = named(path), load_file(path)
    assert set(found) == set(expected) - {"int64", "empty"}
    for name, region in found.items():
        if name != "packed":
            array = expected[name].reshape(-1).astype(expected[name].dtype.newbyteorder("<"))
            assert np.array_equal(values(path, region) + region.bias, array), name


def test_bytes_count_from_their_middle(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_file({"w": np.array([0, 128, 255], np.uint8)}, path)
    (region,) = regions_of(path)
    assert (region.bias, region.lo, region.hi) == (128, -128, 127)
    assert values(path, region).tolist() == [-128, 0, 127]


def test_packed_int4_is_two_codes_a_byte_the_low_one_first(tmp_path: Path) -> None:
    path = tmp_path / "model"
    codes = np.arange(-8, 8).astype(ml_dtypes.int4)
    low, high = codes[::2].view(np.uint8) & 15, codes[1::2].view(np.uint8) & 15
    tensors = {"w": low | high << 4, "v": np.zeros(4, np.uint8), "plain": np.zeros(3, np.uint8)}
    save_file(tensors, path, {"fleetdiff.int4": "v, w"})
    found = named(path)
    assert values(path, found["w"]).tolist() == list(range(-8, 8))
    assert (found["w"].bias, found["w"].lo, found["w"].hi, found["w"].width) == (0, -8, 7, 4)
    assert (found["plain"].width, found["v"].count) == (8, 8)


@pytest.mark.parametrize("said", ["w,gone", "words", ",w,\x00"])
def test_int4_that_is_no_tensor_of_bytes_is_refused(said: str, tmp_path: Path) -> None:
    path = tmp_path / "model"
    tensors = {"w": np.zeros(2, np.uint8), "words": np.zeros(2, np.int8)}
    save_file(tensors, path, {"fleetdiff.int4": said})
    with pytest.raises(Malformed, match="only a U8 tensor can be packed int4"):
        regions_of(path)


def test_floats_smaller_than_a_byte_are_let_through_uncovered(tmp_path: Path) -> None:
    path = tmp_path / "model"
    data = np.arange(8, dtype=np.uint8)
    kinds = {"four": "float4_e2m1fn_x2", "exponents": "float8_e8m0fnu", "eight": "float8_e4m3fn"}
    tensors = {
        name: TensorSpec(dtype=kind, shape=[2, 4], data_ptr=data.ctypes.data, data_len=8)
        for name, kind in kinds.items()
    }
    serialize_file(tensors, path)
    found = named(path)
    assert list(found) == ["exponents"]
    assert raws(path, found["exponents"]).tolist() == list(range(8))


def test_half_a_byte_of_four_bit_floats_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    header = b'{"w":{"dtype":"F4","shape":[3],"data_offsets":[0,1]}}'
    path.write_bytes(struct.pack("<Q", len(header)) + header + b"\0")
    with pytest.raises(Malformed, match="are not F4 of shape"):
        regions_of(path)


def test_a_name_no_manifest_could_hold_is_made_printable(tmp_path: Path) -> None:
    path = tmp_path / "model"
    save_file(
        {"lay\ner." + "x" * 600 + ".w": np.zeros(2, np.int8), "\x1b[2J": some("int8", 3)}, path
    )
    assert sorted(named(path)) == ["?[2J", "x" * 510 + ".w"]


def test_a_gguf_file_of_123_tensors_is_not_mistaken_for_safetensors(tmp_path: Path) -> None:
    path = tmp_path / "model"
    path.write_bytes(b"GGUF" + struct.pack("<IQQ", 3, ord("{"), 0))
    assert not is_safetensors(path)
    with pytest.raises(Malformed, match="tensor's name"):
        regions_of(path)
