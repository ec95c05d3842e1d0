"""How long is waited: for a server's answer, for an engine's run, and after a failure."""

import threading
from collections.abc import Callable
from typing import Self


class Deadline(threading.Timer):
    """Ends what takes too long, however busy it looks; `passed` says that it did.

    Args:
        seconds: how long the block may take.
        cut: called if it takes longer; must make it return.
    """

    def __init__(self, seconds: float, cut: Callable[[], None]) -> None:
        super().__init__(seconds, self._pass, [cut])
        self.daemon = True
        self.passed = False

    def __enter__(self) -> Self:
        self.start()
        return self

    def __exit__(self, *error: object) -> None:
        self.cancel()

    @property
    def code(self) -> str:
        """What to call an answer that never came: too slow, if it did come but took too long."""
        return "E_SLOW" if self.passed else ""

    def _pass(self, cut: Callable[[], None]) -> None:
        self.passed = True
        cut()


def backoff_s(failures: int, period_s: float, most_s: float, random: Callable[[], float]) -> float:
    """Return how long to wait after that many failures in a row: full jitter.

    A number drawn evenly from nought to a limit that doubles with every failure (Brooker 2015,
    "Exponential backoff and jitter"). With the poll period as `period_s`, a fleet that met one
    503 comes back spread over a whole period.
    """
    doubled: float = period_s * 2 ** min(max(failures - 1, 0), 60)
    return random() * min(most_s, doubled)
