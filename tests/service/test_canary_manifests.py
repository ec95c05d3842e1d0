"""Which canary sets a server takes: none that every device would refuse."""

import json
from typing import Any

from tests.service.world import BASE, COUNTED, MODEL, World, digest, refused
from trust import sign
from trust.roles import CanaryTarget

FAMILY = f"/v1/metadata/family-{MODEL}"


def test_a_canary_manifest_that_devices_could_not_use_is_refused(world_sqlite: World) -> None:
    world = world_sqlite
    world.publish("r1", BASE)
    sha256 = world.upload(b"a shard")
    shard = {"id": "00", "sha256": sha256, "bytes": 7, "utterances": 20, "ref_words": 100}
    wrong: list[Any] = [
        [],
        "text",
        {},
        {"shards": []},
        {"shards": {}},
        {"shards": [1]},
        {"shards": [{k: v for k, v in shard.items() if k != "id"}]},
        {"shards": [shard | {"id": 7}]},
        {"shards": [shard | {"id": "a\nb"}]},
        {"shards": [shard, shard]},
        {"shards": [shard | {"sha256": digest(b"never uploaded")}]},
        {"shards": [shard | {"sha256": None}]},
        {"shards": [shard | {"sha256": [sha256]}]},
        {"shards": [shard | {"bytes": 8}]},
        {"shards": [shard | {"utterances": 0}]},
        {"shards": [shard | {"utterances": "20"}]},
        {"shards": [shard | {"ref_words": 10**7}]},
        {"shards": [shard | {"ref_words": 1.5}]},
        {"shards": [shard | {"ref_words": True}]},
        {"shards": [shard], "name": float("nan")},
        {"shards": [shard], "normaliser": "whisper/1"},
        {"shards": [shard], "unit": None},
        {"shards": [shard], "expires": "next year"},
        {"shards": [shard], "expires": 7},
    ]
    for number, manifest in enumerate(wrong):
        if isinstance(manifest, dict):
            wrong[number] = COUNTED | manifest
    raw = [json.dumps(manifest).encode() for manifest in [*wrong, {"shards": [shard]}]]
    raw += [b"\xff", b"[" * 100_000, b'{"shards":' * 50_000]
    world.tick()
    assert world.family is not None
    for body in raw:
        target = CanaryTarget("canary-1", world.upload(body), len(body))
        before = world.rows()
        signed = world.next_family(sign.target_of(MODEL, target))
        refused(world.call("PUT", FAMILY, content=signed), 422)
        assert world.rows() == before, body[:80]
    world.publish_canary()
    assert world.ok("GET", f"/v1/models/{MODEL}")["canary_set"]
