"""The registry: who may enroll, and what operators say of a device that has."""

import secrets
from datetime import datetime, timedelta

from sqlalchemy.orm import Session

from service.core import audit, errors
from service.core.credential import new_secret
from service.core.errors import InvalidRequest, WrongState
from service.db import queries
from service.db.entries import of_device
from service.db.rollout_tables import Deployment
from service.db.tables import DeviceModel, EnrollmentToken
from service.fleet import deployments
from service.publishing import catalog


def invite(
    session: Session, model: str, uses: int, lifetime: timedelta, cohort: str | None, now: datetime
) -> tuple[EnrollmentToken, str]:
    """Make a token with which `uses` devices may enroll, into a static cohort if one is named."""
    catalog.model_named(session, model)
    chosen = catalog.cohort_named(session, cohort) if cohort is not None else None
    if chosen is not None and (chosen.filter is not None or chosen.model != model):
        raise InvalidRequest(f"cohort {cohort} is not a static cohort of {model}")
    row_id, digest, token = new_secret("fe")
    row = EnrollmentToken(
        id=row_id,
        secret_sha256=digest,
        model=model,
        cohort_id=chosen.id if chosen else None,
        uses_left=uses,
        created_at=now,
        expires_at=now + lifetime,
    )
    session.add(row)
    audit.record(session, "invitation.create", row.id, now, model=model, uses=uses)
    return row, token


def device_named(session: Session, device_id: str) -> DeviceModel:
    """Return a device with what it runs, or refuse."""
    return errors.found(session.get(DeviceModel, device_id), f"device {device_id}")


def tag_device(session: Session, row: DeviceModel, tags: dict[str, str], now: datetime) -> None:
    """Give a device other tags; cohorts by filter follow at once."""
    if tags != row.device.tags:
        audit.record(session, "device.tag", row.device_id, now, before=row.device.tags, tags=tags)
        row.device.tags = tags


def retry_device(session: Session, row: DeviceModel, now: datetime) -> int:
    """Let a device try again now what failed on it; returns in how many rollouts."""
    ours = Deployment.device_id == row.device_id
    retried = deployments.retry(session, now, of_device(row.device_id), ours)
    audit.record(session, "device.retry", row.device_id, now, rollouts=retried)
    return retried


def set_device_status(session: Session, row: DeviceModel, status: str, now: datetime) -> None:
    """Quarantine, revoke or readmit a device; after a revocation its serial may enroll again."""
    device = row.device
    for each in (device, row):  # as polls lock them: none is answered by what it was, nor later
        session.refresh(each, with_for_update={"key_share": True})
    if device.status == "revoked" and status != "revoked":
        raise WrongState(f"device {device.id} is revoked; it must enroll again")
    if status == "revoked" and device.status != "revoked":
        # The serial is free again; the history stays under a name that nobody can have taken.
        device.serial = f"{device.serial} (revoked {device.id} {secrets.token_hex(8)})"
    if status != "active":
        for deployment in queries.open_deployments(session, device.id):
            deployments.finish(session, deployment, "canceled", status, now)
        row.deployment_id = None  # no order is renewed
    if status != device.status:
        audit.record(session, f"device.{status}", device.id, now, before=device.status)
    device.status = status
