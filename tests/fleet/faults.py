"""What goes wrong in a simulated fleet, and how chance is drawn from a seed."""

import random
import secrets
from base64 import urlsafe_b64encode
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from unittest import mock


@dataclass(frozen=True)
class Faults:
    """What goes wrong, as chances.

    Attributes:
        cut: the power fails before one thing that should have lasted: a write, a switch, an answer.
        lost: a request does not arrive, or else its answer does not.
        missing: an artifact is answered with 404.
        kills: the publisher dies in the middle of a round.
        slow: share of devices whose link brings `slow_bytes_s`.
        skewed: share of devices whose clock is wrong, by up to `skew` either way.
        outages: (from, to) in seconds in which the server cannot be reached.
    """

    cut: float = 0.0
    lost: float = 0.0
    missing: float = 0.0
    kills: float = 0.0
    slow: float = 0.0
    slow_bytes_s: float = 100.0
    skewed: float = 0.0
    skew: timedelta = timedelta(days=2)
    outages: tuple[tuple[float, float], ...] = ()


CALM = Faults()


class Killed(BaseException):
    """The publisher ends here."""


@contextmanager
def drawn(seed: int) -> Iterator[None]:
    """Draw ids and secrets from a seed: who is in which stage depends on them."""
    rng = random.Random(seed)

    def urlsafe(size: int) -> str:
        return urlsafe_b64encode(rng.randbytes(size)).decode().rstrip("=")

    hexed = mock.patch.object(secrets, "token_hex", lambda size: rng.randbytes(size).hex())
    with hexed, mock.patch.object(secrets, "token_urlsafe", urlsafe):
        yield
