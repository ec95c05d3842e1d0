"""Cohorts: sets of devices of one model, listed by hand or by what they are."""

from collections.abc import Sequence
from datetime import datetime
from typing import Any

from sqlalchemy.orm import Session

from service.core import audit
from service.core.errors import AlreadyExists, InvalidRequest, NotFound
from service.db import queries
from service.db.rollout_tables import Cohort, CohortMember
from service.db.tables import DeviceModel
from service.publishing.catalog import model_named


def create_cohort(
    session: Session,
    name: str,
    model: str,
    devices: Sequence[str] | None,
    chosen: dict[str, Any] | None,
    now: datetime,
) -> Cohort:
    """Add a cohort: static if devices are listed, else all devices that match the filter."""
    model_named(session, model)
    if queries.first(session, Cohort, name=name) is not None:
        raise AlreadyExists(f"there is a cohort {name} already", cohort=name)
    if (devices is None) == (chosen is None):
        raise InvalidRequest("name either devices or a filter")
    cohort = Cohort(name=name, model=model, filter=chosen, created_at=now)
    session.add(cohort)
    session.flush()
    audit.record(session, "cohort.create", name, now, model=model)
    for device_id in devices or ():
        add_member(session, cohort, device_id, now)
    return cohort


def add_member(session: Session, cohort: Cohort, device_id: str, now: datetime) -> None:
    """Add a device to a static cohort; adding it again changes nothing."""
    if cohort.filter is not None:
        raise InvalidRequest(f"cohort {cohort.name} is a filter; tag the device instead")
    row = session.get(DeviceModel, device_id)
    if row is None or row.model != cohort.model:
        raise NotFound(f"there is no device {device_id} of {cohort.model}")
    if session.get(CohortMember, (cohort.id, device_id)) is None:
        session.add(CohortMember(cohort_id=cohort.id, device_id=device_id))
        audit.record(session, "cohort.add", cohort.name, now, device=device_id)
