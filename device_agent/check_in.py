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
from dataclasses import dataclass, replace
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from device_agent.client import Client, Reply
from device_agent.config import Config
from device_agent.errors import Misconfigured, Rejected, Unavailable
from device_agent.memory import Notebook, back_edges
from device_agent.outbox import Event, Outbox
from device_agent.plan import LABEL, Plan, check_plan, read_plan
from device_agent.slots import Slots
from device_agent.transport import parse_json
from trust.errors import Untrusted
from trust.order import Order, read_envelope, read_order, read_time, write_time
from trust.verify import Trusted, check_order, check_transition, refresh

logger = logging.getLogger(__name__)

FILES_MAX = 100  # of metadata in one answer
DEV_PROFILE = "x-fleetdiff-profile"


@dataclass(frozen=True)
class PinnedRoot:
    """The root a device was born with."""

    body: bytes
    version: int
    sha256: str


@dataclass(frozen=True)
class Bundle:
    """The body of a poll's answer: documents that are signed, and a plan that is not."""

    metadata: dict[str, bytes]
    order: bytes | None
    plan: Any


NOTHING_NEW = Bundle({}, None, None)


@dataclass
class CheckIn:
    """A device's dialogue with its server about what to run."""

    config: Config
    device_id: str
    client: Client
    slots: Slots
    notebook: Notebook
    outbox: Outbox
    clock: Callable[[], datetime]
    poll_after_s: float | None = None

    def __post_init__(self) -> None:
        self._root = read_root(self.config)
        self._cache = self.config.state_dir / "tuf"

    def ask(self) -> Plan | None:
        """Poll; return a verified plan, or None if there is nothing to do.

        Raises:
            Rejected: the answer is not to be acted on; carries the deployment it claimed.
            OSError: no answer.
        """
        active = self.slots.active_sha256(fresh=False)
        etag = self.notebook.memory.etag
        reply = self._poll(active, etag)
        if reply.status == 304:
            self._note_freeze()
            if not etag:
                raise Unavailable("the server answers 304 to a question without a condition")
            return None
        about = sha256(reply.etag.encode()).hexdigest()[:16]
        bundle: Bundle | None = None
        try:
            bundle = read_bundle(reply.body)
            plan = self._verify(bundle, active)
        except (Untrusted, Rejected) as error:
            claimed = _claimed_deployment(bundle)
            raise Rejected(error.code, error.message, claimed, about) from error
        if plan is None:
            self._remember(etag=reply.etag, refusals=0)
            return None
        self._remember(etag="", deployment=plan.deployment)
        return replace(plan, etag=reply.etag)

    def still_ordered(self, plan: Plan) -> bool:
        """Ask once more, right before the switch, whether the order behind a plan stands."""
        reply = self._poll(plan.base, plan.etag)
        if reply.status == 304:
            return True
        try:
            bundle = read_bundle(reply.body)
            if bundle.order is None or bundle.plan is None:
                return False
            # Not verified: an answer that lies here could as well have been a 304.
            order = read_order(read_envelope(bundle.order).payload)
            current = read_plan(bundle.plan)
        except (Untrusted, Rejected) as error:
            logger.info("order of %s is read afresh: %s", plan.deployment, error)
            return False
        return (order.seq, current.deployment) == (plan.order_seq, plan.deployment)

    def _poll(self, active: str, etag: str) -> Reply:
        memory = self.notebook.memory
        root, timestamp = memory.root_version, memory.floors.versions.get("timestamp", ("", 0))[1]
        if not (root and (self._cache / "root.json").exists()):
            root = self._root.version
        if not (self._cache / "timestamp.json").exists():
            timestamp = 0
        reply = self.client.poll(active, root, timestamp, etag)
        self.poll_after_s = reply.poll_after_s
        return reply

    def _verify(self, bundle: Bundle, active: str) -> Plan | None:
        if bundle == NOTHING_NEW:
            self._note_freeze()
            return None
        trusted = self._refresh(bundle)
        if bundle.order is None:
            if bundle.plan is not None:
                raise Rejected("E_NOT_RELEASED", "a plan came without an order")
            return None
        order = self._check_order(trusted, bundle.order)
        wanted = not order.hold and order.sha256 != active
        if bundle.plan is None or not wanted:
            return None
        if order.deployment in self.notebook.memory.given_up:
            return None
        if self.slots.active_sha256(fresh=True) != active:
            raise Unavailable("the model file changed under its date; asking again")
        check_transition(trusted, order, running_sha256=active, hardware=self.config.hardware)
        plan = replace(read_plan(bundle.plan), order_seq=order.seq, base=active)
        check_plan(plan, order, trusted.family, active)
        return plan

    def _refresh(self, bundle: Bundle) -> Trusted:
        memory = self.notebook.memory
        try:
            trusted, floors = refresh(
                self._cache,
                self._root.body,
                bundle.metadata,
                self.config.model,
                self.clock(),
                memory.floors,
            )
        except Untrusted:
            # The cache may be what is wrong. It is disposable; the floors are not.
            shutil.rmtree(self._cache, ignore_errors=True)
            raise
        self._remember(
            floors=floors,
            root_version=trusted.root_version,
            fresh_until=write_time(trusted.expires),
            back_edges=back_edges(trusted.family),
        )
        return trusted

    def _check_order(self, trusted: Trusted, envelope: bytes) -> Order:
        order, floors = check_order(
            trusted,
            envelope,
            device_id=self.device_id,
            model=self.config.model,
            now=self.clock(),
            floors=self.notebook.memory.floors,
        )
        self._remember(floors=floors, fresh_until=write_time(min(trusted.expires, order.expires)))
        return order

    def _note_freeze(self) -> None:
        """A server that never has news may be hiding it: say so once what is known expires."""
        memory = self.notebook.memory
        now = memory.floors.now(self.clock())
        if memory.fresh_until and now >= read_time(memory.fresh_until):
            logger.warning("metadata or order expired at %s", memory.fresh_until)
            self.outbox.add_event(
                f"freeze {memory.fresh_until}",
                Event("note", "", "E_FREEZE", f"nothing new since {memory.fresh_until}"),
            )
            self._remember(etag="")

    def _remember(self, **changes: Any) -> None:
        self.notebook.write(replace(self.notebook.memory, **changes))


