"""Uploads and signed metadata: what is refused leaves nothing behind, not even half."""

import asyncio
import json
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
from tuf.api.metadata import Metadata, Targets

from tests.service.artifact import everything_in
from tests.service.world import (
    BASE,
    BETTER,
    MODEL,
    PATCH,
    World,
    digest,
    outcomes,
    refused,
)
from trust import sign
from trust.roles import (
    CanaryTarget,
    Component,
    ComponentTarget,
    PatchTarget,
    Release,
    patch_path,
    read_family,
)

BODY = b"an artifact of forty bytes, more or less"
NAME = digest(BODY)
FAMILY = f"/v1/metadata/family-{MODEL}"


def put(world: World, body: Any = BODY, name: str = NAME, **headers: str) -> Any:
    return world.call("PUT", f"/v1/artifacts/{name}", content=body, headers=headers)


def raw_put(world: World, headers: dict[str, str], messages: list[dict[str, Any]]) -> list[Any]:
    """Put an artifact past the HTTP client, which would mend or refuse what is sent here."""
    sent: list[Any] = []

    async def send(message: Any) -> None:
        sent.append(message)

    async def receive() -> Any:
        await asyncio.sleep(0)
        return messages.pop(0) if messages else {"type": "http.disconnect"}

    given = {"authorization": f"Bearer {world.token}"} | headers
    path = f"/v1/artifacts/{NAME}"
    scope: Any = {
        "type": "http",
        "method": "PUT",
        "path": path,
        "raw_path": path.encode(),
        "query_string": b"",
        "headers": [(k.encode(), v.encode()) for k, v in given.items()],
        "app": world.app,
    }

    async def serve() -> None:
        await world.app(scope, receive, send)

    assert world.client.portal is not None
    world.client.portal.call(serve)
    return sent


@pytest.mark.attack("A11", "A12")
def test_an_artifact_that_is_not_what_its_name_says_leaves_nothing(world: World) -> None:
    before, stored = world.rows(), everything_in(world.app.state.blobs)
    limit = world.app.state.settings.artifact_bytes_max
    table: list[tuple[Any, str, dict[str, str], int, str]] = [
        (BODY[:-1] + b"?", NAME, {}, 422, "digest-mismatch"),
        (BODY[:-1], NAME, {}, 422, "digest-mismatch"),
        (b"", digest(b""), {}, 422, "invalid-request"),
        (BODY, NAME, {"Content-Length": str(len(BODY) - 1)}, 422, "invalid-request"),
        (BODY, NAME, {"Content-Length": str(len(BODY) + 1)}, 422, "invalid-request"),
        (BODY, NAME, {"Content-Length": "-1"}, 411, "length-required"),
        (BODY, NAME, {"Content-Length": "0x28"}, 411, "length-required"),
        (BODY, NAME, {"Content-Length": "4²"}, 411, "length-required"),
        (BODY, NAME, {"Content-Length": "9" * 5000}, 413, "too-large"),
        (BODY, NAME, {"Content-Length": str(limit + 1)}, 413, "too-large"),
        (iter([BODY]), NAME, {}, 411, "length-required"),
    ]
    for body, name, headers, status, kind in table:
        coded = {k: v.encode("latin-1") for k, v in headers.items()}
        refused(put(world, body, name, **coded), status, kind)  # type: ignore[arg-type]
    for name in (NAME.upper(), NAME[:-1], NAME + "0", "..%2f..%2fetc%2fx", "%00" * 64, "sha256"):
        assert put(world, name=name).status_code in (404, 422), name
        assert world.call("GET", f"/v1/artifacts/{name}").status_code in (404, 422), name
    assert put(world, name="../../../etc/x").status_code == 404
    assert everything_in(world.app.state.blobs) == stored and world.rows() == before
    assert put(world).status_code == 201


@pytest.mark.attack("A11")
def test_an_upload_that_breaks_off_leaves_nothing(world: World) -> None:
    chunk = {"type": "http.request", "body": BODY[:-1], "more_body": True}
    stored, before = everything_in(world.app.state.blobs), world.rows()
    sent = raw_put(world, {"content-length": str(len(BODY))}, [chunk])
    assert sent[0]["status"] == 422, "a caller that left is no bug of the server"
    assert everything_in(world.app.state.blobs) == stored and world.rows() == before


