"""The canary pool as a device reads it: a manifest, and shards of recordings with their texts.

`canary.json` lists every shard with its SHA-256; a device holds the manifest and the shard that
is its own. A shard is a zip of mu-law WAV files and `refs.json`. Everything is checked before a
sample is decoded, and a shard that does not match its digest is refused.
"""

import json
import zlib
from dataclasses import dataclass
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from typing import Any
from zipfile import BadZipFile, ZipFile

import numpy as np
from numpy.typing import NDArray

from demo.speech.features import SAMPLE_RATE_HZ, read_wav
from device_agent.scoring import NORMALISER, SCORER, WORDS_MAX

MANIFEST = "canary.json"
REFERENCES = "refs.json"
MANIFEST_BYTES_MAX = 1 << 20
SHARD_BYTES_MAX = 16 << 20
MEMBER_BYTES_MAX = 1 << 20
UTTERANCES_MAX = 1_000
# what zipfile, zlib and json raise on bytes that are not what they should be
ZIP_ERRORS = (BadZipFile, zlib.error, EOFError, RuntimeError, ValueError, KeyError, TypeError)


class BadCanary(ValueError):
    """The canary manifest or a shard is missing, damaged, or not for this recogniser."""


@dataclass(frozen=True)
class Shard:
    """One line of the manifest."""

    id: str
    file: str
    sha256: str
    bytes: int
    utterances: int
    ref_words: int


@dataclass(frozen=True)
class Utterance:
    """One recording: its id, normalised reference text, tag, and int16 samples at 16 kHz."""

    id: str
    text: str
    tag: str
    samples: NDArray[np.int16]


def read_manifest(folder: Path) -> list[Shard]:
    """Reads `canary.json` and returns its shards, or raises BadCanary."""
    path = folder / MANIFEST
    try:
        data = path.read_bytes()
        if len(data) > MANIFEST_BYTES_MAX:
            raise BadCanary(f"{path}: longer than {MANIFEST_BYTES_MAX} bytes")
        manifest = json.loads(data)
        expected = {
            "sample_rate": SAMPLE_RATE_HZ,
            "normaliser": NORMALISER,
            "scorer": SCORER,
            "unit": "word",
        }
        for key, value in expected.items():
            if manifest[key] != value:
                raise BadCanary(f"{path}: {key} is {manifest[key]!r}, expected {value!r}")
        return [_shard(line) for line in manifest["shards"]]
    except OSError as error:
        raise BadCanary(f"{path}: {error.strerror}") from error
    except BadCanary:
        raise
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise BadCanary(f"{path}: damaged: {error!r}") from error


def _shard(line: dict[str, Any]) -> Shard:
    shard = Shard(**line)
    for name, kind in Shard.__annotations__.items():
        if type(getattr(shard, name)) is not kind:
            raise ValueError(f"{name} of a shard is not of type {kind.__name__}")
    if Path(shard.file).name != shard.file or "\0" in shard.file:
        raise BadCanary(f"shard {shard.id} names a file outside its folder: {shard.file!r}")
    return shard


def shards_at(folder: Path, shards: list[Shard], only: list[str] | None = None) -> list[Shard]:
    """Returns the shards whose file is in the folder, or exactly those whose id is in `only`."""
    if only is not None:
        unknown = sorted(set(only) - {shard.id for shard in shards})
        if unknown:
            raise BadCanary(f"{folder}: no shard {unknown[0]} in {MANIFEST}")
        return [shard for shard in shards if shard.id in only]
    present = [shard for shard in shards if (folder / shard.file).exists()]
    if not present:
        raise BadCanary(f"{folder}: no shard of {MANIFEST} is here")
    return present


def read_shard(folder: Path, shard: Shard) -> list[Utterance]:
    """Reads the recordings of a shard, or raises BadCanary."""
    path = folder / shard.file
    try:
        size = path.stat().st_size
        if size != shard.bytes or size > SHARD_BYTES_MAX:
            raise BadCanary(f"{path}: has {size} bytes, expected {shard.bytes}")
        data = path.read_bytes()
        if sha256(data).hexdigest() != shard.sha256:
            raise BadCanary(f"{path}: SHA-256 differs from {MANIFEST}")
        with ZipFile(BytesIO(data)) as archive:
            references = json.loads(_member(archive, REFERENCES))[:UTTERANCES_MAX]
            utterances = [_utterance(archive, line) for line in references]
    except OSError as error:
        raise BadCanary(f"{path}: {error.strerror}") from error
    except BadCanary:
        raise
    except ZIP_ERRORS as error:
        raise BadCanary(f"{path}: damaged: {error}") from error
    words = sum(len(u.text.split()) for u in utterances)
    if (len(utterances), words) != (shard.utterances, shard.ref_words):
        raise BadCanary(
            f"{path}: holds {len(utterances)} utterances and {words} words,"
            f" expected {shard.utterances} and {shard.ref_words}"
        )
    return utterances


def _utterance(archive: ZipFile, line: dict[str, Any]) -> Utterance:
    if not all(type(line[key]) is str for key in ("id", "text", "tag")):
        raise BadCanary(f"{REFERENCES}: id, text and tag must be strings: {line}")
    words = line["text"].split()
    if not 0 < len(words) <= WORDS_MAX:
        raise BadCanary(f"{line['id']}: {len(words)} words, expected 1 to {WORDS_MAX}")
    samples = read_wav(_member(archive, f"{line['id']}.wav"))
    return Utterance(line["id"], line["text"], line["tag"], samples)


def _member(archive: ZipFile, name: str) -> bytes:
    if archive.getinfo(name).file_size > MEMBER_BYTES_MAX:
        raise BadCanary(f"{name}: longer than {MEMBER_BYTES_MAX} bytes")
    return archive.read(name)
