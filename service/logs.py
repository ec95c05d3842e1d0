"""One JSON line an event, on stderr; the standard library's logging, nothing more."""

import json
import logging
import sys
from datetime import UTC, datetime

_STANDARD = frozenset(vars(logging.makeLogRecord({}))) | {"message", "asctime", "taskName"}


class JsonLines(logging.Formatter):
    """Formats a record, and what was passed as `extra`, as one line of JSON."""

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as one JSON line."""
        line: dict[str, object] = {
            "at": datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds"),
            "level": record.levelname.lower(),
            "room": record.name,
            "event": record.getMessage(),
        }
        line.update({k: v for k, v in vars(record).items() if k not in _STANDARD})
        if record.exc_info:
            line["error"] = self.formatException(record.exc_info)
        return json.dumps(line, default=str)


def configure(level: str = "INFO") -> None:
    """Send every logger of this process to stderr as JSON lines."""
    handler = logging.StreamHandler(sys.stderr)
    handler.setFormatter(JsonLines())
    logging.basicConfig(level=level, handlers=[handler], force=True)
    # Requests are counted, not logged: 42 microseconds a line, and paths may hold device ids.
    logging.getLogger("uvicorn.access").disabled = True
    # It notes every signature that a threshold does not need, in every round of the publisher.
    logging.getLogger("tuf").setLevel(logging.WARNING)
