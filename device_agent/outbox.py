"""Events and canary reports on their way to the server.

A durable queue: what is added stays, through power cuts and weeks without a network, until the
server acknowledges it. Events carry a sequence number that never repeats, so a batch that was
sent twice counts once. An entry has a key, and a key is queued once: a step that runs twice, or a
refusal that repeats with every poll, says so once.
"""

import logging
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from device_agent.errors import Rejected, one_line
from device_agent.journal import Record

logger = logging.getLogger(__name__)

KEYS_KEPT_MAX = 256
DETAIL_LETTERS_MAX = 500
EVENTS = "events"
REPORTS = "canary-reports"


class Sender(Protocol):
    """What the outbox needs of the client."""

    def post(self, path: str, document: dict[str, Any]) -> Any:
        """Send a JSON document and return the JSON answer."""


@dataclass(frozen=True)
class Event:
    """Something that happened, as the service is told."""

    kind: str
    deployment: str = ""
    reason: str = ""
    detail: str = ""
    bytes: int = 0


class Outbox:
    """The queue. Full, it loses its oldest entry and says so in the log."""

    def __init__(self, path: Path, items_max: int, batch_max: int, now: Callable[[], str]) -> None:
        self._record = Record(path)
        self._items_max = items_max
        self._batch_max = batch_max
        self._now = now
        document = self._record.document or {"next_seq": 1, "items": [], "keys": []}
        self._next_seq = int(document["next_seq"])
        self._items: list[dict[str, Any]] = document["items"]
        self._keys: list[str] = document["keys"]

    def __len__(self) -> int:
        return len(self._items)

    def add_event(self, key: str, event: Event) -> None:
        """Queue an event, unless one with this key was queued before."""
        body = {
            "seq": self._next_seq,
            "kind": event.kind,
            "deployment": event.deployment,
            "at": self._now(),
            "reason": event.reason,
            "detail": one_line(event.detail)[:DETAIL_LETTERS_MAX],
            "bytes": event.bytes,
        }
        self._add(key, EVENTS, body)

    def add_report(self, report: dict[str, Any]) -> None:
        """Queue a canary report, unless it was queued before."""
        self._add(f"report {report['report_id']}", REPORTS, report)

    def flush(self, sender: Sender) -> None:
        """Send everything in order.

        What the server refuses for good is dropped with a warning: one entry that it cannot take
        must not hold back all that follow.

        Raises:
            OSError: the rest could not be sent and stays.
        """
        batch_max = self._batch_max
        while self._items:
            kind, batch = self._first_batch(batch_max)
            try:
                sent = self._send(sender, kind, batch)
            except Rejected as error:
                if len(batch) > 1:
                    batch_max = 1
                    continue
                logger.warning("report %s was refused for good: %s", batch[0], error)
                sent = 1
            if sent == 0:
                return
            self._save(self._items[sent:])

    def _first_batch(self, batch_max: int) -> tuple[str, list[dict[str, Any]]]:
        kind = self._items[0]["to"]
        most = batch_max if kind == EVENTS else 1
        batch = []
        for item in self._items[:most]:
            if item["to"] != kind:
                break
            batch.append(item["body"])
        return kind, batch

    def _send(self, sender: Sender, kind: str, batch: list[dict[str, Any]]) -> int:
        if kind == REPORTS:
            sender.post(REPORTS, batch[0])
            return 1
        answer = sender.post(EVENTS, {"events": batch})
        highest = answer.get("acknowledged") if isinstance(answer, dict) else None
        if not isinstance(highest, int):
            raise Rejected("E_HTTP", f"events were answered with {str(answer)[:80]}")
        return sum(1 for event in batch if event["seq"] <= highest)

    def _add(self, key: str, to: str, body: dict[str, Any]) -> None:
        if key in self._keys:
            return
        if len(self._items) >= self._items_max:
            logger.warning("the outbox is full; its oldest entry is lost: %s", self._items[0])
        items = [*self._items, {"to": to, "body": body}][-self._items_max :]
        seq = self._next_seq + (to == EVENTS)
        self._save(items, seq, [*self._keys, key][-KEYS_KEPT_MAX:])

    def _save(
        self, items: list[dict[str, Any]], seq: int | None = None, keys: list[str] | None = None
    ) -> None:
        seq, keys = seq or self._next_seq, self._keys if keys is None else keys
        self._record.save({"next_seq": seq, "items": items, "keys": keys})
        self._items, self._next_seq, self._keys = items, seq, keys
