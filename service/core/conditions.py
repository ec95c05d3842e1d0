"""Under which conditions a device may begin an update; pure.

The server holds back whoever says that they are not met, so that nobody keeps a place while it
waits; the device, which alone knows how it is right now, looks again before it downloads.
"""

import math
from collections.abc import Mapping, Sequence
from datetime import datetime, timedelta
from typing import Any

from service.core.errors import InvalidRequest

DAY_MIN, MINUTE_S = 24 * 60, 60


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
    if since < open_min(window):
        return now
    minute = now - timedelta(seconds=local.second, microseconds=local.microsecond)
    return minute + timedelta(minutes=DAY_MIN - since)


def open_min(window: Mapping[str, int]) -> int:
    """Return for how many minutes of a day a window is open."""
    return (window["end_min"] - window["start_min"]) % DAY_MIN


def open_minutes(window: Mapping[str, int], utc_offset_s: int) -> list[bool]:
    """Return of each minute of a day in UTC whether a window is open in a zone."""
    start = window["start_min"] - utc_offset_s // MINUTE_S
    return [(minute - start) % DAY_MIN < open_min(window) for minute in range(DAY_MIN)]


def open_after_s(day: Sequence[bool], from_s: int, open_s: float) -> int:
    """Return after how long something was open for so long, that is open in minutes of each day.

    Args:
        day: which minutes; at least one is.
        from_s: since a midnight.
        open_s: for how long it must have been open.
    """
    days, left = divmod(math.ceil(open_s), MINUTE_S * sum(day))
    if days and not left:  # it is there when the last minute ends, not when the next begins
        days, left = days - 1, MINUTE_S * sum(day)
    now_s = from_s
    while left:
        step = MINUTE_S - now_s % MINUTE_S
        if day[now_s // MINUTE_S % DAY_MIN]:
            step = min(step, left)
            left -= step
        now_s += step
    return days * DAY_MIN * MINUTE_S + now_s - from_s


def clock_time(minutes: int) -> str:
    """Return minutes after midnight as people write them."""
    return f"{minutes // 60:02}:{minutes % 60:02}"
