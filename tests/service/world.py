"""A small world around the real app: keys, a clock that tests turn, devices that only poll.

world = World(client, app, tmp_path)
world.publish("r1", b"bytes of the base")
device = world.enroll("serial-1"); device.runs = digest; device.poll()
"""

import hashlib
import json
import tempfile
import threading
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

from fastapi import FastAPI
from sqlalchemy import select
from starlette.testclient import TestClient
from tuf.api.metadata import Metadata, Targets

from neural_diff.make import make_patch
from service.app import create_app
from service.core import access
from service.db.columns import Table
from service.db.rollout_tables import Deployment
from service.db.tables import Device
from service.engine.tick import tick
from service.fleet import devices, offers, registry
from service.settings import Settings
from service.signing import publisher
from service.signing.keys import OnlineKeys, Publisher
from tests.service import tally
from tests.service.phone import Phone
from trust import sign
from trust.roles import CanaryTarget, PatchTarget, Release, patch_path, read_family

MODEL = "asr"
START = datetime(2026, 6, 1, 12, tzinfo=UTC)
BASE, BETTER = b"the base model" * 100, b"the better model" * 100


def patch_between(base: bytes, target: bytes) -> bytes:
    with tempfile.TemporaryDirectory() as folder:
        files = [Path(folder, name) for name in ("base", "target", "patch")]
        for file, held in zip(files, (base, target), strict=False):
            file.write_bytes(held)
        make_patch(*files)
        return files[2].read_bytes()


PATCH = patch_between(BASE, BETTER)


def digest(body: bytes) -> str:
    return hashlib.sha256(body).hexdigest()


def refused(reply: Any, status: int, name: str = "") -> Any:
    """Check that a reply is a problem document, and return it."""
    assert reply.status_code == status, f"{reply.status_code}: {reply.text}"
    assert reply.headers["content-type"] == "application/problem+json"
    body = reply.json()
    assert body.keys() >= {"type", "title", "status", "detail"} and body["status"] == status
    assert body["type"].endswith(f"/{name}" if name else ""), body
    return body


def outcomes(calls: Sequence[Callable[[], Any]]) -> list[int]:
    """Call everything at once, each in a thread, and return the sorted statuses."""
    start = threading.Barrier(len(calls))

    def run(call: Callable[[], Any]) -> int:
        start.wait()
        return int(call().status_code)

    with ThreadPoolExecutor(len(calls)) as threads:
        return sorted(threads.map(run, calls))


def patient(**chosen: Any) -> Settings:
    """Return settings under which a test, whose clock stands still, may ask at will."""
    kinds = ("operator_calls", "device_calls", "enrolls", "failed_calls")
    limits = {f"{kind}_per_min": 1_000_000 for kind in kinds}
    return Settings(**{"poll_after_s": 60} | limits | chosen)


@contextmanager
def opened(settings: Settings, folder: Path) -> Iterator["World"]:
    """Yield the world around a new app, to which nothing was published yet."""
    app = create_app(settings, ticking=False, durable=False)
    with TestClient(app, raise_server_exceptions=False) as client:
        yield World(client, app, folder / "keys")
        tally.check(app.state.database)


COUNTED = {"normaliser": "nfkc-casefold/1", "unit": "word"}


