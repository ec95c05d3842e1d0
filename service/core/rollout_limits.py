"""How far and how fast a release may go: from a file, which no row of the database changes.

The server refuses by it early and in words; the publisher, which reads the file for itself, gives
no order beyond it, whatever the server or its database says.
"""

import tomllib
from collections.abc import Iterator
from pathlib import Path
from typing import Annotated

from pydantic import BaseModel, ConfigDict, Field
from securesystemslib.signer import Key

from trust.errors import Untrusted
from trust.keys import check_key, read_key

BP = 10_000
Share = Annotated[int, Field(strict=True, ge=1, le=BP)]
Number = Annotated[int, Field(strict=True, ge=1)]


class RolloutLimits(BaseModel):
    """The limits of one release of a model, counted in devices of the model's fleet.

    Attributes:
        first_share_bp: it may reach so much of the fleet at first.
        step_share_bp: and so much more with each step after that.
        soak_s: seconds between two steps.
        approval_above_bp: what reaches more of the fleet takes approvals; 0: anything, 10000:
            nothing.
        approvals: how many people must approve.
        fleet_devices_max: as no more devices the fleet counts, however many are in the database.
        approvers: their public keys; without any, the server's word stands for an approval.
    """

    model_config = ConfigDict(frozen=True, extra="forbid", arbitrary_types_allowed=True)

    first_share_bp: Share
    step_share_bp: Share
    soak_s: Annotated[int, Field(strict=True, ge=0, le=30 * 86400)]
    approval_above_bp: Annotated[int, Field(strict=True, ge=0, le=BP)]
    approvals: Annotated[int, Field(strict=True, ge=1, le=10)] = 1
    fleet_devices_max: Number | None = None
    approvers: tuple[Key, ...] = ()

    def fleet(self, devices: int) -> int:
        """Return as how many devices a fleet counts."""
        return min(devices, self.fleet_devices_max or devices)

    def takes_approval(self, reached: int, fleet: int) -> bool:
        """Whether a release that reaches so many devices needs approvals."""
        return self.approval_above_bp < BP and reached * BP > self.approval_above_bp * fleet

    def shares_bp(self) -> Iterator[int]:
        """Give the shares of the fleet that a release may reach, one step after the other."""
        yield from range(self.first_share_bp, BP, self.step_share_bp)
        yield BP


def read_limits(path: Path) -> RolloutLimits:
    """Return the limits of a TOML file; `approvers` are files of public keys beside it.

    Raises:
        OSError: a file cannot be read.
        ValueError: naming the file and what is wrong in it.
    """
    try:
        document = tomllib.loads(path.read_text())
        keys = [read_key(path.parent / name) for name in document.pop("approvers", ())]
        for key in keys:
            check_key(key)
        limits = RolloutLimits(approvers=tuple(keys), **document)
        differ = len({key.keyval["public"] for key in keys})
        if keys and not limits.approvals <= differ == len(keys):
            raise ValueError(f"{limits.approvals} of {differ} different keys cannot approve")
    except (ValueError, TypeError, Untrusted) as error:
        raise ValueError(f"{path}: {error}") from error
    return limits
