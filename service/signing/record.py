"""What the publisher remembers by itself, out of reach of whoever can write to the database.

For each thing that it numbers or vouches for (a role of the metadata, the orders of a device) the
highest number so far. A number is taken here before it is used there, and never goes back: after
a power cut between the two it is left out, which is harmless.
"""

import sqlite3
from collections.abc import Mapping
from pathlib import Path

BUSY_TIMEOUT_S = 20


class Record:
    """The record in a file of the publisher's own; without a file it lasts as long as the process.

    Raises:
        OSError: the file cannot be opened or made.
    """

    def __init__(self, path: Path | None = None) -> None:
        try:
            self._file = sqlite3.connect(
                path or ":memory:", timeout=BUSY_TIMEOUT_S, check_same_thread=False
            )
            with self._file:
                self._file.execute(
                    "CREATE TABLE IF NOT EXISTS highest (name TEXT PRIMARY KEY, number INTEGER)"
                    " WITHOUT ROWID"
                )
        except sqlite3.Error as error:
            raise OSError(f"the publisher's record {path}: {error}") from error

    def highest(self, name: str) -> int:
        """Return the highest number that was taken, 0 if none was."""
        rows = self._file.execute("SELECT number FROM highest WHERE name = ?", (name,))
        return int((rows.fetchone() or [0])[0])

    def take(self, numbers: Mapping[str, int]) -> None:
        """Raise the highest numbers, all at once; one that is higher already stays."""
        with self._file:
            self._file.executemany(
                "INSERT INTO highest VALUES (?, ?) ON CONFLICT (name)"
                " DO UPDATE SET number = max(number, excluded.number)",
                list(numbers.items()),
            )

    def close(self) -> None:
        """Close the file."""
        self._file.close()
