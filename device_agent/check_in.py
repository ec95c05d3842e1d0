"""Checking in: one question to the server, and what may be believed of the answer.

The order of the checks is the order of the signatures: metadata, then the order, then the
transition, then the plan. What each step raises is written down before the next one begins, so a
power cut or a refusal further on cannot make a device forget what it has seen. No byte of a patch
is fetched before all of it held.
"""

import json
import logging
import shutil
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from typing import Any

from device_agent.client import Client, Reply
from device_agent.config import AGENT_VERSION, Config, read_root
from device_agent.disk import LIST, Slots, list_of, wanted_in, write_durably
from device_agent.errors import NothingToDo, Rejected, Unavailable, one_line
from device_agent.journal import Journal
from device_agent.outbox import Event, Outbox
from device_agent.plan import LABEL, Plan, check_plan
from device_agent.states import Idle
from device_agent.strict import accept
from trust.errors import Untrusted, require
from trust.order import Order, read_time, write_time
from trust.roles import Family, Release
from trust.verify import Trusted, check_order, check_transition, refresh

logger = logging.getLogger(__name__)

FILES_MAX = 100  # of metadata in one answer
HOLD_MAX = 64  # letters of why there is nothing, which only people read


@dataclass(frozen=True)
class Bundle:
    """The body of a poll's answer: signed documents, and a plan and a hold that are not signed."""

    metadata: dict[str, str]
    order: Any
    plan: Any
    hold: Any = None


