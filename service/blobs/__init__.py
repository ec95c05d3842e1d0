"""Where artifacts lie: immutable files, each named by its SHA-256, in a folder or in S3.

A body is written to a temporary place first, counted and hashed on the way, and only a body that
is what its name says becomes visible, in one step. So there is never half an artifact, and what
is there is never rewritten. No path and no key is built from anything but a checked digest.

Presigned URLs are secrets: whoever holds one may read the artifact. They are never logged.
"""

import re
from pathlib import Path
from urllib.parse import parse_qsl, urlsplit

from service.blobs.local import LocalBlobs
from service.blobs.store import Blobs, NotADigest, Unavailable, WrongDigest, WrongLength

__all__ = [
    "BadLocation",
    "Blobs",
    "LocalBlobs",
    "NotADigest",
    "Unavailable",
    "WrongDigest",
    "WrongLength",
    "open_blobs",
]

REGION = "us-east-1"  # what S3 servers that know no regions expect
_BUCKET = re.compile(r"[a-z0-9][a-z0-9.-]{1,61}[a-z0-9]")
_PREFIX = re.compile(r"([A-Za-z0-9_-][A-Za-z0-9._-]*/)*")


class BadLocation(ValueError):
    """The location of the artifacts is not understood; the message never repeats it."""


def open_blobs(location: str) -> Blobs:
    """Open a folder (made if absent), or `s3://bucket[/prefix]?endpoint=URL&region=NAME`.

    Keys come from AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, never from the location.

    Raises:
        BadLocation: the location is not understood.
        OSError: the folder cannot be made or read.
    """
    if not location:
        raise BadLocation("name a folder, or s3://bucket, for the artifacts")
    if "://" not in location:
        return LocalBlobs(Path(location))
    parts = urlsplit(location)
    options = parse_qsl(parts.query, keep_blank_values=True)
    chosen = dict(options)
    prefix = parts.path.strip("/") + "/" if parts.path.strip("/") else ""
    endpoint = chosen.get("endpoint")
    if parts.scheme != "s3" or parts.fragment:
        raise BadLocation("artifacts lie in a folder or at s3://bucket[/prefix]?endpoint=&region=")
    if "@" in parts.netloc:
        raise BadLocation("keys belong in AWS_ACCESS_KEY_ID and AWS_SECRET_ACCESS_KEY, not here")
    if not _BUCKET.fullmatch(parts.netloc) or not _PREFIX.fullmatch(prefix):
        raise BadLocation("the bucket or the prefix has letters that S3 does not take")
    if len(chosen) != len(options) or not chosen.keys() <= {"endpoint", "region"}:
        raise BadLocation("only endpoint= and region= may follow the bucket, each once")
    if endpoint is not None and not endpoint.startswith(("https://", "http://")):
        raise BadLocation("endpoint= must be an http:// or https:// URL")
    from service.blobs.s3 import S3Blobs  # boto3 costs half a second and 49 MB: only if asked for

    region = chosen.get("region", REGION)
    return S3Blobs(parts.netloc, prefix=prefix, endpoint=endpoint, region=region)