@pytest.mark.attack("A13")
def test_ten_uploads_of_one_artifact_at_once_leave_one(world: World) -> None:
    statuses = outcomes([partial(put, world)] * 10)
    assert set(statuses) <= {200, 201} and statuses.count(201) == 1
    assert everything_in(world.app.state.blobs).count(NAME) == 1
    assert len(world.rows()["artifact"]) == 1
    assert put(world).json() == {"sha256": NAME, "bytes": len(BODY)}
    refused(put(world, BODY + b"!"), 422, "invalid-request")
    refused(put(world, BODY[:-1]), 422, "invalid-request")


def signed(world: World, document: Any, by: str = "family") -> bytes:
    return sign.sign(document, [world.signers[by]])


def entries(world: World) -> dict[str, tuple[list[Any], int, str]]:
    """Return name -> (entries of a next family, status, code) of what may not be published."""
    assert world.family is not None
    base = read_family(MODEL, world.family).releases["r1"]
    new = Release("r3", 3, "active", digest(BODY), len(BODY), "raw", (), ())
    ghost = digest(b"never uploaded")

    def patch(path: str, source: str, target: str, sha256: str = digest(PATCH)) -> Any:
        made = PatchTarget(path, sha256, len(PATCH), source, target, "sparse")
        return sign.target_of(MODEL, made)

    def release(changed: Release, model: str = MODEL) -> Any:
        return sign.target_of(model, changed)

    name, target = release(new)
    foreign = patch_path(MODEL, "r1", "r3")
    lm = Component("lm.bin", digest(BODY), len(BODY))
    listed = sign.target_of(MODEL, ComponentTarget(lm.sha256, lm.bytes))
    short = ComponentTarget(lm.sha256, lm.bytes - 1)
    other = sign.target_of(MODEL, ComponentTarget(digest(BETTER), len(BETTER)))
    ghostly = sign.target_of(MODEL, ComponentTarget(ghost, 5))
    bad_canary = CanaryTarget("canary-2", digest(BODY), len(BODY))
    table = {
        "missing blob": ([release(replace(new, sha256=ghost))], 422, ""),
        "other length": ([release(replace(new, bytes=len(BODY) + 1))], 422, ""),
        "changed": ([release(replace(base, sha256=digest(BODY)))], 422, "E_NOT_RELEASED"),
        "resized": ([release(replace(base, bytes=len(BODY)))], 422, "E_EQUIVOCATION"),
        "other seq": ([release(replace(base, seq=9))], 422, "E_EQUIVOCATION"),
        "same seq": ([release(replace(new, seq=1))], 422, "E_EQUIVOCATION"),
        "same bytes": ([release(replace(base, name="r3", seq=3))], 422, "E_EQUIVOCATION"),
        "huge seq": ([release(replace(new, seq=1 << 70))], 422, "E_NOT_RELEASED"),
        "status": ([release(replace(new, status="best"))], 422, "E_NOT_RELEASED"),
        "agent": ([release(replace(new, min_agent="1.2"))], 422, "E_NOT_RELEASED"),
        "bundle": ([release(replace(new, components=(lm,)))], 422, "E_NOT_RELEASED"),
        "other bundle": ([other, release(replace(new, components=(lm,)))], 422, "E_NOT_RELEASED"),
        "no component": ([ghostly, release(new)], 422, ""),
        "short component": ([sign.target_of(MODEL, short), release(new)], 422, ""),
        "more": ([listed, release(replace(base, components=(lm,)))], 422, "E_EQUIVOCATION"),
        "edge": ([release(replace(new, rollback_from=("r9",)))], 422, "E_NOT_RELEASED"),
        "foreign": ([release(new, "other")], 422, "E_NOT_RELEASED"),
        "path": ([(name.replace("r3", "r4"), target)], 422, "E_NOT_RELEASED"),
        "dangling": ([patch(foreign, base.sha256, ghost)], 422, "E_NOT_RELEASED"),
        "loop": ([patch(foreign, base.sha256, base.sha256)], 422, "E_NOT_RELEASED"),
        "no patch": ([patch(foreign, base.sha256, digest(BETTER), ghost)], 422, ""),
        "no manifest": ([sign.target_of(MODEL, bad_canary)], 422, ""),
    }
    return table


