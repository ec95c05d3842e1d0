"""Patches on upload: each is applied apart, and what does not make its release is not published."""

import json
import os
import re
import threading
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from tuf.api.metadata import Metadata

from neural_diff.patch import read_patch
from service.blobs import LocalBlobs
from service.core import errors
from service.db.tables import CheckedPatch
from service.publishing import apart, catalog, patches
from tests.service.world import BASE, BETTER, MODEL, PATCH, World, digest, patch_between, refused
from trust import sign
from trust.roles import PatchTarget, Release, patch_path

VECTORS = Path(__file__).parents[1] / "contract" / "vectors"
JAIL = """
import errno, json, os, socket, sys
sys.path.insert(0, {folder!r})
import apart

def fate(act):
    try:
        act()
        return "done"
    except OSError as error:
        return errno.errorcode[error.errno]
    except Exception as error:
        return type(error).__name__

found = {{"environ": sorted(os.environ), "open": sorted(os.listdir("/proc/self/fd"))}}
found["path"] = [path for path in sys.path if "site-packages" in path]
apart.lock_up(1000)
found["file"] = fate(lambda: open("/etc/passwd"))
found["socket"] = fate(socket.socket)
found["pipe"] = fate(os.pipe)
found["memory"] = fate(lambda: bytearray(apart.MEMORY_BYTES_MAX))
found["output"] = fate(lambda: [os.write(1, bytes(900)) for _ in range(3)])
sys.stderr.write("\\n" + json.dumps(found))
sys.exit(1)
"""
SPINS = """
import sys
sys.path.insert(0, {folder!r})
import apart
apart.CPU_S_MAX = 1
apart.lock_up(1000)
while True:
    pass
"""
WAITS = """
import os, sys, time
open({began!r}, "w").close()
while not os.path.exists({flag!r}):
    time.sleep(0.01)
sys.exit("enough")
"""


def edge(path: str, body: bytes, source: bytes, target: bytes, kind: str = "sparse") -> PatchTarget:
    return PatchTarget(path, digest(body), len(body), digest(source), digest(target), kind)


def a_release(name: str, body: bytes) -> Release:
    return Release(name, 1, "active", digest(body), len(body), "raw", (), ())


def sent(world: World, body: bytes, **more: str) -> Any:
    """Sign r2 with this patch from r1, and upload the family."""
    world.publish("r1", BASE)
    world.upload(BETTER)
    world.upload(body)
    patch = edge(patch_path(MODEL, "r1", "r2"), body, BASE, BETTER, **more)
    entries = [sign.target_of(MODEL, world.release("r2", BETTER)), sign.target_of(MODEL, patch)]
    return world.call("PUT", f"/v1/metadata/family-{MODEL}", content=world.next_family(*entries))


def replaced(monkeypatch: pytest.MonkeyPatch, folder: Path, program: str, **more: str) -> None:
    """Have another program run in place of the applier."""
    script = folder / "program.py"
    script.write_text(program.format(folder=str(Path(apart.__file__).parent), **more))
    monkeypatch.setattr(apart, "__file__", str(script))


@pytest.mark.parametrize("path", sorted(VECTORS.glob("*.patch")), ids=lambda path: path.stem)
def test_every_kind_of_patch_is_applied_with_no_file_to_open(path: Path, tmp_path: Path) -> None:
    blobs = LocalBlobs(tmp_path)
    body, base = path.read_bytes(), path.with_suffix(".base").read_bytes()
    for each in (body, base):
        blobs.put([each], digest(each), len(each))
    with path.open("rb") as file:
        patch = read_patch(file, len(body))
    target = Release("r2", 2, "active", patch.to_sha256, patch.to_size, "raw", (), ())
    named = PatchTarget("p", digest(body), len(body), digest(base), patch.to_sha256, patch.kind)
    patches._check(blobs, named, target)


HOSTILE = {
    "D03 not a patch": (b"a small patch", "sparse", "Malformed"),
    "D04 cut short": (PATCH[:-1], "sparse", "Malformed|Corrupt"),
    "D05 longer": (PATCH + b"\0", "sparse", "Malformed"),
    "D14 of another base": (patch_between(b"another base" * 100, BETTER), "sparse", "WrongBase"),
    "D15 too large": (patch_between(BASE, BASE * 1000), "exact", "OSError: .* File too large"),
    "D16 to something else": (patch_between(BASE, b"x" * 1500), "exact", "it makes .*, not r2"),
    "signed as another kind": (PATCH, "hashed", "of kind sparse, and signed as hashed"),
}


