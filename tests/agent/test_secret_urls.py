"""A presigned URL is a secret: whatever goes wrong with it, nothing repeats it."""

import logging
from pathlib import Path

import pytest

from device_agent.errors import Rejected, Unavailable
from tests.agent.loopback import Answer, Asked, ranged, serving
from tests.agent.test_client import DATA, SHA256, Wire


@pytest.mark.attack("A18")
@pytest.mark.parametrize("status", [0, 200, 206, 302, 403, 404, 416, 500])
def test_no_trouble_with_a_secret_url_repeats_it(
    tmp_path: Path, status: int, caplog: pytest.LogCaptureFixture
) -> None:
    wire, there = Wire(tmp_path), list[Asked]()
    secret = "X-Amz-Signature=5ec2e7"
    with (
        caplog.at_level(logging.DEBUG),
        serving(lambda asked: wire.answer(asked), wire.asked) as wire.address,
        serving(lambda asked: Answer(status), there) as elsewhere,
    ):
        wire.blob_hosts = (elsewhere.removeprefix("http://"),) if status else ()
        for start in (elsewhere, "http://["):
            wire.answer = lambda asked, at=start: Answer(  # type: ignore[misc]
                307, headers={"Location": f"{at}/{SHA256}?{secret}"}
            )
            with pytest.raises((Rejected, Unavailable)) as caught:
                wire.fetch()
            assert secret not in f"{caught.value!r} {caught.value} {caplog.text}"
    assert len(there) == bool(status)


@pytest.mark.attack("A19", "M43")
def test_a_redirect_to_a_blob_host_leaves_the_credential_behind(
    tmp_path: Path,
) -> None:
    wire, there = Wire(tmp_path), list[Asked]()
    with (
        serving(lambda asked: wire.answer(asked), wire.asked) as wire.address,
        serving(lambda asked: ranged(DATA, asked), there) as elsewhere,
    ):
        wire.blob_hosts = (elsewhere.removeprefix("http://"),)
        wire.answer = lambda asked: Answer(307, headers={"Location": f"{elsewhere}/blob?key=1"})
        wire.part.write_bytes(DATA[:10])
        assert wire.fetch() == DATA
    assert "authorization" not in there[0].headers
    assert there[0].headers["range"] == "bytes=10-"
    assert there[0].query == {"key": "1"}
