"""Under which conditions a device may begin an update; pure.

The server holds back whoever says that they are not met, so that nobody keeps a place while it
waits; the device, which alone knows how it is right now, looks again before it downloads.
"""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from service.core.errors import InvalidRequest

DAY_MIN = 24 * 60


def kept(asked: dict[str, Any]) -> dict[str, Any]:
    """Return the conditions of a rollout, if they make sense."""
    window = asked.get("window")
    if window and window["start_min"] == window["end_min"]:
        raise InvalidRequest("the window ends as it begins; leave it away for the whole day")
    return asked


def unmet(asked: Mapping[str, Any], here: Mapping[str, Any]) -> str:
    """Return which condition a device does not meet, by what it says of itself; or nothing."""
    networks = asked.get("networks", [])
    if networks and here["network"] not in networks:
        return f"the network is {here['network'] or 'unknown'}; it takes {' or '.join(networks)}"
    missing = [word for word in ("idle", "charging") if asked.get(word) and not here[word]]
    return f"the device is not {' and not '.join(missing)}" if missing else ""


def opens_at(window: Mapping[str, int], utc_offset_s: int, now: datetime) -> datetime:
    """Return when a window in device-local time opens next; `now` if it is open."""
    local = now + timedelta(seconds=utc_offset_s)
    since = (local.hour * 60 + local.minute - window["start_min"]) % DAY_MIN
    if since < (window["end_min"] - window["start_min"]) % DAY_MIN:
        return now
    minute = now - timedelta(seconds=local.second, microseconds=local.microsecond)
    return minute + timedelta(minutes=DAY_MIN - since)


def clock_time(minutes: int) -> str:
    """Return minutes after midnight as people write them."""
    return f"{minutes // 60:02}:{minutes % 60:02}"
