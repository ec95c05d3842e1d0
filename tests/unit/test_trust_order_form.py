"""How strictly an order is read: one form, one meaning, and no bytes that crash a device."""

import json
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.unit.signed_world import (
    Device,
    SignedWorld,
    an_order,
    digest,
    disobeys,
    envelope,
    order,
    release,
    signer,
)
from trust.errors import Untrusted
from trust.order import ORDER_BYTES_MAX, Order, order_payload, read_order
from trust.verify import Trusted

R2 = release("r2")


@pytest.fixture
def device(tmp_path: Path) -> Device:
    return Device(tmp_path, b"")


@pytest.fixture
def trusted(device: Device) -> Trusted:
    world = SignedWorld()
    device.pinned = world.pinned
    return device.refresh(world.files)


def test_an_order_survives_its_payload() -> None:
    told = an_order(R2, hold=True, deployment="", seq=(1 << 53) - 1)
    assert read_order(order_payload(told)) == told


Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "an unknown field": lambda d: d.update(more=1),
    "a missing field": lambda d: d.pop("hold"),
    "no aud": lambda d: d.pop("aud"),
    "an empty aud": lambda d: d.update(aud={}),
    "aud is a list": lambda d: d.update(aud=["d1"]),
    "aud is text": lambda d: d.update(aud="d1"),
    "aud with more": lambda d: d["aud"].update(cohort="all"),
    "a device that is a number": lambda d: d["aud"].update(device=1),
    "seq is true": lambda d: d.update(seq=True),
    "seq is a float": lambda d: d.update(seq=1.0),
    "seq is text": lambda d: d.update(seq="1"),
    "seq is zero": lambda d: d.update(seq=0),
    "seq is negative": lambda d: d.update(seq=-1),
    "seq is beyond a double": lambda d: d.update(seq=1 << 53),
    "seq is null": lambda d: d.update(seq=None),
    "a root of zero": lambda d: d.update(root=0),
    "a timestamp that is true": lambda d: d.update(timestamp=True),
    "hold is a number": lambda d: d.update(hold=0),
    "hold is null": lambda d: d.update(hold=None),
    "another v": lambda d: d.update(v=2),
    "v is true": lambda d: d.update(v=True),
    "v is a float": lambda d: d.update(v=1.0),
    "another target": lambda d: d.update(target="asr/r1.model"),
    "a target outside": lambda d: d.update(target="../r2.model"),
    "a release outside": lambda d: d.update(release="../r2"),
    "a release that is null": lambda d: d.update(release=None),
    "a model in capitals": lambda d: d.update(model="ASR"),
    "a digest in capitals": lambda d: d.update(sha256=d["sha256"].upper()),
    "a short digest": lambda d: d.update(sha256=d["sha256"][1:]),
    "a digest and a line end": lambda d: d.update(sha256=d["sha256"] + "\n"),
    "a time with an offset": lambda d: d.update(issued="2026-06-01T12:00:00+00:00"),
    "a time with fractions": lambda d: d.update(expires="2026-06-08T12:00:00.5Z"),
    "a 31st of June": lambda d: d.update(issued="2026-06-31T12:00:00Z"),
    "a year zero": lambda d: d.update(issued="0000-06-01T12:00:00Z"),
    "a time that is a number": lambda d: d.update(issued=0),
    "a deployment that is null": lambda d: d.update(deployment=None),
}


@pytest.mark.attack("M42")
@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_m42_an_order_that_is_not_exactly_an_order_is_refused(
    device: Device, trusted: Trusted, change: Change
) -> None:
    document = json.loads(order_payload(an_order(R2)))
    change(document)
    payload = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    disobeys(device, trusted, envelope(payload, signer("director")), "E_SIG")


