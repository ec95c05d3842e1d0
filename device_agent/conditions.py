"""Under which conditions a device may begin a download; pure."""

from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated

DAY_MIN = 24 * 60


@dataclass(frozen=True)
class Window:
    """Minutes after midnight by this device's own clock; it may last over midnight."""

    start_min: Annotated[int, DAY_MIN - 1]
    end_min: Annotated[int, DAY_MIN - 1]


@dataclass(frozen=True)
class Conditions:
    """Under which a download may begin."""

    networks: tuple[str, ...] = ()
    idle: bool = False
    charging: bool = False
    window: Window | None = None

    def unmet(self, here: Collection[str], now: datetime) -> str:
        """Return what is not so right now, or nothing; `here` are the words that are."""
        if self.networks and not set(self.networks) & set(here):
            return f"the network is not {' or '.join(self.networks)}"
        for word in ("idle", "charging"):
            if getattr(self, word) and word not in here:
                return f"the device is not {word}"
        local = now.astimezone()
        window, minute = self.window, local.hour * 60 + local.minute
        if window and (minute - window.start_min) % DAY_MIN >= (
            (window.end_min - window.start_min) % DAY_MIN
        ):
            return f"{local:%H:%M} is outside of the window"
        return ""
