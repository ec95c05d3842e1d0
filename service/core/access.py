"""Who is calling: API tokens with scopes, enrollment tokens, device credentials.

Secrets are 256 random bits, so a plain SHA-256 at rest is enough; they are compared in constant
time and shown exactly once. The first token is made on the server's own command line.
"""

import hashlib
import hmac
import re
import secrets
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import deployments
from service.core.errors import (
    Forbidden,
    InvalidRequest,
    NotFound,
    SerialTaken,
    Unauthorized,
    WrongState,
)
from service.db import queries, rollout_queries
from service.db.rollout_tables import Cohort, CohortMember
from service.db.tables import ApiToken, Device, DeviceModel, EnrollmentToken, Model

SCOPES = (
    "releases:read",
    "releases:write",
    "rollouts:read",
    "rollouts:write",
    "rollouts:halt",
    "devices:read",
    "devices:write",
    "enroll:write",
    "telemetry:read",
)
TOKEN_LIFETIME_MAX = timedelta(days=365)
_TOKEN = re.compile(r"(fd|fe|fc)_([0-9a-f]{8,32})_([A-Za-z0-9_-]{43})\Z")


def create_token(
    session: Session, name: str, scopes: list[str], lifetime: timedelta, now: datetime
) -> tuple[ApiToken, str]:
    """Make an API token; the secret is returned once and stored as a digest only."""
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidRequest(f"unknown scopes {unknown}; known are {', '.join(SCOPES)}")
    if not timedelta(0) < lifetime <= TOKEN_LIFETIME_MAX:
        raise InvalidRequest("a token lives between a moment and 365 days")
    row_id, token, digest = _new_secret("fd")
    row = ApiToken(
        id=row_id,
        name=name,
        secret_sha256=digest,
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=now + lifetime,
        revoked_at=None,
    )
    session.add(row)
    return row, token


def authorize(session: Session, token: str, scope: str | None, now: datetime) -> ApiToken:
    """Return the API token's row if it is valid and carries the scope.

    Raises:
        Unauthorized: unknown, wrong, expired or revoked, all alike.
        Forbidden: valid, but without the scope.
    """
    row_id, digest = _parse("fd", token)
    row = session.get(ApiToken, row_id)
    valid = row is not None and hmac.compare_digest(row.secret_sha256, digest)
    if row is None or not valid or row.revoked_at is not None or row.expires_at <= now:
        raise Unauthorized("send a valid API token as `Authorization: Bearer fd_...`")
    if scope is not None and scope not in row.scopes:
        raise Forbidden(f"this token lacks the scope {scope}", scope=scope)
    return row


def create_enrollment_token(
    session: Session, model: str, uses: int, lifetime: timedelta, cohort: str | None, now: datetime
) -> tuple[EnrollmentToken, str]:
    """Make a token with which `uses` devices may enroll, into a static cohort if one is named."""
    if session.get(Model, model) is None:
        raise NotFound(f"there is no model {model}")
    chosen: Cohort | None = None
    if cohort is not None:
        chosen = rollout_queries.cohort_named(session, cohort)
        if chosen is None:
            raise NotFound(f"there is no cohort {cohort}")
        if chosen.filter is not None or chosen.model != model:
            raise InvalidRequest(f"cohort {cohort} is not a static cohort of {model}")
    row_id, token, digest = _new_secret("fe")
    row = EnrollmentToken(
        id=row_id,
        secret_sha256=digest,
        model=model,
        cohort_id=chosen.id if chosen else None,
        uses_left=uses,
        expires_at=now + lifetime,
        created_at=now,
    )
    session.add(row)
    return row, token