@pytest.mark.attack("M42")
@pytest.mark.parametrize(
    "change",
    [
        lambda p: b" " + p,
        lambda p: p + b"\n",
        lambda p: b"\xef\xbb\xbf" + p,
        lambda p: p.replace(b'"v":1', b'"v":1,"v":1'),
        lambda p: p.replace(b'"seq":1', b'"seq":2,"seq":1'),
        lambda p: p.replace(b'"seq":1', b'"seq": 1'),
        lambda p: p.replace(b'"seq":1', b'"seq":1e400'),
        lambda p: p.replace(b'"seq":1', b'"seq":NaN'),
        lambda p: p.replace(b'"seq":1', b'"seq":' + b"9" * 5000),
        lambda p: p.replace(b'"hold":false', b'"hold":false,"hold":false'),
        lambda p: p.replace(b"dep-1", b"dep\\u002d1"),
        lambda p: p.replace(b"dep-1", b"\xff"),
        lambda p: b"[" * 5000,
        lambda p: b"null",
        lambda p: b"",
    ],
)
def test_m42_a_payload_in_any_other_form_is_refused(
    device: Device, trusted: Trusted, change: Callable[[bytes], bytes]
) -> None:
    payload = change(order_payload(an_order(R2)))
    disobeys(device, trusted, envelope(payload, signer("director")), "E_SIG", "E_SIZE")


def test_an_order_over_the_limit_is_refused(device: Device, trusted: Trusted) -> None:
    raw = order(R2)
    device.obey(trusted, raw + b" " * (ORDER_BYTES_MAX - len(raw)))
    disobeys(device, trusted, raw + b" " * (ORDER_BYTES_MAX - len(raw) + 1), "E_SIZE")
    disobeys(device, trusted, b"[" * 60_000, "E_SIZE")


@pytest.mark.attack("M05")
@pytest.mark.parametrize(
    "raw",
    [
        *(b"", b"null", b"5", b"[]", b'"x"', b"{}", b"\xff", b"[" * 8000, b'{"a":' * 1600),
        b'{"payload":"","payloadType":"","signatures":[]}',
        b'{"payload":5,"payloadType":"","signatures":[]}',
        b'{"payload":"!","payloadType":"","signatures":[]}',
        b'{"payload":"","payloadType":"","signatures":5}',
        b'{"payload":"","payloadType":"","signatures":[5]}',
        b'{"payload":"","payloadType":[],"signatures":[{"sig":5,"keyid":""}]}',
        b'{"payload":"","payloadType":[],"signatures":[{"sig":"","keyid":{}}]}',
    ],
)
def test_m05_bytes_that_are_no_envelope_are_refused(
    device: Device, trusted: Trusted, raw: bytes
) -> None:
    disobeys(device, trusted, raw, "E_SIG")


def test_an_unsigned_and_a_twice_signed_order_are_refused(device: Device, trusted: Trusted) -> None:
    document = json.loads(order(R2))
    signatures = document["signatures"]
    for wrong in ([], signatures * 2, [{**signatures[0], "sig": ""}]):
        disobeys(device, trusted, json.dumps({**document, "signatures": wrong}).encode(), "E_SIG")


@given(payload=st.binary(max_size=300))
def test_no_bytes_make_read_order_fail_in_another_way(payload: bytes) -> None:
    with pytest.raises(Untrusted):
        read_order(payload)


texts = st.text(max_size=20)
names = st.from_regex(r"[a-z0-9][a-z0-9._-]{0,10}", fullmatch=True)
times = st.datetimes(min_value=datetime(2000, 1, 1), max_value=datetime(2100, 1, 1)).map(
    lambda t: t.replace(microsecond=0, tzinfo=UTC)
)
orders = st.builds(
    Order,
    device=texts,
    seq=st.integers(1, (1 << 53) - 1),
    issued=times,
    expires=times,
    model=names,
    release=names,
    sha256=texts.map(digest),
    root=st.integers(1, (1 << 53) - 1),
    timestamp=st.integers(1, (1 << 53) - 1),
    hold=st.booleans(),
    deployment=texts,
)


@given(told=orders)
def test_every_order_survives_its_payload(told: Order) -> None:
    assert read_order(order_payload(told)) == told
