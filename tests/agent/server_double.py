"""A server on the loopback interface that signs for real and lies on request.

It holds real keys and builds every document with `trust.sign`, so what the agent verifies is what
a service would send. `lie` may change any answer before it leaves: the hostile server is the
honest one with one function more.
"""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from datetime import UTC, datetime, timedelta
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import Metadata, TargetFile

from neural_diff.make import make_patch
from tests.agent.loopback import REFUSED, Answer, Asked, Lie, problem, ranged, serving
from trust import roles, sign
from trust.order import Order
from trust.roles import CanaryTarget, Component, ComponentTarget, PatchTarget, Release

MODEL = "asr-en-edge"
FAMILY = roles.family_role(MODEL)
NOW = datetime.now(UTC).replace(microsecond=0)  # python-tuf reads the system clock itself
CREDENTIAL = "secret-of-the-device"
DEVICE = "d1"
WORDS = 400
COUNTED = {"normaliser": "nfkc-casefold/1", "unit": "word"}

ENGINE = """#!/bin/sh
errors=$(LC_ALL=C sed -n 's/^errors=\\([0-9]*\\)$/\\1/p' "$2" | head -n 1)
set=$(sha256sum "$4/canary.json" | cut -c1-64)
printf '{"sub":%s,"del":0,"ins":1,"utterances":50,"ref_words":400,"shards":[3],' "$errors"
printf '"canary_set":"%s","scorer":"wer/1","runtime":"sh/1","milliseconds":1}' "$set"
"""


def digest(data: bytes) -> str:
    return sha256(data).hexdigest()


def model_bytes(name: str, errors: int) -> bytes:
    """A model that makes that many errors, as `ENGINE` finds them."""
    filler = b"".join(sha256(f"{name} {n}".encode()).digest() for n in range(20))
    return f"errors={errors}\n".encode() + b"weights " * 500 + filler


def listed(release: Release) -> list[ComponentTarget]:
    return [ComponentTarget(part.sha256, part.bytes) for part in release.components]