def read_bundle(body: bytes) -> Bundle:
    """Return the parts of an answer.

    Raises:
        Rejected: E_HTTP if it is not what the device API says.
    """
    document = parse_json(body)
    try:
        metadata, order, plan = document["metadata"], document["order"], document["plan"]
        files = {name: text.encode() for name, text in metadata.items()}
    except (KeyError, TypeError, AttributeError, UnicodeEncodeError) as error:
        raise Rejected("E_HTTP", f"the answer is not a bundle: {error!r}") from error
    if len(files) > FILES_MAX:
        raise Rejected("E_SIZE", f"{len(files)} metadata files; the limit is {FILES_MAX}")
    return Bundle(files, None if order is None else json.dumps(order).encode(), plan)


def read_root(config: Config) -> PinnedRoot:
    """Return the pinned root of a configuration.

    Raises:
        Misconfigured: it is missing, no root, or made for development.
    """
    path: Path = config.root
    try:
        body = path.read_bytes()
        signed = json.loads(body)["signed"]
        version, profile = int(signed["version"]), signed.get(DEV_PROFILE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"root = {str(path)!r} is no root metadata: {error}") from error
    if profile == "dev" and not config.dev_root:
        raise Misconfigured(f"{path} is a development root; dev_root = true accepts it")
    return PinnedRoot(body, version, sha256(body).hexdigest())


def _claimed_deployment(bundle: Bundle | None) -> str:
    plan = bundle.plan if bundle else None
    claimed = plan.get("deployment") if isinstance(plan, dict) else None
    return claimed if isinstance(claimed, str) and LABEL.match(claimed) else ""
