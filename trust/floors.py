"""What a device has seen, and will never go back behind."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Any

from trust.order import read_time, write_time


@dataclass(frozen=True)
class Floors:
    """What a device has seen and will never go back behind; persisted, unlike the cache.

    Attributes:
        versions: role -> [fingerprint of its key set, version]. Keyed by key set, so that
            rotating a key recovers from a version that was pushed far ahead. Of the director
            it is the ids of the keys that there were at the last order.
        order_seq: the highest order accepted, since the director last lost a key.
        order_sha256: digest of that order's payload: one number, one content.
        time: the latest moment that is known to have passed.
    """

    versions: Mapping[str, tuple[str, int]] = field(default_factory=dict)
    order_seq: int = 0
    order_sha256: str = ""
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)  # when this code was young

    def to_json(self) -> dict[str, Any]:
        """Return the floors as plain JSON values."""
        versions = {role: list(floor) for role, floor in self.versions.items()}
        return vars(self) | {"versions": versions, "time": write_time(self.time)}

    @staticmethod
    def from_json(document: Mapping[str, Any]) -> "Floors":
        """Return the floors that `to_json` wrote."""
        return Floors(
            versions={r: (str(k), int(v)) for r, (k, v) in document["versions"].items()},
            order_seq=int(document["order_seq"]),
            order_sha256=str(document["order_sha256"]),
            time=read_time(document["time"]),
        )

    def now(self, clock: datetime) -> datetime:
        """Return the time to judge expiry by: the clock's, unless it ran backwards."""
        return max(clock, self.time)
