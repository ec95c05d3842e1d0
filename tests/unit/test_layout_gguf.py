"""What the regions of a GGUF file say is what the `gguf` package reads and dequantises."""

import struct
from pathlib import Path

import gguf
import numpy as np
import pytest
from gguf.quants import Q4_K, dequantize

from neural_diff.errors import Malformed
from neural_diff.layout import regions_of, source
from neural_diff.layout.gguf import _BLOCKS
from tests.unit.layout_files import Q, gguf_file, named, some, values


@pytest.fixture(scope="module")
def model(tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("gguf") / "model"
    gguf_file(path)
    return path


def blocks_of(model: Path, name: str, part: str) -> np.ndarray:
    """Gives a part of a tensor's blocks, shape (blocks, elements of one)."""
    region = named(model)[f"{name}:{part}"]
    assert region.layout
    return values(model, region).reshape(-1, region.layout.per_block).astype(np.float32)


def expected(model: Path, name: str) -> np.ndarray:
    reader = gguf.GGUFReader(model)
    (tensor,) = (tensor for tensor in reader.tensors if tensor.name == name)
    return dequantize(tensor.data, tensor.tensor_type).reshape(-1)


def halves(nibbles: np.ndarray, run: int) -> np.ndarray:
    """Puts nibbles in the weights' order: in runs, first all low halves and then all high ones."""
    return nibbles.reshape(-1, run, 2).transpose(0, 2, 1).reshape(len(nibbles), -1)


@pytest.mark.parametrize("name", ["float32", "float16", "int8", "int16", "int32", "BF16"])
def test_plain_tensors_read_as_the_library_reads_them(name: str, model: Path) -> None:
    (tensor,) = (t for t in gguf.GGUFReader(model).tensors if t.name == name)
    region = named(model)[name]
    assert region.file_offset == tensor.data_offset
    read = dequantize(tensor.data, Q.BF16) if name == "BF16" else np.array(tensor.data)
    assert np.array_equal(values(model, region).astype(read.dtype), read.reshape(-1))


def test_what_has_no_meaning_for_regions_stays_uncovered(model: Path) -> None:
    names = {name.split(":")[0] for name in named(model)}
    listed = {tensor.name for tensor in gguf.GGUFReader(model).tensors}
    assert listed - names == {"int64", "TQ2_0"}


@pytest.mark.parametrize("kind", _BLOCKS, ids=lambda kind: Q(kind).name)
def test_every_byte_of_a_block_is_in_one_field(kind: int) -> None:
    per_block, (stride, fields) = _BLOCKS[kind]
    assert (per_block, stride) == gguf.GGML_QUANT_SIZES[Q(kind)]
    ends = [field.first + field.per_block * field.width // 8 for field in fields]
    assert [field.first for field in fields] == [0, *ends[:-1]]
    assert ends[-1] == stride


def test_codes_times_scales_are_the_weights_of_q4_0_and_q8_0(model: Path) -> None:
    weights = halves(blocks_of(model, "Q4_0", "qs"), 16) * blocks_of(model, "Q4_0", "d")
    assert np.array_equal(weights.reshape(-1), expected(model, "Q4_0"))
    weights = blocks_of(model, "Q8_0", "qs") * blocks_of(model, "Q8_0", "d")
    assert np.array_equal(weights.reshape(-1), expected(model, "Q8_0"))
    codes = named(model)["Q8_0:qs"]
    assert (codes.bias, codes.lo, codes.hi) == (0, -127, 127)


def test_codes_scales_and_lowest_values_are_the_weights_of_q4_1(model: Path) -> None:
    scale, lowest = np.split(blocks_of(model, "Q4_1", "dm"), 2, axis=1)
    weights = (halves(blocks_of(model, "Q4_1", "qs"), 16) + 8) * scale + lowest
    assert np.array_equal(weights.reshape(-1), expected(model, "Q4_1"))


@pytest.mark.parametrize("kind", ["Q5_0", "Q5_1"])
def test_low_nibbles_and_high_bits_are_the_weights_of_q5(kind: str, model: Path) -> None:
    high = (blocks_of(model, kind, "qh") + 128).astype(np.uint8)
    codes = halves(blocks_of(model, kind, "qs"), 16) + 8
    codes += 16 * np.unpackbits(high, axis=1, bitorder="little")
    if kind == "Q5_0":
        weights = (codes - 16) * blocks_of(model, kind, "d")
    else:
        scale, lowest = np.split(blocks_of(model, kind, "dm"), 2, axis=1)
        weights = codes * scale + lowest
    assert np.array_equal(weights.reshape(-1), expected(model, kind))


def test_nibbles_scales_and_minima_are_the_weights_of_q4_k(model: Path) -> None:
    scales = (blocks_of(model, "Q4_K", "scales") + 128).astype(np.uint8)
    factor, lowest = Q4_K.get_scale_min(scales)
    d, dmin = np.split(blocks_of(model, "Q4_K", "dm"), 2, axis=1)
    codes = halves(blocks_of(model, "Q4_K", "qs") + 8, 32).reshape(-1, 8, 32)
    with np.errstate(all="ignore"):
        weights = (d * factor)[:, :, None] * codes - (dmin * lowest)[:, :, None]
    with np.errstate(all="ignore"):
        assert np.array_equal(weights.reshape(-1), expected(model, "Q4_K"), equal_nan=True)


def test_four_bits_two_bits_and_scales_are_the_weights_of_q6_k(model: Path) -> None:
    low = blocks_of(model, "Q6_K", "ql").reshape(-1, 2, 64, 2) + 8
    low = low.transpose(0, 1, 3, 2).reshape(-1, 256)
    high = (blocks_of(model, "Q6_K", "qh") + 128).astype(np.uint8).reshape(-1, 2, 1, 32)
    high = (high >> np.array([0, 2, 4, 6], np.uint8)[:, None] & 3).reshape(-1, 256)
    codes = (low + 16 * high - 32).reshape(-1, 16, 16)
    with np.errstate(all="ignore"):
        scales = blocks_of(model, "Q6_K", "d") * blocks_of(model, "Q6_K", "scales")
        weights = (scales[:, :, None] * codes).reshape(-1)
        assert np.array_equal(weights, expected(model, "Q6_K"), equal_nan=True)


def test_an_alignment_of_its_own_is_kept(tmp_path: Path) -> None:
    path = tmp_path / "model"
    writer = gguf.GGUFWriter(path, "whisper")
    writer.add_custom_alignment(256)
    for name in ("one", "two"):
        writer.add_tensor(name, some("int8", 1, 32))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()
    found = [(region.name, region.file_offset) for region in regions_of(path)]
    assert found == [(t.name, t.data_offset) for t in gguf.GGUFReader(path).tensors]
    assert all(offset % 256 == 0 for _, offset in found)


def test_version_2_differs_in_nothing_that_matters_here(model: Path, tmp_path: Path) -> None:
    older = tmp_path / "model"
    older.write_bytes(b"GGUF\2" + model.read_bytes()[5:])
    assert regions_of(older) == regions_of(model)


def text(spelled: bytes) -> bytes:
    return struct.pack("<Q", len(spelled)) + spelled


def header(*entries: bytes, tensors: int = 0, version: int = 3, count: int | None = None) -> bytes:
    counts = struct.pack("<IQQ", version, tensors, len(entries) if count is None else count)
    return b"GGUF" + counts + b"".join(entries)


def tensor(*shape: int, type_: int = 24, offset: int = 0) -> bytes:
    numbers = struct.pack(f"<I{len(shape)}QIQ", len(shape), *shape, type_, offset)
    return header(tensors=1) + text(b"w") + numbers


def entry(type_: int, value: bytes, key: bytes = b"k") -> bytes:
    return text(key) + struct.pack("<I", type_) + value


def array(type_: int, count: int, *items: bytes) -> bytes:
    return struct.pack("<IQ", type_, count) + b"".join(items)


ALIGNMENT = b"general.alignment"
NESTED = b"".join([array(9, 1)] * 100)


@pytest.mark.parametrize(
    ("file", "reason"),
    [
        (b"GGUF", "the version"),
        (header(version=1), "version 1"),
        (header(version=3 << 24), "version 50331648"),
        (header(tensors=1), "a tensor's name"),
        (header(tensors=2**64 - 1), "a tensor's name"),
        (header(count=2**64 - 1), "a key"),
        (header(struct.pack("<Q", 2**63)), "a key"),
        (header(entry(13, b"")), "13 is no type"),
        (header(entry(4, b"")), "does not end within the file"),
        (header(entry(8, struct.pack("<Q", 2**64 - 1))), "does not end within the file"),
        (header(entry(9, array(4, 2**64 - 1))), "does not end within the file"),
        (header(entry(9, array(8, 2**60))), "a text"),
        (header(entry(9, array(99, 1))), "99 is no type"),
        (header(entry(9, NESTED)), "9 is no type"),
        (header(entry(4, struct.pack("<I", 0), ALIGNMENT)), "power of two"),
        (header(entry(4, struct.pack("<I", 48), ALIGNMENT)), "power of two"),
        (header(entry(10, struct.pack("<Q", 32), ALIGNMENT)), "power of two"),
        (header(tensors=1) + text(b"w") + struct.pack("<I", 2**32 - 1), "dimensions"),
        (tensor(32, offset=1) + bytes(99), "not aligned"),
        (tensor(32, offset=2**63), "tensor 'w' does not end"),
        (tensor(2**63, 2**63) + bytes(99), "tensor 'w' does not end"),
        (tensor(2**40, type_=8), "tensor 'w' does not end"),
        (tensor(33, type_=8) + bytes(99), "no whole number of blocks"),
        (tensor(type_=8) + bytes(99), "no whole number of blocks"),
    ],
)  # fmt: skip
def test_a_broken_file_is_refused_with_what_and_where(
    file: bytes, reason: str, tmp_path: Path
) -> None:
    path = tmp_path / "model"
    path.write_bytes(file)
    with pytest.raises(Malformed, match=reason) as refused:
        regions_of(path)
    assert f"{path}: byte " in str(refused.value) and "export the model again" in str(refused.value)


def test_tensors_that_overlap_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "model"
    second = text(b"v") + struct.pack("<IQIQ", 1, 40, 24, 32)
    first = text(b"w") + struct.pack("<IQIQ", 1, 64, 24, 0)
    path.write_bytes(header(tensors=2) + first + second + bytes(200))
    with pytest.raises(Malformed, match="'w' and 'v' overlap"):
        regions_of(path)


def test_a_header_of_endless_things_comes_to_an_end(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(source, "READS_MAX", 1000)
    path = tmp_path / "model"
    path.write_bytes(header(entry(9, array(8, 2**60))) + bytes(100_000))
    with pytest.raises(Malformed, match="more than 1000 things"):
        regions_of(path)
