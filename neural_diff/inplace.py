"""Applies a patch to the only copy of a model, so that power may fail at any moment.

For devices with no room for a second slot. An **undo journal** beside the model, named
`.<model's name>.undo`, holds the old value of every byte that changes. It is on the disk before
the byte is written, so that whatever a power cut leaves, the old file can be put back:

    journal   magic · SHA-256 of the old file · SHA-256 of the new file · records
    record    offset · bytes it covers · bytes stored · SHA-256 of the stored bytes · stored bytes
    stored    deflated: for each byte covered, whether it changes (1 or 0); then the old values

Old values are put back, not subtracted, so doing so twice, or halfway and again, does no harm. A
journal whose last record is torn was cut before that record's bytes were touched. The journal is
about as large as the patch, and stays after success as the way back until `commit`.
"""

import contextlib
import fcntl
import hashlib
import os
import struct
from collections.abc import Iterator
from contextlib import ExitStack
from itertools import compress
from pathlib import Path
from typing import BinaryIO

from neural_diff import stream
from neural_diff.apply import Applied, Progress, fsync_directory
from neural_diff.codec import deflate, inflate
from neural_diff.errors import Corrupt, Unsuitable, WrongBase
from neural_diff.link import Link, check_base, check_size, open_link, open_regular, sha256_of

_HEAD = struct.Struct("<8s32s32s")
_RECORD = struct.Struct("<QII32s")
_MAGIC = b"\x89FLUNDO\n"
_BATCH_BYTES = 1 << 20  # of the model, changed after one flush of the journal
_CHANGES = bytes(1) + b"\1" * 255  # a table that tells bytes that are not zero


def apply_in_place(model: Path, patch: Path, *, progress: Progress | None = None) -> Applied:
    """Turns `model` itself into what `patch` leads to; `roll_back` undoes it until `commit`.

    What an earlier run that was cut off has left is put back first.

    Raises:
        Unsuitable: the patch moves bytes or changes the file's length, or a change is not
            committed yet.
        Malformed, WrongBase, Corrupt, OSError: as `apply`; the model is as it was.
    """
    with ExitStack() as opened:
        link = open_link(opened, patch)
        if link.patch.moves or link.patch.from_size != link.patch.to_size:
            raise Unsuitable(f"{patch}: moves bytes or changes the length: it needs a second file")
        work = opened.enter_context(_locked(model))
        if applied(model):
            raise Unsuitable(f"{model}: a change is not committed yet: commit it or roll it back")
        _put_back(model, work)
        check_size(work, link.patch, model)
        check_base(sha256_of(work), link.patch, model)
        journal = opened.enter_context(journal_of(model).open("xb"))
        try:
            sides = (bytes.fromhex(side) for side in (link.patch.from_sha256, link.patch.to_sha256))
            journal.write(_HEAD.pack(_MAGIC, *sides))
            journal.flush()
            os.fsync(journal.fileno())
            fsync_directory(model.parent)
            _carry_out(link, work, journal, progress)
        except BaseException:
            journal.close()
            _put_back(model, work)
            raise
    return Applied(link.patch.to_size, link.patch.to_sha256)


def roll_back(model: Path) -> None:
    """Puts the old model back, after a change that was cut off or is not committed.

    Raises:
        Corrupt: the journal does not lead to the old model.
    """
    with _locked(model) as work:
        _put_back(model, work)


def commit(model: Path) -> None:
    """Forgets the way back.

    Raises:
        Unsuitable: the model is not what the patch leads to; roll it back.
    """
    if journal_of(model).exists() and not applied(model):
        raise Unsuitable(f"{model}: the change was cut off: roll it back")
    journal_of(model).unlink(missing_ok=True)
    fsync_directory(model.parent)


def applied(model: Path) -> bool:
    """Whether a change is complete and not committed yet."""
    head = _head_of(model)
    with model.open("rb") as file:
        return head is not None and sha256_of(file) == head[1]


