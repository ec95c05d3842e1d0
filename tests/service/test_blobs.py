"""One suite for every store of artifacts, and how a store is opened by its location."""

import hashlib
import os
import re
import subprocess
import sys
import threading
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import cast

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from service.blobs import BadLocation, Blobs, LocalBlobs, WrongDigest, WrongLength, open_blobs
from service.blobs.s3 import PART_BYTES, S3Blobs
from service.blobs.store import NotADigest
from tests.service.artifact import BODY, NAME, URL_LIFETIME_S, everything_in, get, put

RACERS = 20
not_digests = st.one_of(
    # A digest is not refused, and Hypothesis does come upon one.
    st.text().filter(lambda text: not re.fullmatch("[0-9a-f]{64}", text)),
    st.sampled_from(
        [
            "../" * 10 + "etc/passwd",
            "/etc/passwd",
            NAME[:-1],
            NAME + "0",
            NAME.upper(),
            NAME + "\n",
            NAME[:-2] + "..",
            NAME[:31] + "/" + NAME[32:],
            NAME[:-1] + "\0",
            NAME[:-1] + "٣",
        ]
    ),
)


def never_read() -> Iterator[bytes]:
    yield pytest.fail("the body of an artifact that is there was read")


def test_what_is_put_is_what_is_read(blobs: Blobs) -> None:
    assert put(blobs) is True
    assert get(blobs) == BODY
    assert blobs.size(NAME) == len(BODY)
    assert everything_in(blobs) == [NAME]


def test_what_is_deleted_is_gone_and_may_be_put_again(blobs: Blobs) -> None:
    put(blobs)
    blobs.delete(NAME)
    blobs.delete(NAME)
    assert blobs.size(NAME) is None and everything_in(blobs) == []
    assert put(blobs) is True and get(blobs) == BODY
    with pytest.raises(NotADigest):
        blobs.delete("../../etc/passwd")


