"""Where a device is right now, as conditions ask for it.

The server is told, so that a device that cannot begin keeps no place; the device looks again
before each download. What it cannot tell is not so.
"""

import logging
import subprocess
from collections.abc import Collection
from datetime import datetime, timedelta
from subprocess import PIPE, SubprocessError
from typing import Any

from device_agent.config import Config

logger = logging.getLogger(__name__)

NETWORKS = ("metered", "slow", "fast")  # of two, the dearer
PROBE_S_MAX, PROBE_BYTES_MAX = 10, 1000


def probe(config: Config) -> list[str]:
    """Return the words that are so now; without a probe, the network that it was set up with."""
    if not config.probe:
        return [config.attributes.get("network", "")]
    try:
        done = subprocess.run(config.probe, stdout=PIPE, timeout=PROBE_S_MAX, check=True)
    except (SubprocessError, OSError) as error:
        logger.warning("the probe failed: %s", error)
        return []
    return done.stdout[:PROBE_BYTES_MAX].decode("ascii", "replace").split()


def told(here: Collection[str], now: datetime) -> dict[str, Any]:
    """Return what the server is told, by this device's own clock and zone."""
    offset = now.astimezone().utcoffset() or timedelta()
    network = next((word for word in NETWORKS if word in here), "")
    is_so = {word: word in here for word in ("idle", "charging")}
    return {"utc_offset_s": int(offset.total_seconds()), "network": network, **is_so}