def enroll(
    session: Session,
    token: str,
    *,
    model: str,
    serial: str,
    hardware: str,
    attributes: dict[str, str],
    agent_version: str,
    now: datetime,
) -> tuple[Device, str]:
    """Admit a device; returns its row and its credential, which is shown once.

    Raises:
        Unauthorized: the token is unknown, used up or expired, or of another model.
        SerialTaken: that serial is enrolled; its credential stays valid.
    """
    row_id, digest = _parse("fe", token)
    row = session.get(EnrollmentToken, row_id)
    valid = row is not None and hmac.compare_digest(row.secret_sha256, digest)
    if row is None or not valid or row.expires_at <= now or row.model != model:
        raise Unauthorized("the enrollment token is not valid for this model, or expired")
    if queries.device_with_serial(session, serial) is not None:
        raise SerialTaken(
            f"serial {serial} is enrolled; an operator must revoke that device first: "
            'PATCH /v1/devices/ID {"status": "revoked"}'
        )
    taken = session.execute(
        update(EnrollmentToken)
        .where(EnrollmentToken.id == row.id, EnrollmentToken.uses_left > 0)
        .values(uses_left=EnrollmentToken.uses_left - 1)
    )
    if taken.rowcount != 1:  # type: ignore[attr-defined]
        raise Unauthorized("the enrollment token is used up")
    device_id, credential, secret = _new_secret("fc")
    device = Device(
        id=device_id,
        serial=serial,
        hardware=hardware,
        status="active",
        attributes=attributes,
        tags={},
        agent_version=agent_version,
        credential_sha256=secret,
        enrolled_at=now,
        last_seen_at=None,
    )
    session.add(device)
    session.flush()
    session.add(DeviceModel(device_id=device_id, model=model, running_sha256="", order_seq=0))
    if row.cohort_id is not None:
        session.add(CohortMember(cohort_id=row.cohort_id, device_id=device_id))
    return device, credential


def identify_device(session: Session, credential: str, *, lock: bool = False) -> Device:
    """Return the device that a credential belongs to.

    Args:
        session: to read from.
        credential: what the device sent.
        lock: one request of a device after the other; what it numbered itself counts once.

    Raises:
        Unauthorized: unknown, wrong or revoked, all alike.
    """
    device_id, digest = _parse("fc", credential)
    # FOR NO KEY UPDATE: others may still refer to the device meanwhile.
    device = session.get(Device, device_id, with_for_update={"key_share": True} if lock else None)
    valid = device is not None and hmac.compare_digest(device.credential_sha256, digest)
    if device is None or not valid or device.status == "revoked":
        raise Unauthorized("send a valid device credential as `Authorization: Bearer fc_...`")
    return device


def set_device_status(session: Session, device_id: str, status: str, now: datetime) -> Device:
    """Quarantine, revoke or readmit a device; after a revocation its serial may enroll again."""
    device = session.get(Device, device_id)
    if device is None:
        raise NotFound(f"there is no device {device_id}")
    if device.status == "revoked" and status != "revoked":
        raise WrongState(f"device {device_id} is revoked; it must enroll again")
    if status == "revoked" and device.status != "revoked":
        # The serial is free again; the history stays under the device's id.
        device.serial = f"{device.serial} (revoked {device.id})"
    if status != "active":
        for deployment in rollout_queries.open_deployments(session, device.id):
            deployments.finish(session, deployment, "canceled", status, now)
        session.get_one(DeviceModel, device.id).deployment_id = None  # no order is renewed
    device.status = status
    return device


def _new_secret(prefix: str) -> tuple[str, str, str]:
    """Return an id, the whole token, and the digest of its secret part."""
    row_id = secrets.token_hex(8)
    secret = secrets.token_urlsafe(32)
    return row_id, f"{prefix}_{row_id}_{secret}", hashlib.sha256(secret.encode()).hexdigest()


def _parse(prefix: str, token: str) -> tuple[str, str]:
    match = _TOKEN.match(token)
    if match is None or match[1] != prefix:
        raise Unauthorized("the credential is missing or malformed")
    return match[2], hashlib.sha256(match[3].encode()).hexdigest()
