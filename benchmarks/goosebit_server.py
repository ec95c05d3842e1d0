"""goosebit with a fleet of any size; runs in a virtual environment of its own (`make bench-poll`).

`python goosebit_server.py PORT FOLDER DEVICES`. Its devices are registered and idle, and there is
no rollout: the cheapest poll it knows.
"""

import asyncio
import os
import sqlite3
import sys
from pathlib import Path

BATCH = 10_000


async def _schema() -> None:
    from goosebit.db.config import TORTOISE_CONF
    from tortoise import Tortoise

    await Tortoise.init(config=TORTOISE_CONF)
    await Tortoise.generate_schemas()
    await Tortoise.close_connections()


def main() -> int:
    """Make the database if it is not there, and serve until ended."""
    port, folder, devices = int(sys.argv[1]), Path(sys.argv[2]), int(sys.argv[3])
    path = folder / "goosebit.db"
    os.chdir(folder)
    os.environ["GOOSEBIT_DB_URI"] = f"sqlite://{path}"
    os.environ["GOOSEBIT_ARTIFACTS_DIR"] = str(folder)
    asyncio.run(_schema())
    database = sqlite3.connect(path)
    with database:
        database.execute("INSERT INTO hardware (id, model, revision) VALUES (1, 'h1', '1')")
        names = "id, name, force_update, sw_version, hardware_id, feed, update_mode, last_state"
        values = "?, ?, 0, '1', 1, 'default', 3, 5"
        for first in range(0, devices, BATCH):
            numbers = range(first, min(first + BATCH, devices))
            rows = [(f"{number:016x}", f"serial-{number}") for number in numbers]
            database.executemany(f"INSERT INTO device ({names}) VALUES ({values})", rows)
    database.close()
    import uvicorn
    from goosebit import app

    print("ready", flush=True)
    uvicorn.run(app, host="127.0.0.1", port=port, log_level="warning", access_log=False)
    return 0


if __name__ == "__main__":
    sys.exit(main())
