"""Artifacts in a bucket of S3 or of a server that speaks its protocol.

A body is checked here, in a spooled file, before its first byte goes to the bucket, for servers
differ: some ignore `If-None-Match`, some checksums, and an ETag means what each likes. Writing
one artifact twice is harmless, because both bodies are the same.

The keys need GetObject, PutObject and ListBucket (without the last, S3 answers 403 for what is
absent). A rule of the bucket should abort unfinished multipart uploads after a day.
"""

import logging
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import IO

import boto3
from boto3.exceptions import Boto3Error
from boto3.s3.transfer import TransferConfig
from botocore.config import Config
from botocore.exceptions import BotoCoreError, ClientError

from service.blobs.store import Unavailable, check_digest, is_stored, receive

CHUNK_BYTES = 1 << 20
SPOOL_BYTES_MAX = 1 << 20  # of a body in memory; the rest waits in an unnamed file
PART_BYTES = 8 << 20  # a larger body goes in parts of this size
PARTS_AT_ONCE = 4
CONNECT_TIMEOUT_S = 5
READ_TIMEOUT_S = 60
ATTEMPTS_MAX = 3
CONNECTIONS_MAX = 40  # the thread pool that serves `def` routes
URLS_MAX = 10_000  # presigning costs 0.5 ms: a URL is handed out for half its life

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


class S3Blobs:
    """A store in a bucket; keys None means those of the environment; see `Blobs`."""

    def __init__(
        self,
        bucket: str,
        *,
        prefix: str,
        endpoint: str | None,
        region: str,
        keys: tuple[str, str] | None = None,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        # At DEBUG botocore logs signatures, and a signature is all that a URL keeps secret.
        logging.getLogger("botocore").setLevel(logging.INFO)
        self._bucket, self._prefix, self._clock = bucket, prefix, clock
        self._urls: dict[tuple[str, int], tuple[str, float]] = {}
        with self._explained("open"):
            self._client = boto3.client(
                "s3",
                endpoint_url=endpoint,
                region_name=region,
                aws_access_key_id=keys[0] if keys else None,
                aws_secret_access_key=keys[1] if keys else None,
                config=_CONFIG,
            )

    def __repr__(self) -> str:
        return f"S3Blobs('s3://{self._bucket}/{self._prefix}')"

    def put(self, chunks: Iterable[bytes], sha256: str, bytes_expected: int) -> bool:
        """Store a body; True if it was not there a moment ago."""
        if is_stored(self, sha256, bytes_expected):
            return False
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES_MAX) as file:
            receive(chunks, file, sha256, bytes_expected)
            file.seek(0)
            with self._explained("write to"):
                self._client.upload_fileobj(
                    file,
                    self._bucket,
                    self._prefix + sha256,
                    ExtraArgs={"ContentType": "application/octet-stream"},
                    Config=_TRANSFER,
                )
        return True

    def size(self, sha256: str) -> int | None:
        """Return the size in bytes, None if there is no such artifact."""
        check_digest(sha256)
        with self._explained("look into"):
            try:
                head = self._client.head_object(Bucket=self._bucket, Key=self._prefix + sha256)
            except ClientError as error:
                if error.response["ResponseMetadata"]["HTTPStatusCode"] == 404:
                    return None
                raise
            return head["ContentLength"]

    @contextmanager
    def open(self, sha256: str) -> Iterator[IO[bytes]]:
        """Yield a checked copy of the artifact; raises `WrongDigest` if the bucket altered it."""
        if self.size(sha256) is None:
            raise FileNotFoundError(f"there is no artifact {sha256}")
        with tempfile.SpooledTemporaryFile(SPOOL_BYTES_MAX) as file:
            with self._explained("read from"):
                found = self._client.get_object(Bucket=self._bucket, Key=self._prefix + sha256)
                body = found["Body"].iter_chunks(CHUNK_BYTES)
                receive(body, file, sha256, found["ContentLength"])
            file.seek(0)
            yield file

    def path(self, sha256: str) -> Path | None:
        """Return None: a bucket has no files."""
        check_digest(sha256)
        return None

    def url(self, sha256: str, expires_s: int) -> str:
        """Return a presigned URL, the same one for half its lifetime."""
        check_digest(sha256)
        url, good_until = self._urls.get((sha256, expires_s), ("", 0.0))
        now = self._clock()
        if not url or now >= good_until:
            with self._explained("presign for"):
                url = self._client.generate_presigned_url(
                    "get_object",
                    Params={"Bucket": self._bucket, "Key": self._prefix + sha256},
                    ExpiresIn=expires_s,
                )
            if len(self._urls) >= URLS_MAX:
                self._urls.clear()
            self._urls[sha256, expires_s] = url, now + expires_s / 2
        return url

    def ready(self) -> None:
        """Ask for the bucket."""
        with self._explained("find"):
            self._client.head_bucket(Bucket=self._bucket)

    @contextmanager
    def _explained(self, verb: str) -> Iterator[None]:
        try:
            yield
        except (BotoCoreError, ClientError, Boto3Error) as error:
            raise Unavailable(f"cannot {verb} s3://{self._bucket}: {error}") from error