@settings(
    max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(chunks=st.lists(st.binary(max_size=200), max_size=12))
def test_how_a_body_is_cut_into_chunks_makes_no_difference(
    blobs: Blobs, chunks: list[bytes]
) -> None:
    body = b"".join(chunks)
    name = hashlib.sha256(body).hexdigest()
    was_there = blobs.size(name) is not None
    assert blobs.put(iter(chunks), name, len(body)) is not was_there
    assert get(blobs, name) == body


def test_a_body_of_several_parts_arrives_whole(blobs: Blobs) -> None:
    body = os.urandom(PART_BYTES + 1)
    chunks = (body[start : start + 100_000] for start in range(0, len(body), 100_000))
    name = hashlib.sha256(body).hexdigest()
    assert blobs.put(chunks, name, len(body)) is True
    assert hashlib.sha256(get(blobs, name)).hexdigest() == name


def test_an_absent_artifact_has_no_size_no_file_and_cannot_be_read(blobs: Blobs) -> None:
    assert blobs.size(NAME) is None
    assert blobs.path(NAME) is None
    with pytest.raises(FileNotFoundError):
        get(blobs)


@pytest.mark.parametrize("at", [0, len(BODY) // 2, len(BODY) - 1])
def test_a_flipped_byte_is_refused_and_nothing_is_left(blobs: Blobs, at: int) -> None:
    body = bytearray(BODY)
    body[at] ^= 1
    with pytest.raises(WrongDigest, match=NAME):
        blobs.put([bytes(body)], NAME, len(BODY))
    assert blobs.size(NAME) is None
    assert everything_in(blobs) == []


@pytest.mark.parametrize("body", [b"", BODY[:-1], BODY + b"\0", BODY + BODY])
def test_a_short_or_long_body_is_refused_and_nothing_is_left(blobs: Blobs, body: bytes) -> None:
    with pytest.raises(WrongLength, match=str(len(BODY))):
        blobs.put([body], NAME, len(BODY))
    assert everything_in(blobs) == []


def test_a_body_that_never_ends_is_refused_at_the_first_byte_too_many(blobs: Blobs) -> None:
    taken = []

    def endless() -> Iterator[bytes]:
        while True:
            taken.append(1)
            yield BODY

    with pytest.raises(WrongLength):
        blobs.put(endless(), NAME, len(BODY))
    assert len(taken) == 2


@pytest.mark.parametrize("error", [ConnectionResetError, KeyboardInterrupt, RuntimeError])
@pytest.mark.parametrize("chunks", [0, 1, 4])
def test_an_aborted_upload_leaves_nothing(
    blobs: Blobs, error: type[BaseException], chunks: int
) -> None:
    def broken() -> Iterator[bytes]:
        yield from [BODY[:1000]] * chunks
        raise error

    with pytest.raises(error):
        blobs.put(broken(), NAME, len(BODY))
    assert blobs.size(NAME) is None
    assert everything_in(blobs) == []
    assert put(blobs) is True


def test_an_artifact_that_is_there_is_neither_read_nor_written_again(blobs: Blobs) -> None:
    put(blobs)
    before = _written_at(blobs)
    assert blobs.put(never_read(), NAME, len(BODY)) is False
    assert _written_at(blobs) == before


def _written_at(blobs: Blobs) -> object:
    if isinstance(blobs, LocalBlobs):
        found = cast(Path, blobs.path(NAME)).stat()
        return found.st_ino, found.st_mtime_ns, found.st_ctime_ns
    bucket = cast(S3Blobs, blobs)
    return bucket._client.head_object(Bucket=bucket._bucket, Key=bucket._prefix + NAME)[
        "LastModified"
    ]


def test_an_artifact_that_is_there_with_another_size_is_refused(blobs: Blobs) -> None:
    put(blobs)
    with pytest.raises(WrongLength):
        blobs.put(never_read(), NAME, len(BODY) + 1)
    assert get(blobs) == BODY


@pytest.mark.attack("A13")
def test_twenty_racers_leave_one_artifact(blobs: Blobs) -> None:
    start = threading.Barrier(RACERS)

    def race(_: int) -> bool:
        def chunks() -> Iterator[bytes]:
            yield BODY[:5000]
            start.wait(30)  # none ends before all have begun
            yield BODY[5000:]

        return blobs.put(chunks(), NAME, len(BODY))

    with ThreadPoolExecutor(RACERS) as pool:
        new = list(pool.map(race, range(RACERS)))
    assert new.count(True) == 1 if isinstance(blobs, LocalBlobs) else new.count(True) >= 1
    assert everything_in(blobs) == [NAME]
    assert get(blobs) == BODY


@settings(
    max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)
@given(name=not_digests)
@pytest.mark.attack("A12", "A14")
def test_only_a_digest_may_become_a_path_or_a_key(blobs: Blobs, name: str) -> None:
    with pytest.raises(NotADigest):
        blobs.put(never_read(), name, 1)
    with pytest.raises(NotADigest):
        blobs.size(name)
    with pytest.raises(NotADigest):
        blobs.path(name)
    with pytest.raises(NotADigest):
        blobs.url(name, URL_LIFETIME_S)
    with pytest.raises(NotADigest):
        get(blobs, name)


def test_a_store_that_works_is_ready_and_stays_empty(blobs: Blobs) -> None:
    blobs.ready()
    assert everything_in(blobs) == []


def test_a_second_opening_finds_what_the_first_stored(tmp_path: Path) -> None:
    put(open_blobs(str(tmp_path / "store")))
    assert get(open_blobs(str(tmp_path / "store"))) == BODY


def test_a_process_that_stores_in_a_folder_never_imports_boto3(tmp_path: Path) -> None:
    script = "import sys; from service.blobs import open_blobs; open_blobs(sys.argv[1]); "
    script += "assert not {'boto3', 'botocore'} & sys.modules.keys()"
    subprocess.run([sys.executable, "-c", script, str(tmp_path)], check=True)


@pytest.mark.parametrize(
    "location",
    [
        "",
        "http://bucket",
        "s3://",
        "s3://Bucket",
        "s3://bucket/../other",
        "s3://bucket/a//b",
        "s3://key:hidden@bucket",
        "s3://bucket?endpoint=ftp://host",
        "s3://bucket?secret=hidden",
        "s3://bucket?region=a&region=b",
        "s3://bucket#part",
        "s3://bucket?region=a#part",
        "s3://bucket?endpoint=",
    ],
)
def test_a_location_that_is_not_understood_is_refused_and_not_repeated(location: str) -> None:
    with pytest.raises(BadLocation) as refusal:
        open_blobs(location)
    assert "hidden" not in str(refusal.value)


@pytest.mark.parametrize(
    ("location", "prefix", "endpoint"),
    [
        ("s3://bucket", "", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://bucket/", "", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://bucket/a/b_c/", "a/b_c/", "https://s3.eu-west-1.amazonaws.com"),
        ("s3://bucket/a?endpoint=http://127.0.0.1:9000", "a/", "http://127.0.0.1:9000"),
    ],
)
def test_a_location_names_bucket_prefix_and_server(
    location: str, prefix: str, endpoint: str
) -> None:
    joint = "&" if "?" in location else "?"
    found = cast(S3Blobs, open_blobs(f"{location}{joint}region=eu-west-1"))
    assert (found._bucket, found._prefix) == ("bucket", prefix)
    assert found._client.meta.endpoint_url == endpoint
    assert found._client.meta.region_name == "eu-west-1"
