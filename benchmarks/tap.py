"""A tap on the wire: forwards connections to a server and counts what passes, by request.

Agents open a connection for each request, so a connection is counted under its first line.
"""

import socket
import threading
from collections import Counter

CHUNK_BYTES = 1 << 16


class Tap:
    """Listens on a port of its own; `passed` is request line -> bytes, both ways, headers too."""

    def __init__(self, port: int) -> None:
        """Start forwarding to 127.0.0.1:port."""
        self._target = port
        self._lock = threading.Lock()
        self.passed: Counter[str] = Counter()
        self.connections = self._opened = 0
        self._listener = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._listener.getsockname()[1]
        threading.Thread(target=self._accept, daemon=True).start()

    def take(self) -> Counter[str]:
        """Return what passed since the last call, and forget it; sets `connections` likewise."""
        with self._lock:
            passed, self.passed = self.passed, Counter()
            self.connections, self._opened = self._opened, 0
        return passed

    def _accept(self) -> None:
        while True:
            client, _ = self._listener.accept()
            threading.Thread(target=self._forward, args=(client,), daemon=True).start()

    def _forward(self, client: socket.socket) -> None:
        try:
            with client, socket.create_connection(("127.0.0.1", self._target)) as server:
                first = client.recv(CHUNK_BYTES)
                server.sendall(first)
                name = first.split(b"\r\n", 1)[0].decode(errors="replace")
                up = threading.Thread(target=self._copy, args=(client, server, name), daemon=True)
                up.start()
                with self._lock:
                    self._opened += 1
                self._count(name, len(first))
                self._copy(server, client, name)
        except OSError:  # either side hung up: so does the other
            return

    def _copy(self, source: socket.socket, target: socket.socket, name: str) -> None:
        try:
            while chunk := source.recv(CHUNK_BYTES):
                target.sendall(chunk)
                self._count(name, len(chunk))
            target.shutdown(socket.SHUT_WR)
        except OSError:  # closed from the other side
            return

    def _count(self, name: str, count: int) -> None:
        with self._lock:
            self.passed[name] += count