class World:
    def __init__(self, client: TestClient, app: FastAPI, folder: Path) -> None:
        self.client, self.app, self.keys_folder = client, app, folder
        self.now = START
        app.state.clock = lambda: self.now
        names = ("root", "targets", "snapshot", "timestamp", "director", "family")
        self.public = {name: sign.generate_key(folder / f"{name}.pem") for name in names}
        self.signers = {name: sign.load_signer(folder / f"{name}.pem") for name in names}
        self.publisher = Publisher(OnlineKeys.load(folder))
        self.family: Targets | None = None
        self.seq = 0
        self.token = self.token_with(*access.SCOPES)

    def token_with(self, *scopes: str, name: str = "tester") -> str:
        with self.app.state.database.writer() as session:
            lifetime = timedelta(days=30)
            return access.create_token(session, name, list(scopes), lifetime, self.now)[1]

    def call(self, method: str, path: str, token: str | None = None, **more: Any) -> Any:
        headers = {"Authorization": f"Bearer {token or self.token}"} | more.pop("headers", {})
        return self.client.request(method, path, headers=headers, **more)

    def ok(self, method: str, path: str, **more: Any) -> Any:
        reply = self.call(method, path, **more)
        assert reply.status_code < 300, reply.text
        return reply.json()

    def rows(self) -> dict[str, list[str]]:
        """Return everything the database holds, to compare before and after.

        All but the audit log, which a refusal leaves longer.
        """
        with self.app.state.database.reader() as session:
            return {
                table.name: sorted(str(tuple(row)) for row in session.execute(select(table)))
                for table in Table.metadata.sorted_tables
                if not table.name.startswith("audit_")
            }

    def tick(self, seconds: float = 1) -> None:
        self.now += timedelta(seconds=seconds)
        tick(self.app.state.database, self.now, timedelta(days=1), self.app.state.rollout_limits)
        self.work()

    def work(self) -> list[dict[str, str]]:
        """Let the publisher make a round; returns its problems."""
        return publisher.work(self.app.state.database, self.publisher, self.now)

    def found(self) -> "World":
        """Publish root and targets, and add the one model."""
        self.found_roles()
        self.ok("POST", "/v1/models", json={"name": MODEL})
        return self

    def found_roles(self) -> None:
        """Publish root and targets."""
        top = ("root", "targets", "snapshot", "timestamp")
        root = sign.new_root({name: self.public[name] for name in top}, self.now, dev=True)
        self.put_metadata("root", sign.sign(root, [self.signers["root"]]))
        holders = {role: self.public[role] for role in ("family", "director")}
        holders[f"family-{MODEL}"] = holders.pop("family")
        targets = sign.next_targets(None, holders, self.now)
        self.put_metadata("targets", sign.sign(targets, [self.signers["targets"]]))

    def put_metadata(self, role: str, body: bytes) -> Any:
        return self.ok("PUT", f"/v1/metadata/{role}", content=body)

    def newest_metadata(self, role: str) -> bytes:
        """Return the newest signed document of a role."""
        version = self.ok("GET", "/v1/metadata").get(role)
        reply = self.call("GET", f"/v1/metadata/{version}.{role}.json")
        assert reply.status_code == 200, reply.text
        return bytes(reply.content)

    def upload(self, body: bytes) -> str:
        name = digest(body)
        self.ok("PUT", f"/v1/artifacts/{name}", content=body)
        return name

    def next_family(self, *entries: Any) -> bytes:
        document = sign.next_family(self.family, entries, self.now)
        return sign.sign(document, [self.signers["family"]])

    def sign_family(self, *entries: Any) -> None:
        body = self.next_family(*entries)
        self.put_metadata(f"family-{MODEL}", body)
        self.family = Metadata[Targets].from_bytes(body).signed

    def release(self, name: str, body: bytes, **more: Any) -> Release:
        self.seq += 1
        fields = {"status": "active", "format": "raw", "hardware": (), "rollback_from": ()} | more
        return Release(name=name, seq=self.seq, sha256=digest(body), bytes=len(body), **fields)

    def publish(self, name: str, body: bytes, *, after: str = "", patch: bytes = b"") -> Release:
        """Publish a release; `after` is the release one may go back to from it."""
        self.upload(body)
        release = self.release(name, body)
        entries = [sign.target_of(MODEL, release)]
        if after:
            assert self.family is not None
            before = read_family(MODEL, self.family).releases[after]
            edges = (*before.rollback_from, name)
            back = Release(**{**vars(before), "rollback_from": edges})
            entries.append(sign.target_of(MODEL, back))
            if patch:
                self.upload(patch)
                path = patch_path(MODEL, after, name)
                ends = (before.sha256, release.sha256)
                edge = PatchTarget(path, digest(patch), len(patch), *ends, "sparse")
                entries.append(sign.target_of(MODEL, edge))
        self.sign_family(*entries)
        self.tick()
        return release

    def publish_canary(self, shards: int = 3, ref_words: int = 100, **more: Any) -> None:
        listed = []
        for number in range(shards):
            body = f"shard {number}".encode()
            listed.append(
                {
                    "id": f"{number:02}",
                    "file": f"shard-{number:02}.zip",
                    "sha256": self.upload(body),
                    "bytes": len(body),
                    "utterances": 20,
                    "ref_words": ref_words,
                }
            )
        document = {"name": "canary-1", "shards": listed, **COUNTED, **more}
        manifest = json.dumps(document).encode()
        target = CanaryTarget("canary-1", self.upload(manifest), len(manifest))
        self.sign_family(sign.target_of(MODEL, target))

    def enroll(
        self, serial: str, *, runs: str = "", cohort: str | None = None, **more: Any
    ) -> Phone:
        asked = {"model": MODEL, "cohort": cohort}
        token = self.ok("POST", "/v1/enrollment-tokens", json=asked)["token"]
        body = {"enrollment_token": token, "model": MODEL, "serial": serial, "hardware": "h1"}
        body |= {"agent_version": "1"} | more
        reply = self.client.post("/device/v1/enroll", json=body)
        assert reply.status_code == 201, reply.text
        return Phone(self, reply.json()["device_id"], reply.json()["credential"], runs)

    def publish_all(self) -> None:
        """Publish r1, a canary set and r2 after r1, and add the cohort of all devices."""
        self.publish("r1", BASE)
        self.publish_canary()
        self.publish("r2", BETTER, after="r1", patch=PATCH)
        self.ok("POST", "/v1/cohorts", json={"name": "all", "model": MODEL, "filter": {}})

    def ready(self, **more: Any) -> str:
        """Publish everything and start a rollout of r2 to all; returns its id."""
        self.publish_all()
        return self.start_rollout("r2", "all", **{"stages": [{"share_bp": 10_000}]} | more)

    def fleet(
        self, count: int, runs: str, *, prefix: str = "serial", hardware: Sequence[str] = ("h1",)
    ) -> list[Phone]:
        """Enroll many devices by one token in one transaction, past HTTP; note what they run."""
        phones = []
        with self.app.state.database.writer() as session:
            token = registry.invite(session, MODEL, count, timedelta(days=1), None, self.now)
            session.flush()
            for number in range(count):
                known: dict[str, Any] = {"attributes": {}, "agent_version": "1", "model": MODEL}
                known |= {"serial": f"{prefix}-{number}", "now": self.now}
                known["hardware"] = hardware[number % len(hardware)]
                device, credential = devices.enroll(session, token[1], **known)
                session.flush()
                offers.check_in(session, device, runs, timedelta(days=1), self.now)
                phones.append(Phone(self, device.id, credential, runs))
        return phones

    def plans(self, phones: Sequence[Phone]) -> list[Any]:
        """Offer to many devices in one transaction, past HTTP and without orders; None: on hold."""
        plans = []
        with self.app.state.database.writer() as session:
            for phone in phones:
                device = session.get_one(Device, phone.id)
                answer = offers.check_in(session, device, phone.runs, timedelta(days=1), self.now)
                wanted = session.get(Deployment, answer.row.deployment_id or "")
                offer = offers.Answer(answer.row, answer.ground, wanted, None, answer.findings)
                plans.append(wanted and offers.plan_of(session, offer))
        return plans

    def start_rollout(
        self, release: str, cohort: str, *, full_downloads: bool = False, **more: Any
    ) -> str:
        stages = [{"share_bp": 5000}, {"share_bp": 10000}]
        body = {"model": MODEL, "release": release, "cohort": cohort, "stages": stages} | more
        gate = {"control_share": 0} | more.get("gate", {})  # nobody hears the old model twice
        rollout = self.ok("POST", "/v1/rollouts", json=body | {"gate": gate})["id"]
        asked = {"accept_full_downloads": full_downloads}
        self.ok("POST", f"/v1/rollouts/{rollout}/start", params=asked)
        return str(rollout)
