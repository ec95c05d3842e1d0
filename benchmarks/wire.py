"""Bytes on the wire of one real device: an unchanged poll, and each of the demo's updates.

Counted by a tap between a real agent and the real server, headers included, both ways. The canary
shard is fetched once in a device's life and counted apart.
"""

import sys
import tempfile
import time
from hashlib import sha256
from pathlib import Path

from benchmarks.rows import Row, publish
from benchmarks.tap import Tap
from demo.cast import BASE, MODEL, SPEECH, Cast, free_port

UPDATE_S_MAX = 60
SHARE_MAX = 0.10


def main() -> int:
    """Measure and publish."""
    with tempfile.TemporaryDirectory() as folder:
        cast = Cast(Path(folder), free_port(0), tick_s=0.2, poll_s=5)
        try:
            return publish("wire", _measure(cast))
        finally:
            cast.stop()


def _measure(cast: Cast) -> list[Row]:
    cast.fleetdiff("init", "--dev")
    cast.make_token()
    cast.start_server()
    cast.fleetdiff("init", "--publish")
    cast.fleetdiff("model", "create", MODEL)
    cast.fleetdiff("canary", "publish", MODEL, SPEECH / "canary")
    cast.fleetdiff("release", "publish", MODEL, "r1", BASE)
    cast.fleetdiff("cohort", "create", "all", "--model", MODEL, "--filter", "hardware=speaker")
    tap = Tap(cast.port)
    cast.write_devices(["one"], server=f"http://127.0.0.1:{tap.port}")
    token = cast.fleetdiff("device", "token", "--model", MODEL)["token"]
    cast.start_devices(["one"], token)
    _await(cast, BASE)
    time.sleep(8)
    tap.take()
    time.sleep(12)
    polls, count = tap.take().total(), tap.connections
    rows = [Row("unchanged poll", "up and down", polls / count, "B")]
    rows += _update(cast, tap, "r2", _sparse(cast))
    rows += _update(cast, tap, "r3", _hashed(cast))
    return rows


def _sparse(cast: Cast) -> tuple[Path, Path]:
    target, patch = SPEECH / "updates" / "ledecky.safetensors", cast.folder / "r1_r2.ndiff"
    cast.fleetdiff("diff", "make", BASE, target, "-o", patch)
    return target, patch


def _hashed(cast: Cast) -> tuple[Path, Path]:
    target, patch = cast.folder / "r3.safetensors", cast.folder / "r2_r3.ndiff"
    buckets = SPEECH / "updates" / "biles.buckets.safetensors"
    before = SPEECH / "updates" / "ledecky.safetensors"
    words = ("--buckets", buckets, before, "-o", patch, "--result", target)
    cast.fleetdiff("diff", "make", *words)
    return target, patch


def _update(cast: Cast, tap: Tap, release: str, made: tuple[Path, Path]) -> list[Row]:
    target, patch = made
    cast.fleetdiff("release", "publish", MODEL, release, target, "--patch", patch)
    tap.take()
    words = ("rollout", "start", MODEL, release, "--cohort", "all", "--stages", "100%")
    rollout = cast.fleetdiff(*words, "--on-halt", "keep")["id"]
    _await(cast, target)
    time.sleep(3)
    cast.fleetdiff("rollout", "halt", rollout, "--reason", "measured")
    passed, whole = tap.take(), target.stat().st_size
    name = sha256(patch.read_bytes()).hexdigest()
    blobs = {n: b for n, b in passed.items() if "/artifacts/" in n}
    fetched = sum(b for n, b in blobs.items() if name in n)
    talk = sum(b for n, b in passed.items() if n not in blobs)
    return [
        Row(f"{release} ({_kind(cast, release)})", "patch file", patch.stat().st_size, "B"),
        Row(release, "patch as fetched, with headers", fetched, "B"),
        Row(release, "everything else: polls, metadata, orders, reports", talk, "B"),
        Row(release, "whole update against the full file", (fetched + talk) / whole, "", SHARE_MAX),
        Row(release, "canary set and shard, once", sum(blobs.values()) - fetched, "B"),
    ]


def _kind(cast: Cast, release: str) -> str:
    patches = cast.get(f"/v1/models/{MODEL}/patches")["items"]
    return str(next(patch["kind"] for patch in patches if patch["to"] == release))


def _await(cast: Cast, model: Path) -> None:
    wanted = sha256(model.read_bytes()).hexdigest()
    deadline = time.monotonic() + UPDATE_S_MAX
    while cast.get("/v1/devices")["items"][0:1] == [] or (
        cast.get("/v1/devices")["items"][0]["running_sha256"] != wanted
    ):
        if time.monotonic() > deadline:
            sys.exit(f"the device did not reach {model.name}: {cast.log('agents-one')}")
        time.sleep(0.2)


if __name__ == "__main__":
    sys.exit(main())
