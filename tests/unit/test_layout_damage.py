"""A damaged model is refused, or read as regions that lie in it: nothing else ever happens."""

from functools import cache
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from neural_diff.errors import Malformed
from neural_diff.layout import regions_of
from neural_diff.region import check_places, region_of, spell_region
from tests.unit import layout_files

CONTAINERS = ("safetensors", "gguf", "tflite", "onnx")


@pytest.fixture(scope="module")
def room(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("damage")


@cache
def sound(container: str, room: Path) -> bytes:
    getattr(layout_files, f"{container}_file")(room / container)
    return (room / container).read_bytes()


def refused_or_consistent(room: Path, file: bytes) -> None:
    path = room / "damaged"
    path.write_bytes(file)
    try:
        regions = regions_of(path)
    except Malformed as refused:
        assert str(path) in str(refused)
        return
    check_places(tuple(regions), len(file))
    for region in regions:
        assert region_of(spell_region(region), "region") == region


def header_bytes(container: str, file: bytes) -> int:
    return {"safetensors": 900, "gguf": 2000}.get(container, len(file))


@pytest.mark.parametrize("container", CONTAINERS)
@given(data=st.data())
def test_flipped_bytes_are_refused_or_harmless(
    container: str, room: Path, data: st.DataObject
) -> None:
    file = bytearray(sound(container, room))
    places = st.integers(0, header_bytes(container, file) - 1)
    for place in data.draw(st.lists(places, min_size=1, max_size=4)):
        file[place] = data.draw(st.integers(0, 255))
    refused_or_consistent(room, bytes(file))


@pytest.mark.parametrize("container", CONTAINERS)
def test_every_byte_of_a_header_is_flipped_once(container: str, room: Path) -> None:
    file = sound(container, room)
    for place in range(header_bytes(container, file)):
        flipped = bytes([file[place] ^ 1 << place % 8])
        refused_or_consistent(room, file[:place] + flipped + file[place + 1 :])


@pytest.mark.parametrize("container", CONTAINERS)
def test_a_model_cut_off_anywhere_is_refused_or_harmless(container: str, room: Path) -> None:
    file = sound(container, room)
    for length in range(len(file)):
        refused_or_consistent(room, file[:length])


# Without a magic nobody can tell a cut-off ONNX model from an unknown file.
@pytest.mark.parametrize("container", [name for name in CONTAINERS if name != "onnx"])
def test_a_model_cut_off_within_its_tensors_is_refused(container: str, room: Path) -> None:
    path = room / "cut"
    file = sound(container, room)
    path.write_bytes(file[: -len(file) // 3])
    with pytest.raises(Malformed, match=r"export the model again|end at byte"):
        regions_of(path)


@given(st.sampled_from([b"GGUF\3\0\0\0", b"\0\0\0\0TFL3", b"\x08\x0a\x12", b""]), st.binary())
def test_other_bytes_after_a_beginning_are_refused_or_harmless(
    room: Path, beginning: bytes, rest: bytes
) -> None:
    refused_or_consistent(room, beginning + rest)


@pytest.mark.parametrize("file", [b"", b"GGU", b"\x08", b"PK\3\4" + bytes(40), b"{" * 40])
def test_an_unknown_container_has_no_regions(file: bytes, room: Path) -> None:
    (room / "other").write_bytes(file)
    assert regions_of(room / "other") == []
