"""Connections that ask for nothing, or for something very slowly, do not stay.

uvicorn closes a connection that is idle after a reply. One that never asks, or drips the head of a
request byte by byte, it would keep for ever; here it has a time for that, and a size.
"""

import asyncio
from typing import Any

from uvicorn.protocols.http.httptools_impl import HttpToolsProtocol

HEAD_BYTES_MAX = 1 << 20  # more than one read, which may hold the beginning of a body too


def impatient(head_s_max: float) -> type[HttpToolsProtocol]:
    """Return uvicorn's protocol with a limit for the head of each request.

    Args:
        head_s_max: seconds from the connection, or from the reply before, to the head's end.
    """

    class Impatient(HttpToolsProtocol):
        def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
            super().connection_made(transport)
            self._expect()

        def data_received(self, data: bytes) -> None:
            self._head_bytes += len(data) if self._asking else 0
            if self._head_bytes > HEAD_BYTES_MAX:
                self.transport.abort()
            else:
                super().data_received(data)

        def on_headers_complete(self) -> None:
            self._asking = False
            self._deadline.cancel()
            super().on_headers_complete()

        def on_response_complete(self) -> None:
            super().on_response_complete()
            if self.cycle.response_complete:  # and no further one was asked for meanwhile
                self._deadline.cancel()
                self._expect()

        def connection_lost(self, exc: Exception | None) -> None:
            self._deadline.cancel()
            super().connection_lost(exc)

        def _expect(self) -> None:
            self._asking, self._head_bytes = True, 0
            self._deadline: Any = self.loop.call_later(head_s_max, self.transport.abort)

    return Impatient
