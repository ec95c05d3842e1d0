"""What only a folder of artifacts can do wrong."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from service.blobs import LocalBlobs
from service.blobs.local import UNFINISHED, UNFINISHED_AGE_S_MAX
from tests.service.artifact import BODY, NAME, URL_LIFETIME_S, everything_in, get, noted, put


@pytest.fixture
def local(tmp_path: Path) -> LocalBlobs:
    return LocalBlobs(tmp_path / "store")


def test_a_local_artifact_has_a_file_of_its_own_and_no_url(local: LocalBlobs) -> None:
    put(local)
    path = local.path(NAME)
    assert path == local.folder / NAME
    assert path.read_bytes() == BODY
    assert path.stat().st_mode & 0o222 == 0
    assert local.url(NAME, URL_LIFETIME_S) is None


@pytest.mark.attack("A14")
def test_a_symbolic_link_in_place_of_an_artifact_leads_nowhere(
    local: LocalBlobs, tmp_path: Path
) -> None:
    secret = tmp_path / "secret"
    secret.write_bytes(b"secret")
    (local.folder / NAME).symlink_to(secret)
    for act in (put, get, lambda blobs: blobs.size(NAME), lambda blobs: blobs.path(NAME)):
        with pytest.raises(OSError, match="symbolic links"):
            act(local)
    assert secret.read_bytes() == b"secret"


@pytest.mark.parametrize("make", [os.mkdir, os.mkfifo])
def test_what_is_no_regular_file_is_no_artifact(local: LocalBlobs, make: object) -> None:
    make(local.folder / NAME)  # type: ignore[operator]
    with pytest.raises(OSError, match=r"directory|regular"):
        local.size(NAME)


@pytest.mark.parametrize("call", ["fsync", "link", "open"])
def test_a_disk_that_fails_leaves_nothing(
    local: LocalBlobs, monkeypatch: pytest.MonkeyPatch, call: str
) -> None:
    def fail(*_: object, **__: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as broken:
        broken.setattr(os, call, fail)
        with pytest.raises(OSError, match="No space left"):
            put(local)
    assert everything_in(local) == []
    assert put(local) is True


def test_the_body_is_on_the_disk_before_its_name_is(
    local: LocalBlobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    calls: list[str] = []
    for call in ("fsync", "link"):
        monkeypatch.setattr(os, call, noted(getattr(os, call), calls))
    put(local)
    assert calls == ["fsync", "link", "fsync"]  # the file, then its name


@pytest.mark.attack("A11")
def test_a_killed_upload_is_never_seen_and_goes_after_a_day(local: LocalBlobs) -> None:
    script = """
import os, sys
from pathlib import Path
from service.blobs import LocalBlobs
def killed():
    yield b"half"
    os._exit(9)
LocalBlobs(Path(sys.argv[1])).put(killed(), sys.argv[2], 100)
"""
    done = subprocess.run([sys.executable, "-c", script, str(local.folder), NAME])
    assert done.returncode == 9
    (leftover,) = local.folder.iterdir()
    assert leftover.suffix == UNFINISHED
    assert local.size(NAME) is None
    LocalBlobs(local.folder)
    assert leftover.exists(), "another process may still be writing it"
    past = leftover.stat().st_mtime - UNFINISHED_AGE_S_MAX - 1
    os.utime(leftover, (past, past))
    LocalBlobs(local.folder)
    assert everything_in(local) == []


@pytest.mark.attack("A14")
def test_a_symbolic_link_among_the_unfinished_is_not_followed_when_they_go(
    local: LocalBlobs, tmp_path: Path
) -> None:
    outside = tmp_path / "outside"
    outside.write_bytes(b"kept")
    link = local.folder / f"old{UNFINISHED}"
    link.symlink_to(outside)
    past = link.lstat().st_mtime - UNFINISHED_AGE_S_MAX - 1
    os.utime(outside, (past, past))
    LocalBlobs(local.folder)
    assert link.is_symlink(), "the age of what it points to was taken"
    os.utime(link, (past, past), follow_symlinks=False)
    LocalBlobs(local.folder)
    assert everything_in(local) == []
    assert outside.read_bytes() == b"kept"


def test_a_folder_that_is_gone_is_not_ready(local: LocalBlobs) -> None:
    local.folder.rmdir()
    with pytest.raises(FileNotFoundError):
        local.ready()