@pytest.mark.attack("A15", "M49", "M50")
def test_a_family_that_breaks_a_rule_changes_nothing(world: World) -> None:
    world.publish("r1", BASE)
    world.publish("r2", BETTER, after="r1", patch=PATCH)
    world.upload(BODY)
    lm = Component("lm.bin", NAME, len(BODY))
    bundle = Release("r0", 5, "active", NAME, len(BODY), "raw", (), (), components=(lm,))
    good = [sign.target_of(MODEL, e) for e in (bundle, ComponentTarget(lm.sha256, lm.bytes))]
    before = world.rows()
    for case, (changed, status, code) in entries(world).items():
        body = world.next_family(*changed)
        found = refused(world.call("PUT", FAMILY, content=body), status)
        assert found.get("code", "") == code, (case, found)
        assert world.rows() == before, case
    world.sign_family(*good)
    assert len(world.rows()["release"]) == 3


def documents(world: World) -> dict[str, tuple[bytes, int]]:
    """Return name -> (family document, status) of what is refused for how it is signed."""
    right = world.next_family()
    document = Metadata[Targets].from_bytes(right)
    future, past, nested = (Metadata[Targets].from_bytes(right) for _ in range(3))
    future.signed.expires = world.now.replace(year=2036)
    past.signed.expires = world.now
    top = sign.next_targets(None, {"director": world.public["director"]}, world.now)
    nested.signed.delegations = top.signed.delegations
    skipped, replayed = (Metadata[Targets].from_bytes(right) for _ in range(2))
    skipped.signed.version += 1
    replayed.signed.version -= 1
    return {
        "skipped version": (signed(world, skipped), 409),
        "replayed": (signed(world, replayed), 409),
        "ten years": (signed(world, future), 422),
        "expired": (signed(world, past), 422),
        "nested": (signed(world, nested), 422),
        "other key": (signed(world, document, "targets"), 422),
        "no signature": (sign.sign(document, []), 422),
        "not canonical": (json.dumps(json.loads(right), indent=1).encode(), 422),
        "flipped": (right.replace(b'"sig":"', b'"sig":"00'), 422),
        "other type": (sign.sign(top, [world.signers["family"]]), 409),
        "nothing": (b"", 422),
        "huge version": (right.replace(b'"version":3', b'"version":' + b"9" * 40), 409),
    }


@pytest.mark.attack("A15")
def test_metadata_is_the_next_version_and_signed_by_whom_it_should(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish("r1", BASE)
    world.publish("r2", BETTER, after="r1", patch=PATCH)
    before = world.rows()
    for case, (body, status) in documents(world).items():
        reply = world.call("PUT", FAMILY, content=body)
        name = "not-the-next-version" if status == 409 else "not-acceptable"
        assert refused(reply, status, name)["role"] == f"family-{MODEL}", case
        assert world.rows() == before, case
    for role in ("snapshot", "timestamp", "director", "family-", "family-../x", "ROOT"):
        assert world.call("PUT", f"/v1/metadata/{role}", content=b"{}").status_code in (404, 422)
    other = world.call("PUT", "/v1/metadata/family-other", content=world.next_family())
    refused(other, 409)
    first = sign.sign(sign.next_family(None, [], world.now), [world.signers["family"]])
    refused(world.call("PUT", "/v1/metadata/family-other", content=first), 422, "not-acceptable")
    assert world.rows() == before
    world.put_metadata(f"family-{MODEL}", world.next_family())


@pytest.mark.attack("A15", "M28")
def test_a_release_once_withdrawn_never_returns_and_none_ever_vanishes(
    world_sqlite: World,
) -> None:
    world = world_sqlite
    first = world.publish("r1", BASE)
    world.sign_family(sign.target_of(MODEL, replace(first, status="withdrawn")))
    before = world.rows()
    back = world.next_family(sign.target_of(MODEL, first))
    found = refused(world.call("PUT", FAMILY, content=back), 422, "not-acceptable")
    assert found["code"] == "E_WITHDRAWN"
    assert world.family is not None
    world.family.targets.clear()
    gone = refused(world.call("PUT", FAMILY, content=world.next_family()), 422, "not-acceptable")
    assert gone["code"] == "E_EQUIVOCATION"
    assert world.rows() == before


def test_one_version_is_accepted_once_however_many_send_it(world: World) -> None:
    world.upload(BODY)
    release = world.release("r1", BODY)
    body = world.next_family(sign.target_of(MODEL, release))
    calls = [partial(world.call, "PUT", FAMILY, content=body)] * 6
    assert outcomes(calls) == [201] + [409] * 5
    assert len(world.rows()["release"]) == 1
    world.tick()
    assert world.ok("GET", "/v1/metadata")[f"family-{MODEL}"] == 1
