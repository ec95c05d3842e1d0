"""Artifacts in a bucket of S3 or of a server that speaks its protocol.

A body is checked here, in a spooled file, before its first byte goes to the bucket, for servers
differ: some ignore `If-None-Match`, some checksums, and an ETag means what each likes. Writing
one artifact twice is harmless, because both bodies are the same.

The keys, of the environment, need GetObject, PutObject, DeleteObject and ListBucket (without the
last, S3 answers 403 for what is absent). A rule of the bucket should abort unfinished multipart
uploads after a day.
"""

import logging
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.blobs.store import Blobs, Unavailable, checked, receive

CHUNK_BYTES = 1 << 20
SPOOL_BYTES_MAX = 1 << 20  # of a body in memory; the rest waits in an unnamed file
PART_BYTES = 8 << 20  # a larger body goes in parts of this size
PARTS_AT_ONCE = 4
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS_MAX = 3
CONNECTIONS_MAX = 40  # the thread pool that serves `def` routes

_CONFIG = Config(
    signature_version="s3v4",  # with an endpoint of its own boto3 would presign by version 2
    s3={"addressing_style": "path"},
    request_checksum_calculation="when_required",
    response_checksum_validation="when_required",
    retries={"mode": "standard", "total_max_attempts": ATTEMPTS_MAX},
    connect_timeout=CONNECT_TIMEOUT_S,
    read_timeout=READ_TIMEOUT_S,
    max_pool_connections=CONNECTIONS_MAX,
)
_TRANSFER = TransferConfig(
    multipart_threshold=PART_BYTES, multipart_chunksize=PART_BYTES, max_concurrency=PARTS_AT_ONCE
)


class S3Blobs(Blobs):
    """A store in a bucket, its keys those of the environment; see `Blobs` for each method."""

    def __init__(self, bucket: str, *, prefix: str, endpoint: str | None, region: str) -> None:
        # At DEBUG botocore logs signatures, and a signature is all that a URL keeps secret.
        logging.getLogger("botocore").setLevel(logging.INFO)
        self._bucket, self._prefix = bucket, prefix
        with self._explained("open"):
            session = boto3.Session(region_name=region)  # the default one keeps its first keys
            self._client = session.client("s3", endpoint_url=endpoint, config=_CONFIG)

    def size(self, sha256: str) -> int | None:
        """Return the size in bytes, None if there is no such artifact."""
        with self._explained("look into"):
            try:
                head = self._client.head_object(Bucket=self._bucket, Key=self._key(sha256))
                return head["ContentLength"]
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise

    @contextmanager
    def open(self, sha256: str) -> Iterator[IO[bytes]]:
        """Yield a checked copy of the artifact; raises `WrongDigest` if the bucket altered it."""
        if self.size(sha256) is None:
            raise FileNotFoundError(f"there is no artifact {sha256}")
        with self._spool() as file:
            with self._explained("read from"):
                found = self._client.get_object(Bucket=self._bucket, Key=self._key(sha256))
                body = found["Body"].iter_chunks(CHUNK_BYTES)
                receive(body, file, sha256, found["ContentLength"])
            yield file

    def url(self, sha256: str, expires_s: int) -> str:
        """Return a presigned URL."""
        with self._explained("presign for"):
            at = {"Bucket": self._bucket, "Key": self._key(sha256)}
            return self._client.generate_presigned_url("get_object", at, expires_s)

    def delete(self, sha256: str) -> None:
        """Remove an artifact."""
        with self._explained("delete from"):
            self._client.delete_object(Bucket=self._bucket, Key=self._key(sha256))

    def ready(self) -> None:
        """Ask for the bucket."""
        with self._explained("find"):
            self._client.head_bucket(Bucket=self._bucket)

    def _spool(self) -> tempfile.SpooledTemporaryFile[bytes]:
        return tempfile.SpooledTemporaryFile(SPOOL_BYTES_MAX)

    def _keep(self, file: IO[bytes], sha256: str) -> bool:
        with self._explained("write to"):
            self._client.upload_fileobj(file, self._bucket, self._key(sha256), Config=_TRANSFER)
        return True

    def _key(self, sha256: str) -> str:
        return self._prefix + checked(sha256)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise Unavailable(f"cannot {verb} s3://{self._bucket}: {error}") from error
