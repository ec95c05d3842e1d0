"""Signed documents that are well signed and still may not be published, as they are uploaded."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner, Signature
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from service.core.access import SCOPES
from service.db.tables import Device
from tests.service.world import MODEL, World, digest, refused
from trust import sign
from trust.accept import canonical
from trust.keys import P256

FAMILY = f"family-{MODEL}"
BODY = b"an artifact"
PATHS = [
    "../x", "a/b/c", "%2e%2e/x", f"{MODEL}/%2e%2e", f"{MODEL}/../r1.model", f"{MODEL}/r1\0.model",
    f"{MODEL}/{'r' * 300}.model", f"{MODEL}/r\u0456.model", f"{MODEL}/-r1.model", "/r1.model", "",
]  # fmt: skip
SECOND_FORMS: list[Callable[[bytes], bytes]] = [
    lambda b: b.replace(b'"version":1', b'"version":1,"version":1'),
    lambda b: b[:-1] + b',"unknown":1}',
    lambda b: b"\xef\xbb\xbf" + b,
    lambda b: b + b"\n",
    lambda b: b + b"{}",
    lambda b: b.replace(b'"version":1', b'"version":1.0'),
    lambda b: b.replace(b'"version":1', b'"version":1e400'),
    lambda b: b.replace(b'"version":1', b'"version":NaN'),
    lambda b: b.replace(b'"version":1', b'"version":9007199254740993'),
    lambda b: json.dumps(json.loads(b)).encode(),
]


@pytest.mark.attack("M37")
@pytest.mark.parametrize("path", PATHS, ids=ascii)
def test_m37_a_path_that_leads_elsewhere_is_not_published(world_sqlite: World, path: str) -> None:
    world = world_sqlite
    world.upload(BODY)
    _, entry = sign.target_of(MODEL, world.release("r1", BODY))
    target = TargetFile(len(BODY), {"sha256": digest(BODY)}, path, {"custom": entry.custom})
    before = world.rows()
    found = refused(put(world, FAMILY, world.next_family((path, target))), 422, "not-acceptable")
    assert found["code"] == "E_NOT_RELEASED"
    assert world.rows() == before
    world.sign_family((f"{MODEL}/r1.model", entry))


@pytest.mark.parametrize("size", [1, 400_000])
def test_a_signature_that_counts_nothing_is_not_published_with_the_others(
    world_sqlite: World, size: int
) -> None:
    """Whoever uploads what others signed could pad it until no device takes the answer."""
    world = world_sqlite
    world.upload(BODY)
    entry = sign.target_of(MODEL, world.release("r1", BODY))
    body = world.next_family(entry)
    padded = Metadata[Targets].from_bytes(body)
    padded.signatures["ab" * 32] = Signature("ab" * 32, "00" * size)
    found = refused(put(world, FAMILY, canonical(padded)), 422, "not-acceptable")
    assert found["code"] == "E_SIG"
    assert put(world, FAMILY, body).status_code == 201
    assert world.newest_metadata(FAMILY) == body


@pytest.mark.attack("M42")
@pytest.mark.parametrize("respell", SECOND_FORMS)
def test_m42_a_document_in_a_second_form_is_not_published(
    world_sqlite: World, respell: Callable[[bytes], bytes]
) -> None:
    world = world_sqlite
    world.upload(BODY)
    right = world.next_family(sign.target_of(MODEL, world.release("r1", BODY)))
    before = world.rows()
    reply = put(world, FAMILY, respell(right))
    assert reply.status_code in (409, 422) and reply.json()["role"] == FAMILY
    assert world.rows() == before
    assert put(world, FAMILY, right).status_code == 201


def put(world: World, role: str, body: bytes) -> Any:
    return world.call("PUT", f"/v1/metadata/{role}", content=body)


def with_p256(world: World, role: str) -> bytes:
    """Return the next root, whose timestamp, or the next targets, whose director is a P-256 key."""
    key = CryptoSigner.generate_ecdsa().public_key
    now = Metadata[Any].from_bytes(world.newest_metadata(role)).signed
    if role == "targets":
        document = sign.next_targets(now, {"director": key}, world.now)
        return sign.sign(document, [world.signers["targets"]])
    root: Root = now
    old = root.roles["timestamp"].keyids
    root.version += 1
    root.keys = {k: v for k, v in root.keys.items() if k not in old} | {key.keyid: key}
    root.roles["timestamp"].keyids = [key.keyid]
    return sign.sign(Metadata(root), [world.signers["root"]])


@pytest.mark.attack("M48")
@pytest.mark.parametrize("role", ["root", "targets"])
def test_m48_a_key_that_some_device_cannot_verify_is_not_published(world: World, role: str) -> None:
    world.enroll("with cryptography", attributes={P256: "yes"})
    blind = [
        world.enroll("without it", attributes={P256: "no"}),
        world.enroll("before there was the question"),
    ]
    body, before = with_p256(world, role), world.rows()
    found = refused(put(world, role, body), 422, "not-acceptable")
    assert (found["code"], found["detail"][:9]) == ("E_SIG", "2 devices")
    assert world.rows() == before
    for phone in blind:
        world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "revoked"})
    assert put(world, role, body).status_code == 201


@pytest.mark.attack("M48")
def test_m48_a_key_that_is_published_already_does_not_bar_what_follows(world_sqlite: World) -> None:
    """A device that cannot verify is locked out by what is, not by what is to come."""
    world = world_sqlite
    world.put_metadata("targets", with_p256(world, "targets"))
    phone = world.enroll("without cryptography", attributes={P256: "yes"})
    with world.app.state.database.writer() as session:  # as one did that enrolled long ago
        session.get_one(Device, phone.id).attributes = {P256: "no"}
    following = Metadata[Targets].from_bytes(world.newest_metadata("targets"))
    following.signed.version += 1
    world.put_metadata("targets", sign.sign(following, [world.signers["targets"]]))


@pytest.mark.attack("M48")
@pytest.mark.parametrize("role", ["root", "targets"])
def test_m48_a_device_that_cannot_verify_a_fleet_does_not_enroll_into_it(
    world_sqlite: World, role: str
) -> None:
    """It would hold its invitation, and never believe an update."""
    world = world_sqlite
    world.put_metadata(role, with_p256(world, role))
    token = world.ok("POST", "/v1/enrollment-tokens", json={"model": MODEL})["token"]
    asked = {"enrollment_token": token, "model": MODEL, "serial": "s", "hardware": "h"}
    before = world.rows()
    for attributes in ({}, {P256: "no"}):
        body = asked | {"agent_version": "1", "attributes": attributes}
        found = refused(world.client.post("/device/v1/enroll", json=body), 409, "cannot-verify")
        assert "fleetdiff[p256]" in found["detail"]
    assert world.rows() == before, "the invitation is good for one that can"
    body = asked | {"agent_version": "1", "attributes": {P256: "yes"}}
    assert world.client.post("/device/v1/enroll", json=body).status_code == 201


@pytest.mark.attack("M48")
def test_m48_a_device_that_was_lost_long_ago_holds_up_no_rotation(world_sqlite: World) -> None:
    world = world_sqlite
    lost = world.enroll("lost", attributes={P256: "no"})
    assert lost.poll() is not None
    world.now += timedelta(days=80)
    world.token = world.token_with(*SCOPES)
    there = world.enroll("there", attributes={P256: "no"})
    found = refused(put(world, "targets", with_p256(world, "targets")), 422, "not-acceptable")
    assert found["detail"].startswith("2 devices") and lost.id in found["detail"], "and is named"
    world.now += timedelta(days=11)
    world.token = world.token_with(*SCOPES)
    found = refused(put(world, "targets", with_p256(world, "targets")), 422, "not-acceptable")
    assert there.id in found["detail"] and lost.id not in found["detail"]
    world.ok("PATCH", f"/v1/devices/{there.id}", json={"status": "revoked"})
    assert put(world, "targets", with_p256(world, "targets")).status_code == 201
