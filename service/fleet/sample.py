"""Part of a cohort looked at for the whole, so that no question costs more in a larger fleet.

Ids of devices are drawn at random, so neighbours by id have nothing else in common: a run of them
is a fair sample, and how dense they lie says how many there are. Where the run begins is drawn
with the rollout, or follows from the cohort's name: whoever asks again sees the same devices.
"""

import hashlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from sqlalchemy import Select, func, or_, select
from sqlalchemy.orm import Session

from service.db import queries
from service.db.rollout_tables import Cohort, CohortMember, Rollout
from service.db.tables import Device, DeviceModel, Release

EXAMINED_MAX = (2_000, 20_000)  # the second where a filter chose fewer than `CHOSEN_MIN`
CHOSEN_MIN = 100
ID_DIGITS = 16  # hexadecimal, of a device's id


@dataclass(frozen=True)
class Sample:
    """Some devices of a cohort, or all of them.

    Attributes:
        members: the query for their ids.
        by_release: release id (None: unknown bytes) -> how many of them run it.
        examined: how many devices were looked at to find them.
        times: as many times as many are in the cohort, about; 1: these are all.
    """

    members: Select[str]
    by_release: dict[int | None, int]
    examined: int
    times: float

    @property
    def devices(self) -> int:
        """How many devices it holds."""
        return sum(self.by_release.values())

    def about(self, devices: int) -> int:
        """Return as how many of the cohort so many of the sample count; two digits are known."""
        return devices if self.times == 1 else int(float(f"{devices * self.times:.2g}"))


def of_cohort(session: Session, rollout: Rollout) -> Sample:
    """Return a rollout's sample of its cohort: everyone, if those are fewer than it looks at."""
    members = partial(queries.rollout_devices, rollout)
    return _from(session, rollout.cohort, rollout.salt[:ID_DIGITS], members)


def of_members(session: Session, cohort: Cohort) -> Sample:
    """Return a cohort's own sample, the same one each time; everyone, if those are few."""
    begins = hashlib.sha256(cohort.name.encode()).hexdigest()[:ID_DIGITS]
    return _from(session, cohort, begins, partial(queries.cohort_devices, cohort))


def _from(
    session: Session, cohort: Cohort, begins: str, members_in: Callable[..., Select[str]]
) -> Sample:
    """Return the sample of a cohort's devices that begins at an id; `members_in` takes its ends."""
    listed, ids = CohortMember.device_id, select(CohortMember.device_id)
    ids = ids.where(CohortMember.cohort_id == cohort.id)
    if cohort.filter is not None:
        listed = DeviceModel.device_id
        ids = select(listed).where(DeviceModel.model == cohort.model)
    for most in EXAMINED_MAX:
        after = ids.where(listed >= begins).order_by(listed)
        for some in (after, ids.order_by(listed.desc())):
            run = some.limit(most).subquery()
            ends = select(func.min(run.c.device_id), func.max(run.c.device_id), func.count())
            low, high, examined = session.execute(ends.select_from(run)).one()
            if examined == most:
                break
        everyone = examined < most
        members = members_in(None if everyone else (low, high))
        by_release = members_by_release(session, members)
        if everyone or sum(by_release.values()) >= CHOSEN_MIN:
            break
    times = 1 if everyone else 16**ID_DIGITS / (int(high, 16) - int(low, 16))
    return Sample(members, by_release, examined, times)


def without_outcome(
    session: Session, rollout: Rollout, seen: Sample, most: int
) -> tuple[int, Sequence[str]]:
    """Return about how many of a rollout's devices neither run its release nor failed, and some.

    Where the sample has too few of them to show, they are looked for by what they run.
    """
    others = select(Release.id).where(
        Release.model == rollout.model, Release.id != rollout.release_id
    )
    running, going = DeviceModel.running_release, queries.not_out(rollout)
    rest = seen.members.where(or_(running.is_(None), running.in_(others)), going)
    count = session.scalar(select(func.count()).select_from(rest.subquery())) or 0
    ids = session.scalars(rest.order_by(Device.id).limit(most)).all()
    if len(ids) == most or seen.times == 1:
        return seen.about(count), ids
    everywhere = queries.rollout_devices(rollout).where(going)
    ids = session.scalars(queries.running_one_of(everywhere, others, most)).all()
    return max(seen.about(count), most) if len(ids) == most else len(ids), ids


def members_by_release(session: Session, members: Select[str]) -> dict[int | None, int]:
    """Return release id (None: unknown bytes) -> number of devices, of a cohort or a part of it."""
    release = DeviceModel.running_release
    rows = members.with_only_columns(release, func.count()).group_by(release)
    return {key: value for key, value in session.execute(rows)}


def by_hardware(session: Session, sample: Sample) -> dict[str, int]:
    """Return hardware -> how many devices of a sample have it."""
    counted = sample.members.with_only_columns(Device.hardware, func.count())
    return {name: number for name, number in session.execute(counted.group_by(Device.hardware))}
