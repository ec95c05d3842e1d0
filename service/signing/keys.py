"""What a publisher holds, and what can keep it from signing."""

from collections.abc import Sequence
from dataclasses import dataclass, field
from enum import StrEnum
from pathlib import Path

from securesystemslib.signer import Signer

from service.core.rollout_limits import RolloutLimits, read_limits
from service.settings import ORDERS_PER_HOUR_MAX, PublisherSettings
from service.signing.record import Record
from trust.roles import ONLINE_ROLES
from trust.sign import load_signer


@dataclass(frozen=True)
class OnlineKeys:
    """The publisher's three keys; their `repr` shows none of them."""

    snapshot: Signer
    timestamp: Signer
    director: Signer

    def __repr__(self) -> str:
        return "OnlineKeys(***)"

    @staticmethod
    def load(folder: Path) -> "OnlineKeys":
        """Return the keys of a folder: snapshot.pem, timestamp.pem, director.pem.

        Raises:
            OSError, ValueError: naming the file that is missing or not a key.
        """
        return OnlineKeys(*(load_signer(folder / f"{role}.pem") for role in ONLINE_ROLES))


@dataclass(frozen=True)
class Publisher:
    """What a publisher needs besides the database.

    Attributes:
        keys: its keys.
        root: the pinned root; None: the first one that the database holds.
        record: its memory of the numbers that it gave away.
        limits: how far and how fast a release may go; None: as the database says.
        orders_max: orders that it gives in one hour; what an attacker in the server can move.
    """

    keys: OnlineKeys
    root: bytes | None = None
    record: Record = field(default_factory=Record)
    orders_max: int = ORDERS_PER_HOUR_MAX
    limits: RolloutLimits | None = None

    @staticmethod
    def open(settings: PublisherSettings) -> "Publisher":
        """Return the publisher that has a process of its own.

        Raises:
            OSError, ValueError: naming the file that cannot be used.
        """
        keys, root = OnlineKeys.load(settings.online_keys), settings.root.read_bytes()
        limits = read_limits(settings.rollout_limits) if settings.rollout_limits else None
        record = Record(settings.record)
        return Publisher(keys, root, record, settings.orders_per_hour_max, limits)


class Trouble(StrEnum):
    """What keeps a publisher from signing; a state of health, which people must end."""

    REFUSED = "refused"  # a stored document is not what was signed, or older than what was
    WRONG_KEY = "wrong_key"  # root or targets name another key than the one it holds
    LIMIT = "limit"  # more orders are wished for than may be given in an hour
    UNAPPROVED = "unapproved"  # a release shall go further than anybody approved
    TOO_FAST = "too_fast"  # a release shall reach more devices, or reach them sooner, than it may
    VERSION_TAKEN = "version_taken"  # somebody else wrote the version it was about to write


class Blocked(Exception):
    """Something cannot be signed now.

    Attributes:
        problem: what it is, as the health of the service shows it.
    """

    def __init__(self, trouble: Trouble, role: str, detail: str) -> None:
        super().__init__(f"{role}: {detail}")
        self.problem = {"trouble": trouble.value, "role": role, "detail": detail}


def check_key(role: str, signer: Signer, named: Sequence[str]) -> None:
    """Raise WRONG_KEY unless a signer's key is one that is named for a role."""
    held = signer.public_key.keyid
    if held not in named:
        detail = f"the key {held} is not the one that is named for it; restart with the new key"
        raise Blocked(Trouble.WRONG_KEY, role, detail)
