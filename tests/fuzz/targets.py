"""What the fuzzer calls with any bytes; a pytest test replays a corpus of them.

`read` takes the bytes as the spelling of a manifest, of version 1 if it says limits, else of 2;
`apply` makes of them a base and a patch whose digests are right, so that the decoders are reached.
Only refusals may come of it, and the decoders of the kernel and the one of the page must agree.
"""

import contextlib
import io
import json

import pytest

from neural_diff import stream
from neural_diff.errors import NeuralDiffError
from neural_diff.patch import Patch, read_patch
from tests.fuzz.choices import Choices, patch_of
from tests.unit import reference, reference_manifest
from tests.unit.patch_files import put_together


def read(data: bytes) -> bool:
    """Reads bytes as a manifest; says whether it was one."""
    payloads = _payloads(data)
    version, digests = (1, b"") if b'"limits"' in data else (2, bytes(64 + 64 * len(payloads)))
    file, said = put_together(data, payloads, version=version, digests=digests), ""
    try:
        read_patch(io.BytesIO(file), len(file))
    except NeuralDiffError as error:
        said = str(error)
    try:
        reference_manifest.opened(file)
    except reference.Refused:
        assert said
    else:  # the page leaves it to the decoder to find streams of other lengths than they need
        assert not said or "stream" in said or "together" in said, said
    return not said


def _payloads(spelled: bytes) -> list[bytes]:
    """Gives payloads of zeros as long as a manifest says, if it does."""
    with contextlib.suppress(ValueError, LookupError, TypeError, RecursionError):
        lengths = [
            section["payload_bytes"]
            if "payload_bytes" in section
            else sum(stored if type(stored) is int else stored[0] for stored in section["streams"])
            for section in json.loads(spelled)["sections"]
        ]
        if all(0 <= length < 1 << 16 for length in lengths):
            return [bytes(length) for length in lengths]
    return []


def apply(data: bytes) -> bytearray | None:
    """Applies what is made of the bytes; gives the new file, or None if it was refused."""
    base, manifest, payloads = patch_of(Choices(data))
    version = 1
    with contextlib.suppress(ValueError, LookupError, TypeError, AttributeError):
        put_together(manifest, payloads, version=2)
        version += len(data) % 2
    file = put_together(manifest, payloads, version=version)
    given = [_applied(base, file, numpy) for numpy in (True, False)]
    assert given[0] == given[1]
    try:
        wanted = reference.made(base, *reference_manifest.opened(file), digests=False)
    except reference.Refused:
        assert isinstance(given[0], str), given
        return None
    assert wanted == given[0]
    return wanted


def _applied(base: bytes, file: bytes, numpy: bool) -> bytearray | str:
    """Applies in memory, without the digests of results."""
    opened = io.BytesIO(file)
    with pytest.MonkeyPatch.context() as patched:
        patched.setattr(stream, "NUMPY", numpy)
        patched.setattr(stream, "PIECE_BYTES", 48)
        try:
            patch = read_patch(opened, len(file))
            made = stream.stage(
                patch, stream.Changes(patch, opened, ""), _taking(base, patch), None
            )
            return bytearray().join(made)
        except NeuralDiffError as error:
            return f"{type(error).__name__}: {error}"


def _taking(base: bytes, patch: Patch) -> stream.Take:
    source = io.BytesIO(base)
    if patch.moves:
        return stream.taken_from(stream.moved(source, patch.moves))
    return lambda count: bytearray(source.read(count))
