"""The manifest of a canary set, as far as the server needs to know it."""

from typing import Annotated, Any

from pydantic import AfterValidator, BaseModel, Field
from pydantic_core import from_json

from service.blobs import Blobs
from service.core import errors
from service.core.bodies import ERRORS_MAX, Name, Sha256
from trust.fields import one_of
from trust.order import read_time, write_time
from trust.roles import NORMALISERS, UNITS, CanaryTarget

CANARY_MANIFEST_BYTES_MAX = 1 << 20
Words = Annotated[int, Field(strict=True, ge=1, le=ERRORS_MAX)]  # what a report may count


class Shard(BaseModel):
    """One shard of a canary set, as far as the server needs to know it."""

    id: Name
    sha256: Sha256
    bytes: Annotated[int, Field(strict=True)]
    utterances: Words
    ref_words: Words


class Manifest(BaseModel):
    """A canary set: every poll and every report relies on its shards.

    Attributes:
        normaliser, unit: how words are counted; a device refuses what it does not know.
        expires: when devices refuse the set, or empty.
    """

    normaliser: Annotated[str, AfterValidator(one_of(NORMALISERS))]
    unit: Annotated[str, AfterValidator(one_of(UNITS))]
    expires: Annotated[str, AfterValidator(lambda text: write_time(read_time(text)))] = ""
    shards: Annotated[list[Shard], Field(min_length=1)]


def read_manifest(blobs: Blobs, target: CanaryTarget) -> dict[str, Any]:
    """Return the manifest of a canary set as it was published."""
    if target.bytes > CANARY_MANIFEST_BYTES_MAX:
        raise errors.NotAcceptable("the canary manifest is larger than 1 MiB")
    with blobs.open(target.sha256) as file:
        raw = file.read(CANARY_MANIFEST_BYTES_MAX + 1)
    try:
        document: dict[str, Any] = from_json(raw, allow_inf_nan=False)
        shards = Manifest.model_validate(document).shards
        if len({shard.id for shard in shards}) != len(shards):
            raise ValueError("each shard has an id of its own")
    except ValueError as error:
        raise errors.NotAcceptable(f"the canary manifest is not understood: {error}") from error
    return document
