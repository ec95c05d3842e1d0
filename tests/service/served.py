"""The real app behind a real socket, for what speaks HTTP by itself."""

import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager

import uvicorn
from fastapi import FastAPI

STARTED_S_MAX = 20


@contextmanager
def served(app: FastAPI, **options: object) -> Iterator[str]:
    """Yield the address of an app whose lifespan somebody else takes care of."""
    chosen = {"port": 0, "log_config": None, "lifespan": "off", "proxy_headers": False} | options
    server = uvicorn.Server(uvicorn.Config(app, **chosen))  # type: ignore[arg-type]
    thread = threading.Thread(target=server.run)
    thread.start()
    deadline = time.monotonic() + STARTED_S_MAX
    while not server.started:
        assert thread.is_alive() and time.monotonic() < deadline, "uvicorn did not start"
        time.sleep(0.01)
    port = server.servers[0].sockets[0].getsockname()[1]
    try:
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join()
