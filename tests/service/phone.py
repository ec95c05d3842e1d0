"""A device reduced to its words on the wire."""

import hashlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tests.service.world import World


class Phone:
    """Polls, fetches and reports with its own credential, and verifies nothing."""

    def __init__(self, world: "World", device_id: str, credential: str, runs: str) -> None:
        self.world, self.id, self.credential, self.runs = world, device_id, credential, runs
        self.etag, self.seq = "", 0

    def request(self, method: str, path: str, **more: Any) -> Any:
        return self.world.call(method, f"/device/v1{path}", token=self.credential, **more)

    def poll(self) -> Any:
        """Poll; returns the bundle, or None when nothing changed."""
        query = {"s": self.runs} if self.runs else {}
        headers = {"If-None-Match": self.etag}
        reply = self.request("GET", "/poll", params=query, headers=headers)
        if reply.status_code == 304:
            return None
        assert reply.status_code == 200, reply.text
        self.etag = reply.headers["etag"]
        return reply.json()

    def offered(self) -> Any:
        """Poll until the order is signed; returns the plan, or the reason to hold."""
        bundle = self.poll()
        if bundle is None or bundle["hold"] == "order_pending":
            self.world.tick()
            self.etag = ""
            bundle = self.poll()
        return bundle["plan"] or bundle["hold"]

    def say(self, kind: str, deployment: str = "", **more: Any) -> Any:
        self.seq += 1
        event = {"seq": self.seq, "kind": kind, "deployment": deployment} | more
        event.setdefault("at", self.world.now.isoformat())
        return self.request("POST", "/events", json={"events": [event]})

    def pair(self, plan: Any, old: int, new: int, /, **more: Any) -> Any:
        """Report word errors of the old and the new model for an offer."""
        canary = plan["canary"]
        name = f"{plan['release']}|{self.id}|{canary['set']}|{canary['shard']}|1"
        report = {
            "report_id": hashlib.sha256(name.encode()).hexdigest()[:32],
            "attempt": 1,
            "deployment": plan["deployment"],
            "old_model": self.runs,
            "new_model": self.runs if canary["arm"] == "control" else plan["sha256"],
            "canary_set": canary["set"],
            "shard": canary["shard"],
            "scorer": "wer/1",
            "runtime": "test",
            "utterances": 20,
            "ref_words": 100,
            "order": "old_first",
            "old": {"sub": old, "del": 0, "ins": 0},
            "new": {"sub": new, "del": 0, "ins": 0},
            "old_ms": 10,
            "new_ms": 10,
            "gate": "activated",
        } | more
        return self.request("POST", "/canary-reports", json=report)

    def install(self, plan: Any, old: int, new: int) -> None:
        """Do what an agent does with an offer: report, switch, and poll with the new bytes."""
        assert self.pair(plan, old, new).status_code == 202
        self.say("activated", plan["deployment"])
        self.runs = plan["sha256"]
        self.etag = ""
        self.poll()
