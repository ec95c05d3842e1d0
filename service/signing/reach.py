"""How many devices a release has reached, and whether it may reach one more now.

Counted in the publisher's own record, by release and not by rollout: whoever writes the database
makes as many rollouts as he likes. A device counts once for a release, and goes back freely along
a signed edge to where this publisher took it from.
"""

import math
from collections.abc import Iterator
from dataclasses import dataclass, field
from datetime import UTC, datetime
from functools import cached_property

from service.core.rollout_limits import BP, RolloutLimits
from service.db.rollout_tables import Rollout
from service.engine.approvals import is_approved, plan_of
from service.signing.keys import Blocked, Trouble
from service.signing.record import Record
from trust.approval import plan_digest
from trust.roles import DIRECTOR, Family, Release

Steps = list[tuple[float, int]]  # devices at most, and seconds from the first of them to the next


@dataclass
class Counts:
    """The numbers of a record, and those that a round will add to them."""

    record: Record
    new: dict[str, int] = field(default_factory=dict)

    def __getitem__(self, name: str) -> int:
        return max(self.new.get(name, 0), self.record.highest(name))


@dataclass(frozen=True)
class Reach:
    """One release on its way by one rollout.

    Attributes:
        release, family: as they are signed.
        limits: of the publisher; None: it is only counted.
        fleet: how many devices there are.
        rollout: the row, which may say anything.
    """

    release: Release
    family: Family
    limits: RolloutLimits | None
    fleet: int
    rollout: Rollout

    def admit(self, counts: Counts, device: str, now: datetime) -> None:
        """Count a device that is to get an order for this release.

        Raises:
            Blocked: UNAPPROVED or TOO_FAST; nothing was counted.
        """
        reached = f"reached {self.release.sha256} {device}"
        if counts[reached] or self._comes_back(counts, device):
            return
        new = {reached: 1}
        for name, steps in self._ladders(counts):
            new |= self._climb(counts, name, steps, now)
        counts.new |= new

    def _comes_back(self, counts: Counts, device: str) -> bool:
        """Whether this publisher sent the device where it may come back from."""
        releases = self.family.releases
        left = [releases[name].sha256 for name in self.release.rollback_from if name in releases]
        return any(counts[f"reached {sha256} {device}"] for sha256 in left)

    def _ladders(self, counts: Counts) -> Iterator[tuple[str, Steps]]:
        """Give the steps that the limits allow, and those that were approved."""
        name, limits = self.release.sha256, self.limits
        if limits is None:
            yield name, [(math.inf, 0)]
            return
        fleet = limits.fleet(self.fleet)
        *shares_bp, _everyone = limits.shares_bp()
        yield name, [(_most(bp, fleet), limits.soak_s) for bp in shares_bp] + [(math.inf, 0)]
        if self._approved is not None:
            yield self._approved
        elif limits.takes_approval(counts[f"given {name}"] + 1, fleet):
            most = f"without, {limits.approval_above_bp / 100:g} % of the devices is the most"
            raise self._blocked(Trouble.UNAPPROVED, f"nobody approved what it is now; {most}")

    @cached_property
    def _approved(self) -> tuple[str, Steps] | None:
        plan = plan_of(self.rollout)
        ours = {"model": self.family.model, "release": self.release.name}
        if self.limits is None or plan | ours | {"sha256": self.release.sha256} != plan:
            return None
        if not is_approved(self.limits, self.rollout, self.rollout.approvals or []):
            return None
        devices = plan["devices"] or 0
        stages: Steps = [
            (_most(stage["share_bp"], devices), stage["soak_s"]) for stage in plan["stages"]
        ]
        return plan_digest(plan), stages

    def _climb(self, counts: Counts, name: str, steps: Steps, now: datetime) -> dict[str, int]:
        """Return what to note of one more device on a ladder, one step up if it is time."""
        given, at, now_s = counts[f"given {name}"] + 1, counts[f"step {name}"], int(now.timestamp())
        at = min(at, len(steps) - 1)  # somebody may have changed the limits since
        began_s = opens_s = counts[f"step {name} {at}"] or now_s
        while given > steps[at][0]:
            opens_s += steps[at][1]
            if at + 1 == len(steps):
                raise self._blocked(Trouble.TOO_FAST, f"it has all {given - 1} that it may have")
            if now_s < opens_s:
                when = f"{datetime.fromtimestamp(opens_s, UTC):%F %R} UTC"
                raise self._blocked(Trouble.TOO_FAST, f"its next step opens at {when}")
            at, began_s = at + 1, now_s
        return {f"given {name}": given, f"step {name}": at, f"step {name} {at}": began_s}

    def _blocked(self, trouble: Trouble, why: str) -> Blocked:
        what = f"{self.release.name} of {self.family.model} by rollout {self.rollout.id}"
        return Blocked(trouble, DIRECTOR, f"{what}: {why}")


def _most(share_bp: int, devices: int) -> int:
    """Return how many devices a share may turn out to be, for it is drawn: three deviations."""
    mean = devices * share_bp / BP
    return max(1, math.ceil(mean + 3 * math.sqrt(mean)))
