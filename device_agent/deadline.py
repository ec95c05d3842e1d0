"""A deadline over what is waited for: a server's answer, an engine's run."""

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