class ServerDouble:
    """One model, one device, every document signed."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.now = NOW
        roles = "root targets snapshot timestamp family director".split()
        self.keys = {name: CryptoSigner.generate_ed25519() for name in roles}
        self.files: dict[str, bytes] = {}
        self.bodies: dict[str, bytes] = {}
        self.blobs: dict[str, bytes] = {}
        self.models: dict[str, bytes] = {}
        self.components: dict[str, dict[str, bytes]] = {}
        self.releases: dict[str, Release] = {}
        self.patches: dict[tuple[str, str], PatchTarget] = {}
        self.order: bytes | None = None
        self.plan: dict[str, Any] | None = None
        self.hold: str | None = None
        self.seq = 0
        self.events: list[dict[str, Any]] = []
        self.reports: list[dict[str, Any]] = []
        self.capacities: list[dict[str, Any]] = []
        self.asks: dict[str, Any] = {}  # beside the shard
        self.asked: list[Asked] = []
        self.lie: Lie = lambda asked, answer: answer
        self.documents: dict[str, Metadata[Any]] = {}
        self._make_root()
        shard = b"shard 03"
        self.shard = {"sha256": digest(shard), "bytes": len(shard)}
        entry = {"id": 3, "file": "03.zip", "utterances": 50, "ref_words": WORDS, **self.shard}
        manifest = json.dumps({**COUNTED, "shards": [entry]}).encode()
        self.canary = CanaryTarget("c1", digest(manifest), len(manifest))
        self.blobs |= {digest(shard): shard, digest(manifest): manifest}

    # What a release manager does

    def publish(self, name: str, errors: int = 20, **more: Any) -> Release:
        """Publish a release; `more` is its status, back_from, and components as name -> bytes."""
        data = self.models.setdefault(name, model_bytes(name, errors))
        parts = self.components[name] = more.get("components", self.components.get(name, {}))
        self.blobs |= {digest(body): body for body in (data, *parts.values())}
        self.releases[name] = Release(
            name,
            int(name[1:]),
            more.get("status", "active"),
            digest(data),
            len(data),
            "safetensors",
            (),
            more.get("back_from", ()),
            components=tuple(Component(n, digest(b), len(b)) for n, b in sorted(parts.items())),
        )
        self.sign_all()
        return self.releases[name]

    def make_patch(self, source: str, target: str) -> PatchTarget:
        base, result, out = (self.folder / n for n in ("base", "result", "out.ndiff"))
        base.write_bytes(self.models[source])
        result.write_bytes(self.models[target])
        make_patch(base, result, out)
        data = out.read_bytes()
        patch = PatchTarget(
            roles.patch_path(MODEL, source, target),
            digest(data),
            len(data),
            self.releases[source].sha256,
            self.releases[target].sha256,
            "sparse",
        )
        self.patches[source, target] = patch
        self.blobs[patch.sha256] = data
        self.sign_all()
        return patch

    # What the publisher does

    def sign_all(self) -> None:
        """Sign the next version of everything."""
        self.put("family", sign.next_family(self._signed("family"), self.entries(), self.now))
        self.sign_online()

    def entries(self) -> list[tuple[str, TargetFile]]:
        """What the family lists."""
        return [
            *(sign.target_of(MODEL, r) for r in self.releases.values()),
            *(sign.target_of(MODEL, p) for p in self.patches.values()),
            *(sign.target_of(MODEL, c) for r in self.releases.values() for c in listed(r)),
            sign.target_of(MODEL, self.canary),
        ]

    def sign_online(self) -> None:
        """Sign the next snapshot and timestamp over what is newest."""
        bodies = {"targets.json": self.bodies["targets"], f"{FAMILY}.json": self.bodies["family"]}
        self.put("snapshot", sign.next_snapshot(self._signed("snapshot"), bodies, self.now))
        snapshot = self.bodies["snapshot"]
        self.put("timestamp", sign.next_timestamp(self._signed("timestamp"), snapshot, self.now))

    def put(self, role: str, document: Metadata[Any], *by: CryptoSigner) -> None:
        """Sign a document as the newest of its role; a server keeps every root."""
        body = sign.sign(document, by or [self.keys[role]])
        file = f"{FAMILY if role == 'family' else role}.json"
        if role != "root":
            self.files = {n: b for n, b in self.files.items() if not n.endswith(file)}
        number = "" if role == "timestamp" else f"{document.signed.version}."
        self.files[number + file] = self.bodies[role] = body
        self.documents[role] = document

    def sign_order(self, release: Release, /, **changes: Any) -> bytes:
        self.seq += 1
        order = Order(
            device=DEVICE,
            seq=self.seq,
            issued=self.now,
            expires=self.now + timedelta(days=7),
            model=MODEL,
            release=release.name,
            sha256=release.sha256,
            root=self.documents["root"].signed.version,
            timestamp=self.documents["timestamp"].signed.version,
            hold=False,
            deployment=f"dep{self.seq}",
        )
        return sign.sign_order(replace(order, **changes), self.keys["director"])

    # What the planner does

    def offer(
        self, name: str, *ways: list[dict[str, Any]], canary: bool = True, **changes: Any
    ) -> None:
        """Order a release, with these pipelines or the full file."""
        release = self.releases[name]
        self.order = self.sign_order(release, **changes)
        self.plan = {
            "deployment": f"dep{self.seq}",
            "rollout": "ro1",
            "direction": "forward",
            "release": name,
            "sha256": release.sha256,
            "bytes": release.bytes,
            "pipelines": list(ways) or [[self.full(name)]],
            "canary": {"set": self.canary.sha256, "set_bytes": self.canary.bytes, "shard": "03"}
            | {f"shard_{name}": value for name, value in self.shard.items()}
            | self.asks
            if canary
            else None,
            "gate": {"timeout_s": 30},
        }

    def full(self, name: str) -> dict[str, Any]:
        release = self.releases[name]
        return self._step("full", release.sha256, release.bytes, release)

    def patch(self, source: str, target: str) -> dict[str, Any]:
        found = self.patches[source, target]
        return self._step("patch", found.sha256, found.bytes, self.releases[target])

    def undo(self, name: str) -> dict[str, Any]:
        release = self.releases[name]
        return self._step("undo", release.sha256, release.bytes, release)

    def bundle(self, root: int, timestamp: int) -> dict[str, Any]:
        news = timestamp != self.documents["timestamp"].signed.version
        files = {
            name: body.decode()
            for name, body in self.files.items()
            if (int(name.split(".")[0]) > root if name.endswith(".root.json") else news)
        }
        order = None if self.order is None else json.loads(self.order)
        return {"metadata": files, "order": order, "hold": self.hold, "plan": self.plan}

    # HTTP

    def answer(self, asked: Asked) -> Answer:
        if asked.headers.get("authorization") != f"Bearer {CREDENTIAL}":
            if asked.path == "/device/v1/enroll":
                return self._enroll(asked)
            return problem(401, "bad-credential", "Who is this?", **REFUSED)
        if asked.path == "/device/v1/poll":
            return self._poll(asked)
        if asked.path == "/device/v1/events":
            return self._take_events(asked)
        if asked.path in ("/device/v1/canary-reports", "/device/v1/capacity"):
            kept = self.capacities if "capacity" in asked.path else self.reports
            kept.append(json.loads(asked.body))
            return Answer(202, b'{"result":"stored"}')
        return self._artifact(asked)

    def event_kinds(self) -> list[str]:
        return [event["kind"] for event in self.events]

    def _poll(self, asked: Asked) -> Answer:
        body = json.dumps(self.bundle(int(asked.query["root"]), int(asked.query["t"]))).encode()
        # Of what there is to know, not of what this device lacks of it.
        everything = json.dumps(self.bundle(0, 0)) + asked.query.get("s", "")
        etag = f'"{digest(everything.encode())[:20]}"'
        headers = {"ETag": etag, "Poll-After": "60"}
        if asked.headers.get("if-none-match") == etag:
            return Answer(304, b"", headers)
        running = asked.query.get("s")
        if self.plan and running == self.plan["sha256"]:
            body = json.dumps({**json.loads(body), "plan": None, "hold": "up_to_date"}).encode()
        return Answer(200, body, headers)

    def _take_events(self, asked: Asked) -> Answer:
        known = {event["seq"] for event in self.events}
        news = json.loads(asked.body)["events"]
        self.events += [event for event in news if event["seq"] not in known]
        return Answer(200, json.dumps({"acknowledged": news[-1]["seq"]}).encode())

    def _enroll(self, asked: Asked) -> Answer:
        document = json.loads(asked.body)
        if document["enrollment_token"] != "token":
            return problem(401, "bad-enrollment-token", "The token is unknown")
        if document["serial"] == "taken":
            return problem(409, "already-enrolled", "This serial is enrolled already")
        root = digest(self.files["1.root.json"])
        answer = {"device_id": DEVICE, "credential": CREDENTIAL, "root_sha256": root}
        return Answer(201, json.dumps(answer).encode())

    def _artifact(self, asked: Asked) -> Answer:
        data = self.blobs.get(asked.path.rsplit("/", 1)[-1])
        if data is None:
            return problem(404, "not-found", "No such artifact")
        return ranged(data, asked)

    def _make_root(self) -> None:
        publics = {n: self.keys[n].public_key for n in "root targets snapshot timestamp".split()}
        self.put("root", sign.new_root(publics, self.now, dev=False))
        holders = {FAMILY: self.keys["family"].public_key}
        holders |= {roles.DIRECTOR: self.keys["director"].public_key}
        self.put("targets", sign.next_targets(None, holders, self.now))

    def _signed(self, role: str) -> Any:
        return self.documents[role].signed if role in self.documents else None

    def _step(self, op: str, blob: str, size: int, to: Release) -> dict[str, Any]:
        return {"op": op, "sha256": blob, "bytes": size, "to": to.sha256, "to_bytes": to.bytes}


@contextmanager
def honest_or_not(double: ServerDouble) -> Iterator[str]:
    """Serve a double, its lies included."""
    with serving(lambda asked: double.lie(asked, double.answer(asked)), double.asked) as address:
        yield address
