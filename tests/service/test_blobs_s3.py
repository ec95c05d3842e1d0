"""What only a bucket of artifacts can do wrong."""

import logging
import os
from datetime import UTC, datetime, timedelta
from urllib.parse import parse_qs, urlsplit

import httpx2
import pytest
from botocore import auth
from botocore.exceptions import EndpointConnectionError

from service.blobs import WrongDigest
from service.blobs.s3 import PART_BYTES, S3Blobs
from service.blobs.store import Unavailable
from tests.real.s3 import S3Server
from tests.service.artifact import BODY, NAME, OTHER, URL_LIFETIME_S, everything_in, get, put


@pytest.fixture
def keys(s3_server: S3Server, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", s3_server.access_key)
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", s3_server.secret_key)


@pytest.fixture
def bucket(s3_server: S3Server, keys: None) -> S3Blobs:
    return opened(s3_server)


def opened(server: S3Server, bucket: str = "") -> S3Blobs:
    prefix = f"test-{os.urandom(8).hex()}/"
    name = bucket or server.bucket
    return S3Blobs(name, prefix=prefix, endpoint=server.endpoint, region=server.region)


@pytest.mark.real
def test_whoever_holds_the_presigned_url_may_read_that_artifact(bucket: S3Blobs) -> None:
    put(bucket)
    answer = httpx2.get(bucket.url(NAME, URL_LIFETIME_S))
    assert (answer.status_code, answer.content) == (200, BODY)
    assert bucket.path(NAME) is None


@pytest.mark.real
def test_a_range_of_the_presigned_url_is_those_bytes(bucket: S3Blobs) -> None:
    put(bucket)
    answer = httpx2.get(bucket.url(NAME, URL_LIFETIME_S), headers={"Range": "bytes=1000-1999"})
    assert answer.content == BODY[1000:2000]
    assert answer.headers["Content-Range"] == f"bytes 1000-1999/{len(BODY)}"


@pytest.mark.real
@pytest.mark.attack("A18")
def test_a_presigned_url_opens_nothing_else(bucket: S3Blobs) -> None:
    put(bucket)
    put(bucket, b"other")
    url = bucket.url(NAME, URL_LIFETIME_S)
    signature = parse_qs(urlsplit(url).query)["X-Amz-Signature"][0]
    flipped = signature[:-1] + ("0" if signature[-1] != "0" else "1")
    forged = {
        "another signature": url.replace(signature, flipped),
        "another artifact": url.replace(NAME, OTHER),
        "a longer life": url.replace(f"Expires={URL_LIFETIME_S}", "Expires=86400"),
        "no signature": url.partition("?")[0],
    }
    for what, tampered in forged.items():
        answer = httpx2.get(tampered)
        assert answer.status_code in (400, 403), what
        assert BODY not in answer.content and b"other" not in answer.content
    assert httpx2.put(url, content=b"rewritten").status_code in (400, 403)
    assert get(bucket) == BODY


@pytest.mark.real
@pytest.mark.attack("A18")
def test_a_presigned_url_ends(bucket: S3Blobs, monkeypatch: pytest.MonkeyPatch) -> None:
    put(bucket)
    for age_s, statuses in ((URL_LIFETIME_S - 300, (200,)), (URL_LIFETIME_S + 1, (400, 403))):
        then = datetime.now(UTC) - timedelta(seconds=age_s)
        with monkeypatch.context() as patch:
            patch.setattr(auth, "get_current_datetime", lambda then=then: then)
            url = bucket.url(NAME, URL_LIFETIME_S)
        assert f"X-Amz-Date={then:%Y%m%dT%H%M%SZ}" in url
        assert httpx2.get(url).status_code in statuses


@pytest.mark.real
@pytest.mark.attack("A18")
def test_neither_a_log_nor_a_repr_shows_a_url_or_a_key(
    s3_server: S3Server, keys: None, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG):
        bucket = opened(s3_server)
        put(bucket)
        url = bucket.url(NAME, URL_LIFETIME_S)
    shown = caplog.text + repr(bucket) + str(bucket) + repr(s3_server)
    assert parse_qs(urlsplit(url).query)["X-Amz-Signature"][0] not in shown
    assert "X-Amz-Signature=" not in shown
    assert s3_server.secret_key not in shown


@pytest.mark.real
def test_what_the_bucket_altered_is_not_handed_out(bucket: S3Blobs) -> None:
    bucket._client.put_object(Bucket=bucket._bucket, Key=bucket._prefix + NAME, Body=b"altered")
    with pytest.raises(WrongDigest):
        get(bucket)


@pytest.mark.real
def test_an_upload_that_breaks_between_two_parts_leaves_nothing(
    bucket: S3Blobs, monkeypatch: pytest.MonkeyPatch
) -> None:
    real = bucket._client.upload_part
    sent = []

    def broken(**part: object) -> object:
        if part["PartNumber"] == 2:
            sent.append(everything_in(bucket))
            raise EndpointConnectionError(endpoint_url="the store")
        return real(**part)  # type: ignore[arg-type]

    monkeypatch.setattr(bucket._client, "upload_part", broken)
    with pytest.raises(Unavailable, match="cannot write to s3://"):
        put(bucket, bytes(PART_BYTES + 1))
    assert [name.split()[0] for name in sent[0]] == ["unfinished"]
    assert everything_in(bucket) == []


@pytest.mark.real
@pytest.mark.parametrize("wrong", ["bucket", "key"])
def test_a_wrong_bucket_or_key_is_not_ready_and_stores_nothing(
    s3_server: S3Server, keys: None, monkeypatch: pytest.MonkeyPatch, wrong: str
) -> None:
    if wrong == "key":
        monkeypatch.setenv("AWS_ACCESS_KEY_ID", "stranger")
    bucket = opened(s3_server, "no-such-bucket" if wrong == "bucket" else "")
    with pytest.raises(Unavailable, match=r"cannot find s3://.*40[34]"):
        bucket.ready()
    with pytest.raises(Unavailable):
        put(bucket)


def test_a_server_that_does_not_answer_is_an_os_error(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("AWS_ACCESS_KEY_ID", "key")
    monkeypatch.setenv("AWS_SECRET_ACCESS_KEY", "secret")
    bucket = S3Blobs("bucket", prefix="", endpoint="http://127.0.0.1:1", region="r")
    for act in (S3Blobs.ready, get, put):
        with pytest.raises(OSError, match=r"cannot .* s3://bucket: .*127\.0\.0\.1:1"):
            act(bucket)
