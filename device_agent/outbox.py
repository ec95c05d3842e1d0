"""Events and canary reports on their way to the server.

A durable queue in the journal: what is added stays, through power cuts and weeks without a
network, until the server acknowledges it. Events carry a sequence number that never repeats, so a
batch that was sent twice counts once. An entry has a key, and a key is queued once: a step that
runs twice, or a refusal that repeats with every poll, says so once.
"""

import logging
from collections.abc import Callable
from dataclasses import asdict, dataclass
from itertools import takewhile
from typing import Any

from device_agent.client import Client
from device_agent.errors import Rejected, one_line
from device_agent.journal import Journal, Queue
from device_agent.strict import accept

logger = logging.getLogger(__name__)

ITEMS_MAX = 500
BATCH_ITEMS_MAX = 100
KEYS_KEPT_MAX = 256
DETAIL_LETTERS_MAX = 500
EVENTS = "events"
REPORTS = "canary-reports"
CAPACITY = "capacity"


@dataclass(frozen=True)
class Event:
    """Something that happened, as the service is told."""

    kind: str
    deployment: str = ""
    reason: str = ""
    detail: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Receipt:
    """The answer to events: the highest number that was stored."""

    acknowledged: int


class Outbox:
    """The queue. Full, it loses its oldest entry and says so in the log."""

    def __init__(self, journal: Journal, now: Callable[[], str]) -> None:
        self._journal = journal
        self._now = now

    def __len__(self) -> int:
        return len(self._journal.memory.queue)

    def add_event(self, about: str, event: Event) -> None:
        """Queue an event, unless the same was said about the same thing before."""
        seq = self._journal.memory.next_seq
        detail = one_line(event.detail)[:DETAIL_LETTERS_MAX]
        body = {**asdict(event), "seq": seq, "at": self._now(), "detail": detail}
        key = f"{about} {event.deployment} {event.kind} {event.reason}"
        self._add(key, EVENTS, body, next_seq=seq + 1)

    def add_report(self, report: dict[str, Any]) -> None:
        """Queue a canary report, unless it was queued before."""
        self._add(f"report {report['report_id']}", REPORTS, report)

    def add_capacity(self, has: dict[str, Any]) -> None:
        """Queue what the device has for an update."""
        self._add(f"{CAPACITY} {self._now()} {has}", CAPACITY, has, capacity=has)

    def flush(self, client: Client) -> None:
        """Send everything in order.

        What the server refuses for good is dropped with a warning: one entry that it cannot take
        must not hold back all that follow.

        Raises:
            OSError: the rest could not be sent and stays.
        """
        batch_max = BATCH_ITEMS_MAX
        while queue := self._journal.memory.queue:
            batch = queue[:batch_max]
            try:
                sent = _send(client, batch)
            except Rejected as error:
                if len(batch) > 1:
                    batch_max = 1
                    continue
                logger.warning("report %s was refused for good: %s", batch[0], error)
                sent = 1
            if sent == 0:
                return
            self._journal.remember(queue=queue[sent:])

    def _add(self, key: str, path: str, body: dict[str, Any], **changes: Any) -> None:
        memory = self._journal.memory
        if key in memory.said:
            return
        if len(memory.queue) >= ITEMS_MAX:
            logger.warning("the outbox is full; its oldest entry is lost: %s", memory.queue[0])
        queue = (*memory.queue, (path, body))[-ITEMS_MAX:]
        self._journal.remember(queue=queue, said=(*memory.said, key)[-KEYS_KEPT_MAX:], **changes)


def _send(client: Client, batch: Queue) -> int:
    """Send the events in front, or else one report, and return how many entries were taken."""
    events = [body for path, body in takewhile(lambda entry: entry[0] == EVENTS, batch)]
    if not events:
        client.post(*batch[0])
        return 1
    receipt = accept(Receipt, client.post(EVENTS, {"events": events}), "E_HTTP")
    return sum(event["seq"] <= receipt.acknowledged for event in events)
