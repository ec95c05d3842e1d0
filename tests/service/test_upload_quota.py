"""How much one caller may upload: nobody fills the store alone, nor by two uploads at once."""

from collections.abc import Iterator
from datetime import timedelta
from pathlib import Path
from typing import Any

import pytest

from service.publishing import uploads
from service.settings import Settings
from tests.service.world import MODEL, World, digest, opened, outcomes, patient, refused
from trust import sign
from trust.roles import Component, ComponentTarget

DAY_BYTES, UNUSED_BYTES = 3000, 2000
HOUR = timedelta(hours=1)


@pytest.fixture
def small(settings: Settings, tmp_path: Path) -> Iterator[World]:
    """A world where a caller may upload little."""
    chosen = {"upload_bytes_per_day_max": DAY_BYTES, "upload_bytes_unused_max": UNUSED_BYTES}
    with opened(settings.model_copy(update=chosen), tmp_path) as world:
        yield world.found()


def put(world: World, body: bytes, token: str | None = None) -> Any:
    return world.call("PUT", f"/v1/artifacts/{digest(body)}", token=token, content=body)


def test_what_no_release_uses_is_limited_until_one_does(small: World) -> None:
    world, model = small, b"m" * 1500
    assert put(world, model).status_code == 201
    found = refused(put(world, b"x" * 501), 413, "too-much-unused")
    assert found["left_bytes"] == 500 and "1500 bytes" in found["detail"]
    assert put(world, b"x" * 500).status_code == 201
    assert put(world, model).status_code == 200, "what is there takes no room"
    world.sign_family(sign.target_of(MODEL, world.release("r1", model)))
    assert put(world, b"y" * 1000).status_code == 201
    refused(put(world, b"z" * 501), 413, "too-much-unused")


def test_a_component_of_a_release_is_used_by_it(small: World) -> None:
    world, model, lm = small, b"m" * 700, b"l" * 700
    for body in (model, lm):
        assert put(world, body).status_code == 201
    refused(put(world, b"x" * 601), 413, "too-much-unused")
    part = Component("lm.bin", digest(lm), len(lm))
    listed = sign.target_of(MODEL, ComponentTarget(part.sha256, part.bytes))
    release = world.release("r1", model, components=(part,))
    world.sign_family(sign.target_of(MODEL, release), listed)
    assert put(world, b"y" * 1600).status_code == 201


def test_what_comes_in_a_day_is_limited_and_the_refusal_says_until_when(small: World) -> None:
    world = small
    for number, size in enumerate((1000, 1001)):
        body = bytes([number]) * size
        assert put(world, body).status_code == 201
        world.sign_family(sign.target_of(MODEL, world.release(f"r{number}", body)))
        world.now += HOUR
    reply = put(world, b"x" * 1000)
    found = refused(reply, 429, "day-used-up")
    assert found["left_bytes"] == 999
    assert int(reply.headers["retry-after"]) == found["retry_after_s"] == 22 * 3600 + 1
    assert (world.now + timedelta(hours=22)).isoformat(timespec="seconds") in found["detail"]
    assert put(world, b"x" * 999).status_code == 201
    refused(put(world, b"y" * 3001), 413)
    world.now += timedelta(hours=22, seconds=1)
    assert put(world, b"y" * 1000).status_code == 201


def test_each_caller_has_a_quota_of_its_own(small: World) -> None:
    other = small.token_with("releases:write")
    assert put(small, b"x" * 2000).status_code == 201
    refused(put(small, b"y"), 413, "too-much-unused")
    assert put(small, b"y" * 2000, other).status_code == 201
    refused(put(small, b"z", other), 413, "too-much-unused")


@pytest.mark.parametrize("size", [1001, 1500])
def test_two_uploads_at_once_do_not_exceed_it_together(small: World, size: int) -> None:
    bodies = [bytes([number]) * size for number in range(8)]
    found = outcomes([lambda body=body: put(small, body) for body in bodies])  # type: ignore[misc]
    assert found == [201] + [413] * 7
    assert len(small.rows()["upload"]) == len(small.rows()["artifact"]) == 1


def test_the_same_blob_at_once_is_paid_for_once(small: World) -> None:
    body = b"x" * 600
    found = outcomes([lambda: put(small, body) for _ in range(3)])
    assert found[0] == 200 or found == [200, 200, 201]
    assert len(small.rows()["upload"]) == 1
    assert put(small, b"y" * 1400).status_code == 201


@pytest.mark.attack("A11")
def test_what_broke_off_gives_its_room_back(small: World) -> None:
    name = digest(b"something else")
    for _ in range(3):
        reply = small.call("PUT", f"/v1/artifacts/{name}", content=b"x" * 2000)
        refused(reply, 422, "digest-mismatch")
    assert small.rows()["upload"] == []
    assert put(small, b"x" * 2000).status_code == 201


def test_room_that_a_killed_server_kept_is_free_again_after_a_day(
    small: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(uploads, "give_back", lambda session, row: None)
    small.call("PUT", f"/v1/artifacts/{digest(b'other')}", content=b"x" * 2000)
    monkeypatch.undo()
    refused(put(small, b"y" * 2000), 413, "too-much-unused")
    small.now += timedelta(days=1)
    assert put(small, b"y" * 2000).status_code == 201


def test_the_store_as_a_whole_is_not_exceeded_together_either(
    sqlite_url: str, tmp_path: Path
) -> None:
    where = {"database": sqlite_url, "artifacts": str(tmp_path / "artifacts")}
    with opened(patient(store_bytes_max=2000, **where), tmp_path) as world:
        tokens = [world.token_with("releases:write") for _ in range(4)]
        calls = [
            lambda n=n, token=token: put(world, bytes([n]) * 1500, token)
            for n, token in enumerate(tokens)
        ]
        assert outcomes(calls) == [201, 413, 413, 413]
