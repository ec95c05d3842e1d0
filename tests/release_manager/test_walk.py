"""The walk of two release managers, from nothing to a way back at night with nobody at a key."""

import json
import shutil
from pathlib import Path

from service.signing.keys import OnlineKeys, Publisher
from tests.release_manager.test_canary_sets import canary_set
from tests.release_manager.town import Town
from tests.service.world import Phone, digest, refused
from trust.floors import Floors
from trust.verify import check_order, check_transition, refresh

ALL = [{"share_bp": 10_000}]


class Device:
    """A phone that verifies what it is told, from the root that was signed in the ceremony."""

    def __init__(self, phone: Phone, root: bytes, cache: Path) -> None:
        self.phone, self.root, self.cache, self.floors = phone, root, cache, Floors()

    def obey(self) -> str:
        """Do what the order says, if it may be done; returns the release."""
        self.phone.world.tick()
        self.phone.offered()
        self.phone.etag = ""
        bundle, now = self.phone.poll(), self.phone.world.now
        metadata = {name: text.encode() for name, text in bundle["metadata"].items()}
        trusted, self.floors = refresh(self.cache, self.root, metadata, "asr", now, self.floors)
        order, self.floors = check_order(
            trusted,
            json.dumps(bundle["order"]).encode(),
            device_id=self.phone.id,
            model="asr",
            now=now,
            floors=self.floors,
        )
        running = self.phone.runs
        told = {"running_sha256": running, "hardware": "h1", "now": now}
        release = check_transition(trusted, order, **told)
        self.phone.runs = release.sha256
        self.phone.etag = ""
        self.phone.poll()
        return release.name


def test_two_release_managers_publish_withdraw_and_a_device_goes_back_at_night(
    the_town: Town, files: list[Path], tmp_path: Path
) -> None:
    town, world = the_town, the_town.world
    # The ceremony, offline: two of three sign root and targets, each on their own machine.
    town.found()
    town.add_model()
    root = (town.anne.folder / "root.json").read_bytes()
    world.publisher = Publisher(OnlineKeys.load(town.publisher.folder), root)
    base, better = (digest(file.read_bytes()) for file in files[:2])

    # Anne stages, Ben and Carl sign what they see; nothing is out before the second signature.
    assert town.publish("canary", "publish", "asr", canary_set(tmp_path / "set"))["published"]
    assert town.publish("release", "publish", "asr", "r1", files[0])["published"]
    patch = tmp_path / "p12.ndiff"
    assert town.anne.run("diff", "make", files[0], files[1], "-o", patch) == 0
    words = ["release", "publish", "asr", "r2", files[1], "--patch", patch, "--no-rollback"]
    assert town.anne.json(*words)["staged"]["missing"] == 2
    assert town.ben.sign("family-asr")["missing"] == 1
    assert [r["name"] for r in world.ok("GET", "/v1/models/asr/releases")["items"]] == ["r1"]
    assert town.carl.sign("family-asr")["published"]

    # A rollout, by day: it takes an order and the family, and no person's key.
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": "asr", "filter": {}})
    (phone,) = world.fleet(1, base)
    device = Device(phone, root, tmp_path / "device")
    rollout = world.start_rollout("r2", "all", stages=ALL)
    assert device.obey() == "r2" and phone.runs == better

    # r2 is bad: the two withdraw it, and sign the way back to r1 with it. Then they go home.
    done = town.publish("release", "withdraw", "asr", "r2", "--fallback", "r1")
    assert done["published"]
    for person in town.people:
        shutil.rmtree(person.folder)

    # At night whoever is on call halts the rollout, with a token that can do nothing else.
    on_call = world.token_with("rollouts:halt")
    refused(world.call("PUT", "/v1/drafts/family-asr", token=on_call, content=b"{}"), 403)
    halted = world.call("POST", f"/v1/rollouts/{rollout}/halt", token=on_call)
    assert halted.status_code == 200, halted.text
    assert device.obey() == "r1" and phone.runs == base
    stage = world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]
    assert stage["rolled_back"] == 1

    # And nobody gets the withdrawn release any more.
    again = {"model": "asr", "release": "r2", "cohort": "all", "stages": ALL}
    reply = world.call("POST", "/v1/rollouts", json=again)
    assert reply.status_code in (409, 422), reply.text


def test_without_the_signed_way_back_nobody_on_call_can_send_a_device_back(
    the_town: Town, files: list[Path], tmp_path: Path
) -> None:
    town, world = the_town, the_town.world
    town.found()
    town.add_model()
    root = (town.anne.folder / "root.json").read_bytes()
    world.publisher = Publisher(OnlineKeys.load(town.publisher.folder), root)
    town.publish("canary", "publish", "asr", canary_set(tmp_path / "set"))
    town.publish("release", "publish", "asr", "r1", files[0])
    town.publish("release", "publish", "asr", "r2", files[1])
    world.ok("POST", "/v1/cohorts", json={"name": "all", "model": "asr", "filter": {}})
    (phone,) = world.fleet(1, digest(files[0].read_bytes()))
    device = Device(phone, root, tmp_path / "device")
    rollout = world.start_rollout("r2", "all", stages=ALL, full_downloads=True)
    assert device.obey() == "r2"
    world.ok("POST", f"/v1/rollouts/{rollout}/halt")
    assert phone.offered() == "no_pipeline"
