"""What a device has seen, and will never go back behind."""

from dataclasses import dataclass, field
from datetime import UTC, datetime


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

    versions: dict[str, tuple[str, int]] = field(default_factory=dict)
    order_seq: int = 0
    order_sha256: str = ""
    time: datetime = datetime(2026, 1, 1, tzinfo=UTC)  # when this code was young

    def now(self, clock: datetime) -> datetime:
        """Return the time to judge expiry by: the clock's, unless it ran backwards."""
        return max(clock, self.time)