@pytest.mark.attack("D03", "D04", "D05", "D14", "D15", "D16", "A15")
@pytest.mark.parametrize("name", HOSTILE)
def test_a_hostile_patch_is_refused_and_nothing_is_published(world: World, name: str) -> None:
    body, kind, why = HOSTILE[name]
    reply = sent(world, body, kind=kind)
    problem = refused(reply, 422, "bad-patch")
    assert problem["patch"] == "asr/r1_r2.ndiff"
    assert re.search(why, problem["detail"]), problem
    assert "Traceback" not in problem["detail"] and "/" not in problem["detail"].partition(": ")[2]
    releases = world.ok("GET", f"/v1/models/{MODEL}/releases")["items"]
    assert [release["name"] for release in releases] == ["r1"]
    assert world.rows()["checked_patch"] == []


def test_a_patch_whose_base_is_gone_is_refused_with_its_name(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish("r1", BASE)
    (world.app.state.blobs.folder / digest(BASE)).unlink()
    world.upload(BETTER)
    world.upload(PATCH)
    patch = sign.target_of(MODEL, edge("asr/r1_r2.ndiff", PATCH, BASE, BETTER))
    release = sign.target_of(MODEL, world.release("r2", BETTER))
    body = world.next_family(release, patch)
    reply = world.call("PUT", f"/v1/metadata/family-{MODEL}", content=body)
    problem = refused(reply, 422, "missing-artifact")
    assert problem["sha256"] == digest(BASE) and "its base" in problem["detail"]


def test_a_good_patch_is_applied_once_and_for_all(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world.publish_all()
    assert len(world.rows()["checked_patch"]) == 1
    replaced(monkeypatch, tmp_path, "import sys\nsys.exit('it was applied again')")
    world.sign_family()
    other = patch_between(BETTER, BASE)
    world.upload(other)
    patch = sign.target_of(MODEL, edge("asr/r2_r1.ndiff", other, BETTER, BASE))
    body = world.next_family(patch)
    reply = world.call("PUT", f"/v1/metadata/family-{MODEL}", content=body)
    assert "it was applied again" in refused(reply, 422, "bad-patch")["detail"]


def test_no_way_to_publish_goes_around_the_check(world: World) -> None:
    world.publish("r1", BASE)
    world.upload(BETTER)
    world.upload(PATCH)
    patch = sign.target_of(MODEL, edge("asr/r1_r2.ndiff", PATCH, BASE, BETTER))
    body = world.next_family(sign.target_of(MODEL, world.release("r2", BETTER)), patch)
    state = world.app.state
    with pytest.raises(errors.BadPatch, match="not applied"), state.database.writer() as session:
        catalog.accept_metadata(session, state.blobs, f"family-{MODEL}", body, world.now)


def test_an_upload_that_is_not_signed_has_nothing_applied(
    world_sqlite: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    world = world_sqlite
    ran = tmp_path / "ran"
    replaced(monkeypatch, tmp_path, "open({ran!r}, 'w')", ran=str(ran))
    world.signers["family"] = world.signers["targets"]
    with pytest.raises(AssertionError, match="not-acceptable"):
        world.publish_all()
    assert not ran.exists()


def test_a_hostile_process_finds_nothing_to_open_to_reach_or_to_fill(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("FLEETDIFF_SECRET", "s3cr3t")
    replaced(monkeypatch, tmp_path, JAIL)
    blobs = LocalBlobs(tmp_path / "blobs")
    for body in (BASE, PATCH):
        blobs.put([body], digest(body), len(body))
    with pytest.raises(errors.BadPatch) as caught:
        patches._check(blobs, edge("p", PATCH, BASE, BETTER), a_release("r2", BETTER))
    found = json.loads(caught.value.detail.partition(": ")[2])
    descriptors = found.pop("open")
    assert len(descriptors) == 5, "base, new file, errors, patch, and the listing itself"
    assert "FLEETDIFF_SECRET" not in found["environ"] and len(found.pop("environ")) <= 3
    assert found == {
        "path": [],
        "file": "EMFILE",
        "socket": "EMFILE",
        "pipe": "EMFILE",
        "memory": "MemoryError",
        "output": "EFBIG",
    }


def test_a_process_that_never_ends_is_ended(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    replaced(monkeypatch, tmp_path, SPINS)
    blobs = LocalBlobs(tmp_path / "blobs")
    for body in (BASE, PATCH):
        blobs.put([body], digest(body), len(body))
    with pytest.raises(errors.BadPatch, match=r"signal .*: it takes too long"):
        patches._check(blobs, edge("p", PATCH, BASE, BETTER), a_release("r2", BETTER))


def test_the_server_answers_while_a_patch_is_applied(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    flag, began, replies = tmp_path / "flag", tmp_path / "began", []
    phone = world.enroll("s1", runs=digest(BASE))
    replaced(monkeypatch, tmp_path, WAITS, flag=str(flag), began=str(began))
    thread = threading.Thread(target=lambda: replies.append(sent(world, PATCH)))
    thread.start()
    try:
        while not began.exists():
            assert thread.is_alive()
        for _ in range(3):
            phone.etag = ""
            assert phone.poll()["hold"] is not None
            world.enroll(os.urandom(4).hex())
        assert not replies
    finally:
        flag.touch()
        thread.join()
    assert "enough" in refused(replies[0], 422, "bad-patch")["detail"]


def test_who_only_stages_holds_up_nobody_who_signs_or_stages(
    world: World, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Without a key, a token may stage what takes minutes to apply, and again, and again."""
    flag, began, replies = tmp_path / "flag", tmp_path / "began", []
    world.publish("r1", BASE)
    world.upload(BETTER)
    bodies = []
    for padding in range(3):
        target = BETTER + bytes(padding)
        patch = patch_between(BASE, target)
        world.upload(target)
        world.upload(patch)
        named = edge(patch_path(MODEL, "r1", "r2"), patch, BASE, target)
        release = replace(a_release("r2", target), seq=2)
        entries = [sign.target_of(MODEL, release), sign.target_of(MODEL, named)]
        bodies.append(sign.sign(sign.next_family(world.family, entries, world.now), []))
    signed = sign.sign(Metadata.from_bytes(bodies[2]), [world.signers["family"]])
    path, own = f"/v1/drafts/family-{MODEL}", world.token_with("releases:write")
    honest = apart.__file__
    replaced(monkeypatch, tmp_path, WAITS, flag=str(flag), began=str(began))
    hostile = [
        threading.Thread(
            target=lambda: replies.append(world.call("PUT", path, token=own, content=bodies[0]))
        )
        for _ in range(10)
    ]
    for thread in hostile:
        thread.start()
    try:
        while not began.exists():
            assert any(thread.is_alive() for thread in hostile)
        monkeypatch.setattr(apart, "__file__", honest)
        assert world.call("PUT", path, content=bodies[1]).status_code == 201
        unsigned = world.call("PUT", f"/v1/metadata/family-{MODEL}", content=bodies[2])
        assert "signatures" in refused(unsigned, 422, "not-acceptable")["detail"]
        world.put_metadata(f"family-{MODEL}", signed)
        assert not replies
    finally:
        flag.touch()
        for thread in hostile:
            thread.join()
    assert len(replies) == 10


def test_what_was_applied_is_noted_by_what_it_holds(world: World) -> None:
    world.publish_all()
    with world.app.state.database.reader() as session:
        key = (digest(PATCH), digest(BASE), digest(BETTER), "sparse")
        assert session.get(CheckedPatch, key) is not None


def test_a_patch_that_was_checked_as_one_kind_is_not_published_as_another(world: World) -> None:
    world.publish_all()
    other = edge(patch_path(MODEL, "r1", "r2"), PATCH, BASE, BETTER, "hashed")
    body = world.next_family(sign.target_of(MODEL, other))
    reply = world.call("PUT", f"/v1/metadata/family-{MODEL}", content=body)
    assert "of kind sparse, and signed as hashed" in refused(reply, 422, "bad-patch")["detail"]
