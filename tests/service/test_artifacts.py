"""Downloads: whole, in parts, or elsewhere by a URL that nobody else may learn."""

import logging
import re

import httpx2
import pytest

from service.blobs import open_blobs
from tests.service.world import BASE, World, digest, refused

MIB = 1 << 20


@pytest.mark.attack("A17")
def test_artifacts_are_served_whole_in_parts_and_not_at_all(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish("r1", BASE)
    phone = world.enroll("serial-1")
    path, name = f"/artifacts/{digest(BASE)}", f'"{digest(BASE)}"'
    whole = phone.request("GET", path)
    assert whole.content == BASE and whole.headers["etag"] == name
    assert "immutable" in whole.headers["cache-control"]
    head = phone.request("HEAD", path)
    assert head.content == b"" and head.headers["content-length"] == str(len(BASE))
    fresh = phone.request("GET", path, headers={"If-None-Match": name})
    assert fresh.status_code == 304 and fresh.content == b""
    size = len(BASE)
    table = [
        ("bytes=0-0", 206, BASE[:1]),
        ("bytes=100-", 206, BASE[100:]),
        (f"bytes=-{size}", 206, BASE),
        ("bytes=-5", 206, BASE[-5:]),
        (f"bytes={size - 1}-{size + 50}", 206, BASE[-1:]),
        (f"bytes={size}-", 416, None),
        ("bytes=-0", 416, None),
        (f"bytes=-{size + 9}", 206, BASE),
        ("bytes=5-2", 200, BASE),
        ("lines=1-2", 200, BASE),
        ("bytes=0-1,3-4", 200, BASE),
        ("bytes=" + ",".join(f"{n}-{n}" for n in range(100_000)), 200, BASE),
        ("bytes=" + "9" * 5000 + "-", 200, BASE),
        ("bytes=x", 200, BASE),
    ]
    for asked, status, body in table:
        reply = phone.request("GET", path, headers={"Range": asked})
        assert reply.status_code == status, (asked[:40], reply.status_code, reply.text[:80])
        if body is None:
            refused(reply, 416, "range-not-satisfiable")
            assert reply.headers["content-range"] == f"bytes */{size}"
        else:
            assert reply.content == body, asked
    stale = {"Range": "bytes=0-0", "If-Range": '"other"'}
    assert phone.request("GET", path, headers=stale).content == BASE
    refused(phone.request("GET", f"/artifacts/{digest(b'nothing')}"), 404, "not-found")
    for wrong in ("abc", digest(BASE).upper(), "..%2f..%2fkeys%2froot.pem"):
        assert phone.request("GET", f"/artifacts/{wrong}").status_code in (404, 422)
    assert world.client.get(f"/device/v1{path}").status_code == 401


@pytest.mark.real
@pytest.mark.attack("A18")
def test_a_bucket_is_redirected_to_and_the_secret_url_stays_out_of_every_log(
    s3_location: str, unpublished: World, caplog: pytest.LogCaptureFixture
) -> None:
    world = unpublished.found()
    world.app.state.blobs = open_blobs(s3_location)
    caplog.set_level(logging.DEBUG)
    world.publish("r1", BASE)
    phone = world.enroll("serial-1")
    path = f"/artifacts/{digest(BASE)}"
    reply = phone.request("GET", path, follow_redirects=False)
    assert reply.status_code == 307 and reply.headers["cache-control"] == "no-store"
    assert reply.content == b""
    where = reply.headers["location"]
    assert httpx2.get(where).content == BASE, "no Authorization is sent, and none is needed"
    assert httpx2.get(where, headers={"Range": "bytes=3-5"}).content == BASE[3:6]
    assert httpx2.put(where, content=b"x").status_code == 403
    other = re.sub(digest(BASE), digest(b"other"), where)
    assert httpx2.get(other).status_code == 403
    head = phone.request("HEAD", path, follow_redirects=False)
    assert head.status_code == 200 and head.headers["content-length"] == str(len(BASE))
    missing = phone.request("GET", f"/artifacts/{digest(b'x')}", follow_redirects=False)
    refused(missing, 404, "not-found")
    ours = "\n".join(r.getMessage() for r in caplog.records if not r.name.startswith("http"))
    assert "X-Amz-Signature" not in ours and phone.credential not in ours


@pytest.mark.parametrize(
    ("size", "lifetime_s"),
    [(1, 60), (20 * MIB // 16, 60), (10 * MIB, 480), (19 * MIB, 900), (4096 * MIB, 900)],
)
def test_a_secret_url_lives_three_times_as_long_as_a_slow_link_needs(
    unpublished: World, monkeypatch: pytest.MonkeyPatch, size: int, lifetime_s: int
) -> None:
    world = unpublished.found()
    asked: list[int] = []

    def url(_sha256: str, expires_s: int) -> str:
        asked.append(expires_s)
        return "http://bucket.example/secret"

    store = world.app.state.blobs
    monkeypatch.setattr(store, "size", lambda _sha256: size)
    monkeypatch.setattr(store, "path", lambda _sha256: None)
    monkeypatch.setattr(store, "url", url)
    path = f"/v1/artifacts/{digest(BASE)}"
    assert world.call("GET", path, follow_redirects=False).status_code == 307
    assert asked == [lifetime_s]
