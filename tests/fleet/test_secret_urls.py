"""A story with a bucket: every byte is fetched by a presigned URL, and nothing remembers one."""

import os
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import pytest

from demo.cast import Cast, free_port
from demo.story import GATE, Story
from tests.real.s3 import S3Server

TALKATIVE = (
    "import logging, sys; logging.basicConfig(level=logging.DEBUG); "
    "from demo.fleet import main; sys.exit(main(sys.argv[1:]))"
)
SECRETS = (b"X-Amz-Signature", b"X-Amz-Credential", b"AWSAccessKeyId")


class BucketCast(Cast):
    """The demo's cast with its artifacts in a bucket, saying everything that it ever says."""

    bucket: S3Server

    def start_server(self) -> None:
        data = self.folder / "server"
        command = [sys.executable, "-m", "service", "serve", "--port", str(self.port)]
        command += ["--online-keys", str(self.folder / "keys" / "online"), "--log-level", "DEBUG"]
        command += ["--tick-s", str(self.tick_s), "--poll-after-s", str(self.poll_s)]
        where = {
            "FLEETDIFF_DATABASE": f"sqlite:///{data / 'fleetdiff.db'}",
            "FLEETDIFF_ARTIFACTS": self.bucket.location("story"),
            "AWS_ACCESS_KEY_ID": self.bucket.access_key,
            "AWS_SECRET_ACCESS_KEY": self.bucket.secret_key,
            "FLEETDIFF_POLL_SOON_S": "1",
        }
        self._start("server", command, os.environ | where)
        self.await_server()

    def write_devices(self, names: list[str], server: str = "") -> None:
        super().write_devices(names, server)
        for name in names:
            file = self.folder / "devices" / name / "agent.toml"
            host = f'blob_hosts = ["{urlsplit(self.bucket.endpoint).netloc}"]\n'
            file.write_text(file.read_text().replace("dev_root", host + "dev_root"))

    def _start(self, name: str, command: list[Any], environ: dict[str, str]) -> None:
        if command[1:3] == ["-m", "demo.fleet"]:
            command = [sys.executable, "-c", TALKATIVE, *command[3:]]
        super()._start(name, command, environ)


@pytest.fixture
def cast(tmp_path: Path, s3_server: S3Server) -> Iterator[BucketCast]:
    made = BucketCast(tmp_path, free_port(0))
    made.bucket = s3_server
    yield made
    made.stop()


def remembered(folder: Path) -> dict[str, list[bytes]]:
    """Return file -> the secrets in it, of logs, databases and all that devices keep."""
    files = [path for path in folder.rglob("*") if path.is_file() and not path.is_symlink()]
    assert len(files) > 50
    found = {str(path): [s for s in SECRETS if s in path.read_bytes()] for path in files}
    return {path: secrets for path, secrets in found.items() if secrets}


@pytest.mark.real
@pytest.mark.attack("A18")
def test_nothing_that_is_logged_stored_or_reported_holds_a_presigned_url(cast: BucketCast) -> None:
    lines: list[str] = []
    story = Story(cast, lines.append, agents=26, stages="100%", gate=GATE | {"alpha_halt": 0.05})
    story.open()
    story.enroll(story.agents, "speaker")
    story.sparse()
    cast.stop()
    logs = b"".join(file.read_bytes() for file in cast.folder.glob("*.log"))
    assert b'"level": "debug"' in logs and b"DEBUG:tuf" in logs, "they said everything"
    assert cast.token[-43:].encode() not in logs
    assert cast.bucket.secret_key.encode() not in logs
    assert remembered(cast.folder) == {}
