"""One artifact that the tests of the stores put, get and look for."""

import hashlib
from collections.abc import Callable
from typing import cast

from service.blobs import Blobs, LocalBlobs
from service.blobs.s3 import S3Blobs

BODY = bytes(range(256)) * 40
NAME = hashlib.sha256(BODY).hexdigest()
OTHER = hashlib.sha256(b"other").hexdigest()
URL_LIFETIME_S = 600


def put(blobs: Blobs, body: bytes = BODY) -> bool:
    return blobs.put([body], hashlib.sha256(body).hexdigest(), len(body))


def get(blobs: Blobs, name: str = NAME) -> bytes:
    with blobs.open(name) as file:
        return file.read()


def everything_in(blobs: Blobs) -> list[str]:
    """Return the name of every file or object, whole or not, that the store holds."""
    if isinstance(blobs, LocalBlobs):
        return sorted(path.name for path in blobs.folder.rglob("*") if not path.is_dir())
    bucket = cast(S3Blobs, blobs)
    s3, name, prefix = bucket._client, bucket._bucket, bucket._prefix
    objects = s3.list_objects_v2(Bucket=name, Prefix=prefix).get("Contents", [])
    found = [each["Key"] for each in objects]
    try:
        uploads = s3.list_multipart_uploads(Bucket=name, Prefix=prefix).get("Uploads", [])
        found += ["unfinished " + each["Key"] for each in uploads]
    except s3.exceptions.NoSuchUpload:
        pass  # how rclone says that there never was one
    # A set: after a race rclone may list one key twice.
    return sorted({key.removeprefix(prefix) for key in found})


def noted(real: Callable[..., object], calls: list[str]) -> Callable[..., object]:
    def noted(*args: object, **options: object) -> object:
        calls.append(real.__name__)
        return real(*args, **options)

    return noted