def journal_of(model: Path) -> Path:
    """Gives where the undo journal of a model lies."""
    return model.parent / f".{model.name[:200]}.undo"


def _carry_out(link: Link, work: BinaryIO, journal: BinaryIO, progress: Progress | None) -> None:
    changes = stream.Changes(link.patch, link.file, str(link.path))
    new, batch, size = hashlib.sha256(), [], 0
    for piece in stream.pieces_of(link.patch):
        work.seek(piece.offset)
        held = bytearray(work.read(piece.length))
        if piece.work:
            old = bytes(held)
            changes.carry_out(piece, held, new)
            journal.write(_record(piece.offset, old, held))
            batch.append((piece.offset, held))
            size += piece.length
        else:
            new.update(held)
        if size >= _BATCH_BYTES:
            _write(batch, work, journal)
            batch, size = [], 0
        if progress:
            progress(piece.offset + piece.length, link.patch.to_size)
    if new.hexdigest() != link.patch.to_sha256:
        raise Corrupt(f"{link.path}: the result is not the file that the patch promises")
    _write(batch, work, journal)
    os.fsync(work.fileno())


def _write(batch: list[tuple[int, bytearray]], work: BinaryIO, journal: BinaryIO) -> None:
    """Changes the model, once the old bytes are on the disk."""
    journal.flush()
    os.fsync(journal.fileno())
    for offset, held in batch:
        work.seek(offset)
        work.write(held)
    work.flush()


def _record(offset: int, old: bytes, new: bytearray) -> bytes:
    both = int.from_bytes(old, "little") ^ int.from_bytes(new, "little")
    flags = both.to_bytes(len(old), "little").translate(_CHANGES)
    stored = deflate(flags + bytes(compress(old, flags)))
    digest = hashlib.sha256(stored).digest()
    return _RECORD.pack(offset, len(old), len(stored), digest) + stored


def _put_back(model: Path, work: BinaryIO) -> None:
    head = _head_of(model)
    if head:
        for offset, flags, old in _records(model):
            work.seek(offset)
            held = bytearray(work.read(len(flags)))
            for place, value in zip(compress(range(len(flags)), flags), old, strict=True):
                held[place] = value
            work.seek(offset)
            work.write(held)
        work.flush()
        os.fsync(work.fileno())
        if sha256_of(work) != head[0]:
            raise Corrupt(f"{model}: the undo journal does not lead to the old model")
    journal_of(model).unlink(missing_ok=True)
    fsync_directory(model.parent)


def _head_of(model: Path) -> tuple[str, str] | None:
    """Gives the digests of the old and the new file, if a journal got as far as to say them."""
    try:
        with journal_of(model).open("rb") as journal:
            head, more = journal.read(_HEAD.size), journal.read(1)
    except FileNotFoundError:
        return None
    if head.startswith(_MAGIC) and len(head) == _HEAD.size:
        _, old, new = _HEAD.unpack(head)
        return old.hex(), new.hex()
    if more:
        raise Corrupt(f"{journal_of(model)}: is no undo journal; it is left as it is")
    return None


def _records(model: Path) -> Iterator[tuple[int, bytes, bytes]]:
    """Gives offset, flags and old values of every record that is whole."""
    with journal_of(model).open("rb") as journal:
        journal.seek(_HEAD.size)
        while len(head := journal.read(_RECORD.size)) == _RECORD.size:
            offset, covered, length, digest = _RECORD.unpack(head)
            stored = journal.read(length)
            if hashlib.sha256(stored).digest() != digest:
                return
            content = inflate(stored, 2 * covered)
            yield offset, content[:covered], content[covered:]


@contextlib.contextmanager
def _locked(model: Path) -> Iterator[BinaryIO]:
    """Opens a model to change it; nobody else may be doing so.

    Raises:
        OSError: somebody else is (EAGAIN), or the model is no regular file.
    """
    with open_regular(model, WrongBase, write=True) as work:
        fcntl.flock(work, fcntl.LOCK_EX | fcntl.LOCK_NB)
        yield work
