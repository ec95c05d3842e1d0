import json
import shutil
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZipFile

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from demo.speech.features import BadRecording, read_wav, write_wav
from demo.speech.model_file import BadModel, load_model, read_tensors, write_tensors
from demo.speech.recogniser import evaluate, main
from demo.speech.shards import BadCanary

SPEECH = Path(__file__).parents[2] / "demo" / "speech"
BASE = SPEECH / "base.safetensors"
CANARY = SPEECH / "canary"


@pytest.fixture
def canary(tmp_path):
    """A folder as a device holds it: the manifest and shard 0."""
    for name in ("canary.json", "shard-00.zip"):
        shutil.copy(CANARY / name, tmp_path / name)
    return tmp_path


@pytest.fixture
def tensors():
    return {name: np.array(tensor) for name, tensor in read_tensors(BASE).items()}


def rewritten(canary, change):
    """Changes the manifest in place."""
    manifest = json.loads((canary / "canary.json").read_text())
    change(manifest)
    (canary / "canary.json").write_text(json.dumps(manifest))
    return canary


def resealed(canary, change):
    """Changes the members of shard 0 and signs it off again in the manifest."""
    path = canary / "shard-00.zip"
    with ZipFile(path) as archive:
        files = {name: archive.read(name) for name in archive.namelist()}
    change(files)
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name, data in files.items():
            archive.writestr(name, data)
    path.write_bytes(buffer.getvalue())

    def seal(manifest):
        shard = manifest["shards"][0]
        shard["bytes"] = len(buffer.getvalue())
        shard["sha256"] = sha256(buffer.getvalue()).hexdigest()

    return rewritten(canary, seal)


def test_a_refusal_is_one_line_on_stderr_and_exit_code_2(canary, capsys):
    assert main(["--model", str(canary / "none.safetensors"), "--canary", str(canary)]) == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err.count("\n") == 1
    assert "none.safetensors" in said.err


def test_a_folder_without_a_manifest_is_refused(tmp_path):
    with pytest.raises(BadCanary, match=r"canary\.json"):
        evaluate(BASE, tmp_path)


def test_a_folder_without_a_shard_is_refused(canary):
    (canary / "shard-00.zip").unlink()
    with pytest.raises(BadCanary, match="no shard"):
        evaluate(BASE, canary)


def test_a_shard_that_is_asked_for_and_not_there_is_refused(canary):
    with pytest.raises(BadCanary, match=r"shard-01\.zip"):
        evaluate(BASE, canary, ["01"])
    with pytest.raises(BadCanary, match="no shard 99"):
        evaluate(BASE, canary, ["99"])


def test_a_damaged_shard_is_refused(canary):
    path = canary / "shard-00.zip"
    data = bytearray(path.read_bytes())
    data[len(data) // 2] ^= 1
    path.write_bytes(data)
    with pytest.raises(BadCanary, match="SHA-256 differs"):
        evaluate(BASE, canary)


def test_a_cut_shard_is_refused(canary):
    path = canary / "shard-00.zip"
    path.write_bytes(path.read_bytes()[:-1])
    with pytest.raises(BadCanary, match="bytes, expected"):
        evaluate(BASE, canary)


@pytest.mark.parametrize(
    ("key", "value"),
    [("sample_rate", 8_000), ("normaliser", "whisper/1"), ("scorer", "wer/2"), ("unit", "char")],
)
def test_a_canary_for_another_recogniser_is_refused(canary, key, value):
    with pytest.raises(BadCanary, match=key):
        evaluate(BASE, rewritten(canary, lambda manifest: manifest.update({key: value})))


def test_a_manifest_that_is_no_manifest_is_refused(canary):
    for text in ("", "[]", "{}", '{"sample_rate": 16000}'):
        (canary / "canary.json").write_text(text)
        with pytest.raises(BadCanary, match="damaged"):
            evaluate(BASE, canary)


def test_a_shard_outside_the_folder_is_refused(canary):
    rewritten(canary, lambda manifest: manifest["shards"][0].update(file="../shard-00.zip"))
    with pytest.raises(BadCanary, match="outside"):
        evaluate(BASE, canary)


def test_a_shard_with_other_counts_than_the_manifest_is_refused(canary):
    rewritten(canary, lambda manifest: manifest["shards"][0].update(ref_words=1))
    with pytest.raises(BadCanary, match="expected 20 and 1"):
        evaluate(BASE, canary)


def test_a_recording_at_another_sample_rate_is_refused(canary):
    def slow(files):
        name = next(name for name in files if name.endswith(".wav"))
        files[name] = files[name].replace((16_000).to_bytes(4, "little"), b"\x40\x1f\0\0")

    with pytest.raises(BadCanary, match="8000 Hz"):
        evaluate(BASE, resealed(canary, slow))


def test_a_shard_without_one_of_its_recordings_is_refused(canary):
    with pytest.raises(BadCanary, match="damaged"):
        evaluate(BASE, resealed(canary, lambda files: files.pop("old-000.wav")))


def test_a_damaged_model_is_refused(tmp_path):
    data = BASE.read_bytes()
    for broken in (b"", data[:7], data[:200], data[:-1], data + b"\0", b"\xff" * 8 + data[8:]):
        path = tmp_path / "model.safetensors"
        path.write_bytes(broken)
        with pytest.raises(BadModel, match=r"model\.safetensors"):
            load_model(path)


@given(st.binary(max_size=200))
def test_random_headers_are_refused_and_never_crash(header):
    class Fake:
        def stat(self):
            return type("Stat", (), {"st_size": 8 + len(header)})

        def read_bytes(self):
            return len(header).to_bytes(8, "little") + header

    with pytest.raises(BadModel):
        load_model(Fake())


def test_a_tensor_of_the_wrong_shape_is_refused(tmp_path, tensors):
    tensors["output.weight"] = np.ascontiguousarray(tensors["output.weight"].T)
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(BadModel, match=r"output\.weight"):
        load_model(tmp_path / "model.safetensors")


def test_a_missing_tensor_is_refused(tmp_path, tensors):
    del tensors["layer1.input.bias"]
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(BadModel, match=r"layer1\.input\.bias"):
        load_model(tmp_path / "model.safetensors")


def test_a_scale_that_is_not_finite_is_refused(tmp_path, tensors):
    tensors["output.weight_scale"][3] = np.nan
    write_tensors(tmp_path / "model.safetensors", tensors, {})
    with pytest.raises(BadModel, match="not finite"):
        load_model(tmp_path / "model.safetensors")


@given(st.binary(max_size=120))
def test_random_bytes_are_no_recording(data):
    with pytest.raises(BadRecording):
        read_wav(data)


def test_a_recording_that_is_cut_or_stereo_is_refused():
    whole = write_wav(np.zeros(1_000, np.int16))
    with pytest.raises(BadRecording, match="cut short"):
        read_wav(whole[:-10])
    with pytest.raises(BadRecording, match="mono"):
        read_wav(whole[:22] + b"\2\0" + whole[24:])


def test_a_shard_whose_manifest_line_has_the_wrong_types_is_refused(canary):
    rewritten(canary, lambda manifest: manifest["shards"][0].update(bytes="369614"))
    with pytest.raises(BadCanary, match="not of type int"):
        evaluate(BASE, canary)


def test_references_that_are_no_texts_are_refused(canary):
    def mute(files):
        files["refs.json"] = json.dumps([{"id": "old-000", "text": 3, "tag": "old"}]).encode()

    with pytest.raises(BadCanary, match="must be strings"):
        evaluate(BASE, resealed(canary, mute))