@dataclass
class CheckIn:
    """A device's dialogue with its server about what to run."""

    config: Config
    client: Client
    slots: Slots
    journal: Journal
    outbox: Outbox
    clock: Callable[[], datetime]
    poll_after_s: float | None = None

    def __post_init__(self) -> None:
        self._root, self._root_version = read_root(self.config)
        self._cache = self.config.state_dir / "tuf"

    def ask(self) -> Plan | None:
        """Poll; return a verified plan, or None if there is nothing to do.

        Raises:
            Rejected: the answer is not to be acted on; carries the deployment it claimed.
            OSError: no answer.
        """
        active, etag = self.slots.active_sha256(fresh=False), self.journal.memory.etag
        reply = self._poll(active, etag)
        if reply.status == 304:
            self._note_freeze()
            if not etag:
                raise Unavailable("the server answers 304 to a question without a condition")
            return None
        bundle = Bundle({}, None, None)
        try:
            bundle = read_bundle(reply.body)
            plan = self._verify(bundle, active)
        except (Untrusted, Rejected) as error:
            about = sha256(reply.etag.encode()).hexdigest()[:16]
            raise Rejected(error.code, error.message, _claimed(bundle.plan), about) from error
        hold = one_line(str(bundle.hold or ""))[:HOLD_MAX] if plan is None else ""
        if plan is None:
            self.journal.remember(etag=reply.etag, refusals=0, hold=hold)
            return None
        logger.info("offer of release %s by %s", plan.release, plan.deployment)
        self.journal.remember(etag="", deployment=plan.deployment, hold=hold)
        return replace(plan, etag=reply.etag)

    def still_ordered(self, plan: Plan) -> bool:
        """Ask once more, right before the switch, whether the order behind a plan stands."""
        reply = self._poll(plan.base, plan.etag)
        if reply.status == 304:
            return True
        try:
            current = self._verify(read_bundle(reply.body), plan.base)
        except (Untrusted, Rejected) as error:
            logger.info("order of %s is read afresh: %s", plan.deployment, error)
            return False
        same = (plan.order_seq, plan.deployment)
        return current is not None and (current.order_seq, current.deployment) == same

    def go_back(self, reason: str) -> str:
        """Make the good release in the spare slot the active one again, and return its digest.

        Only along a way that the family signs; the deployment that is left is not tried again.

        Raises:
            NothingToDo: the spare slot holds no good release.
            Rejected: E_DOWNGRADE if no signed edge leads there.
        """
        memory, spare = self.journal.memory, self.slots.spare_sha256()
        if spare not in memory.good:
            raise NothingToDo("the spare slot holds no good earlier release")
        running, left = self.slots.active_sha256(fresh=True), memory.deployment
        name = memory.good[spare] or spare[:12]
        if (running, spare) not in memory.back_edges:
            raise Rejected("E_DOWNGRADE", f"the family signs no way back from here to {name}")
        given_up = memory.giving_up(left) if left else memory.given_up
        ended = ("rolled_back", reason, f"back to {name}", write_time(self.clock()))
        self.journal.remember(given_up=given_up, etag="", ended=ended)
        # Said before it is done: after a power cut in between it is done and not said again.
        event = Event("rolled_back", left, reason, f"back to {name}")
        self.outbox.add_event(f"{running} {memory.floors.order_seq}", event)
        self.slots.activate(spare, "E_BASE")
        self.journal.save(Idle())
        return spare

    def _poll(self, active: str, etag: str) -> Reply:
        root, timestamp = self._verified("root", self._root_version), self._verified("timestamp", 0)
        with self.client.identity.judged():
            reply = self.client.poll(active, root, timestamp, etag)
        self.poll_after_s = reply.poll_after_s
        self.client.renew(reply.credential)
        return reply

    def _verified(self, role: str, otherwise: int) -> int:
        """The version that was verified last, if the cache still has it."""
        cached = (self._cache / f"{role}.json").exists()
        floor = self.journal.memory.floors.versions.get(role)
        return floor[1] if floor and cached else otherwise

    def _verify(self, bundle: Bundle, active: str) -> Plan | None:
        if (bundle.metadata, bundle.order, bundle.plan) == ({}, None, None):
            self._note_freeze()
            return None
        trusted = self._refresh(bundle)
        self._check_history(trusted.family)
        if self._left_withdrawn(trusted.family, active):
            return None
        self._check_components(trusted.family.release_of(active))
        if bundle.order is None:
            if bundle.plan is not None:
                raise Rejected("E_NOT_RELEASED", "a plan came without an order")
            return None
        order = self._check_order(trusted, bundle.order)
        given_up = order.deployment in self.journal.memory.given_up
        if order.hold or order.sha256 == active or bundle.plan is None or given_up:
            return None
        if self.slots.active_sha256(fresh=True) != active:
            raise Unavailable("the model file changed under its date; asking again")
        release = check_transition(
            trusted,
            order,
            self._now(),
            running_sha256=active,
            hardware=self.config.hardware,
            formats=self.config.formats,
            agent=AGENT_VERSION,
        )
        plan = accept(Plan, bundle.plan, "E_PLAN")
        components = release.components
        plan = replace(plan, order_seq=order.seq, base=active, components=components)
        check_plan(plan, order, trusted.family)
        return plan

    def _refresh(self, bundle: Bundle) -> Trusted:
        files = {name: text.encode() for name, text in bundle.metadata.items()}
        root, model, floors = self._root, self.config.model, self.journal.memory.floors
        try:
            trusted, floors = refresh(self._cache, root, files, model, self.clock(), floors)
        except Untrusted:
            # The cache may be what is wrong. It is disposable; the floors are not.
            shutil.rmtree(self._cache, ignore_errors=True)
            raise
        self.journal.remember(
            floors=floors,
            fresh_until=write_time(trusted.expires),
            back_edges=back_edges(trusted.family, self._now()),
        )
        return trusted

    def _check_order(self, trusted: Trusted, envelope: Any) -> Order:
        identity, before = self.client.identity, self.journal.memory.floors
        order, floors = check_order(
            trusted,
            json.dumps(envelope).encode(),
            device_id=identity.known.device_id,
            model=self.config.model,
            now=self.clock(),
            floors=before,
        )
        if floors.order_seq > before.order_seq:
            identity.was_proven()
        expires = write_time(min(trusted.expires, order.expires))
        self.journal.remember(floors=floors, fresh_until=expires)
        return order

    def _check_history(self, family: Family) -> None:
        """A release that ran here is what it was: a family that says otherwise is not believed."""
        good = self.journal.memory.good
        named = {release.sha256: release.name for release in family.releases.values()}
        for model, name in good.items():
            said = family.releases.get(name)
            same = said is None or said.sha256 == model
            require(same, "E_EQUIVOCATION", f"release {name} is {model[:12]} here and not there")
        self.journal.remember(good={m: name or named.get(m, "") for m, name in good.items()})

    def _check_components(self, running: Release | None) -> None:
        """A model alone is not the release that has components, too: it is installed anew."""
        there = wanted_in(self.slots.active.parent)
        if running is not None and there != (wanted := list_of(running.components)):
            name = running.name
            require(not there, "E_EQUIVOCATION", f"{name} has other components here than there")
            write_durably(self.slots.active.with_name(LIST), wanted)
            raise Unavailable(f"{name} runs here without its components; asking again")

    def _left_withdrawn(self, family: Family, active: str) -> bool:
        """Tell that the running release was withdrawn, and leave it if that is the policy."""
        running = family.release_of(active)
        if running is None or running.status != "withdrawn":
            return False
        note = Event("note", "", "E_WITHDRAWN", f"{running.name} runs here and was withdrawn")
        self.outbox.add_event(active, note)
        # The withdrawal and the way back are both signed offline: that takes no order.
        if self.config.on_withdrawn == "previous_slot":
            with suppress(NothingToDo, Rejected):
                self.go_back("withdrawn")
                return True
        return False

    def _now(self) -> datetime:
        return self.journal.memory.floors.now(self.clock())

    def _note_freeze(self) -> None:
        """A server that never has news may be hiding it: say so once what is known expires."""
        until = self.journal.memory.fresh_until
        if until and self._now() >= read_time(until):
            logger.warning("metadata or order expired at %s", until)
            note = Event("note", "", "E_FREEZE", f"nothing new since {until}")
            self.outbox.add_event(until, note)
            self.journal.remember(etag="")


def read_bundle(body: bytes) -> Bundle:
    """Return the parts of an answer.

    Raises:
        Rejected: E_HTTP if it is not what the device API says.
    """
    bundle = accept(Bundle, body, "E_HTTP")
    if len(bundle.metadata) > FILES_MAX:
        raise Rejected("E_SIZE", f"{len(bundle.metadata)} metadata files, more than {FILES_MAX}")
    return bundle


def back_edges(family: Family, now: datetime) -> tuple[tuple[str, str], ...]:
    """Return the ways back that a family signs, as digests (from, to)."""
    releases = family.releases.values()
    return tuple(
        (source.sha256, release.sha256)
        for release in releases
        if release.status == "active"
        for source in releases
        if source.seq > release.seq and release.takes_back(source, now)
    )


def _claimed(plan: Any) -> str:
    claimed = plan.get("deployment") if isinstance(plan, dict) else None
    return claimed if isinstance(claimed, str) and LABEL.match(claimed) else ""
