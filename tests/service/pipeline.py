"""A pipeline for tests: a real HTTP server that is told of events and checks their signatures."""

import json
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from typing import Any


class Pipeline(ThreadingHTTPServer):
    """Keeps what it was told; `answers` are given before the usual 204."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), _Hook)
        self.answers: list[tuple[int, dict[str, str]]] = []
        self.told: list[tuple[dict[str, str], bytes]] = []
        self.drips = False
        self.arrived = threading.Event()
        threading.Thread(target=self.serve_forever, kwargs={"poll_interval": 0.01}).start()

    @property
    def address(self) -> str:
        return f"http://127.0.0.1:{self.server_address[1]}/"

    @property
    def types(self) -> list[str]:
        return [json.loads(body)["type"] for _, body in self.told]

    def stop(self) -> None:
        self.drips = False
        self.shutdown()
        self.server_close()


class _Hook(BaseHTTPRequestHandler):
    server: Pipeline

    def do_POST(self) -> None:
        body = self.rfile.read(int(self.headers["Content-Length"]))
        self.server.told.append((dict(self.headers), body))
        while self.server.drips:
            self.wfile.write(b"H")
            time.sleep(0.01)
        status, headers = self.server.answers.pop(0) if self.server.answers else (204, {})
        self.send_response(status)
        for name, value in headers.items():
            self.send_header(name, value)
        self.end_headers()
        self.server.arrived.set()

    def log_message(self, format: str, *args: Any) -> None:
        return
