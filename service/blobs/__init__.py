"""Where artifacts lie: immutable files, each named by its SHA-256, in a folder or in S3.

A body is written to a temporary place first, counted and hashed on the way, and only a body that
is what its name says becomes visible, in one step. So there is never half an artifact, and what
is there is never rewritten. No path and no key is built from anything but a checked digest.

Presigned URLs are secrets: whoever holds one may read the artifact. They are never logged.
"""

import re
from pathlib import Path
from urllib.parse import parse_qsl

from service.blobs.local import LocalBlobs
from service.blobs.store import Blobs, WrongDigest, WrongLength

__all__ = ["BadLocation", "Blobs", "LocalBlobs", "WrongDigest", "WrongLength", "open_blobs"]
REGION = "us-east-1"  # what S3 servers that know no regions expect
_S3 = re.compile(
    r"s3://(?P<bucket>[a-z0-9][a-z0-9.-]{1,61}[a-z0-9])"
    r"(?P<prefix>(/[A-Za-z0-9_-][A-Za-z0-9._-]*)*)/?"
    r"(\?(?P<options>[^#]*))?"
)


class BadLocation(ValueError):
    """The location of the artifacts is not understood; the message never repeats it."""


def open_blobs(location: str) -> Blobs:
    """Open a folder (made if absent), or `s3://bucket[/prefix]?endpoint=URL&region=NAME`.

    Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never from the location.

    Raises:
        BadLocation: the location is not understood.
        OSError: the folder cannot be made or read.
    """
    if location and "://" not in location:
        return LocalBlobs(Path(location))
    found = _S3.fullmatch(location)
    if found is None:
        raise BadLocation(
            "artifacts lie in a folder or at s3://bucket[/prefix]?endpoint=URL&region=NAME, in "
            "letters that S3 takes; keys belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY"
        )
    options = parse_qsl(found["options"] or "", keep_blank_values=True)
    chosen = dict(options)
    endpoint, region = chosen.pop("endpoint", None), chosen.pop("region", REGION)
    if chosen or len(dict(options)) < len(options):
        raise BadLocation("only endpoint= and region= may follow the bucket, each once")
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise BadLocation("endpoint= must be an http:// or https:// URL")
    from service.blobs.s3 import S3Blobs  # boto3 costs half a second and 49 MB: only if asked for

    prefix = f"{found['prefix']}/".removeprefix("/")
    return S3Blobs(found["bucket"], prefix=prefix, endpoint=endpoint, region=region)
