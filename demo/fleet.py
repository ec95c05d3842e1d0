"""Many agents in one process, a thread each: `python -m demo.fleet CONFIG...`

Each is the real agent with its own folder, credential and journal; only the process is shared,
because a demo has two cores. A device that is not enrolled enrolls first, with the token in
FLEETDIFF_ENROLLMENT_TOKEN and the model file in FLEETDIFF_FACTORY_MODEL.
"""

import logging
import os
import signal
import sys
import threading
from pathlib import Path

from device_agent import agent
from device_agent.config import Config, load_config
from device_agent.errors import Busy

logger = logging.getLogger(__name__)


def main(paths: list[str]) -> int:
    """Run the agents of these configuration files until SIGTERM."""
    logging.basicConfig(level=logging.WARNING, stream=sys.stderr)
    # What a device cannot reach is its daily bread; the demo shows outcomes, not retries.
    stop = threading.Event()
    signal.signal(signal.SIGTERM, lambda *_: stop.set())
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # Ctrl-C is for the story
    threads = [
        threading.Thread(target=_live, args=(load_config(Path(path)), stop), name=path)
        for path in paths
    ]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    return 0


def _live(config: Config, stop: threading.Event) -> None:
    while not stop.is_set():
        try:
            if not (config.state_dir / agent.CREDENTIAL).exists():
                factory = Path(os.environ["FLEETDIFF_FACTORY_MODEL"])
                agent.enroll(config, os.environ["FLEETDIFF_ENROLLMENT_TOKEN"], factory)
            with agent.open_device(config) as device:
                agent.run(device, stop)
        except (Busy, OSError) as error:
            logger.warning("%s: %s", config.serial, error)
            stop.wait(1)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
