"""An HTTP answer whose head came whole.

The standard library takes a connection that ends in the middle of a head for the end of the head:
the answer would be one with fewer headers, without a body, or with half of a credential.
"""

from http.client import HTTPResponse, IncompleteRead
from io import BufferedReader
from typing import Any


class _Lines(BufferedReader):
    def readline(self, size: int | None = -1) -> bytes:
        line = super().readline(size)
        if not line.endswith(b"\n"):
            raise IncompleteRead(line)
        return line


class WholeResponse(HTTPResponse):
    """Raises IncompleteRead where a line of the head, or of a chunk, does not end."""

    def __init__(self, *given: Any, **named: Any) -> None:
        super().__init__(*given, **named)
        self.fp = _Lines(self.fp.detach())
