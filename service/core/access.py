"""Who is calling: API tokens with scopes, enrollment tokens; `devices` says so of devices.

Each is shown exactly once. The first token is made on the server's own command line.
"""

import secrets
from datetime import datetime, timedelta

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit, catalog, deployments, errors
from service.core.credential import new_secret, same, sent, unauthorized
from service.core.errors import Forbidden, InvalidRequest, WrongState
from service.core.network import is_part, is_within
from service.db import queries
from service.db.entries import of_device
from service.db.rollout_tables import Deployment
from service.db.tables import ApiToken, DeviceModel, EnrollmentToken

SCOPES = tuple(
    "releases:read releases:write rollouts:read rollouts:write rollouts:halt rollouts:approve "
    "devices:read devices:write enroll:write telemetry:read audit:read "
    "tokens:admin".split()
)
ADVICE = "send a valid API token as `Authorization: Bearer fd_...`"
TOKEN_LIFETIME_MAX = timedelta(days=365)


def create_token(
    session: Session,
    name: str,
    scopes: list[str],
    lifetime: timedelta,
    now: datetime,
    *,
    networks: list[str] | None = None,
    maker: ApiToken | None = None,
) -> tuple[ApiToken, str]:
    """Make an API token; the secret is returned once and stored as a digest only.

    Nobody gives away what they do not have: with a maker, its scopes, networks and end are the
    most there can be.
    """
    expires = now + lifetime
    if maker is not None:
        expires = min(expires, maker.expires_at)
        for scope in scopes:
            allowed(maker, scope)
        if maker.networks is not None:
            networks = networks or maker.networks
            if outside := [n for n in networks if not is_part(n, maker.networks)]:
                raise Forbidden(f"this token is none in {outside}, and makes none for there")
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidRequest(f"unknown scopes {unknown}; known are {', '.join(SCOPES)}")
    if not timedelta(0) < lifetime <= TOKEN_LIFETIME_MAX:
        raise InvalidRequest("a token lives between a moment and 365 days")
    row_id, digest, token = new_secret("fd")
    row = ApiToken(
        id=row_id,
        name=name,
        secret_sha256=digest,
        scopes=sorted(set(scopes)),
        created_at=now,
        expires_at=expires,
        networks=networks,
    )
    session.add(row)
    audit.record(session, "token.create", row.id, now, token=name, scopes=row.scopes)
    return row, token


def authorize(session: Session, token: str, now: datetime, ip: str = "") -> ApiToken:
    """Return the API token's row if it is valid.

    Raises:
        Unauthorized: unknown, wrong, expired, revoked or from elsewhere, all alike.
    """
    row_id, digest = sent("fd", token)
    row = session.get(ApiToken, row_id)
    if (
        row is None
        or not same(row.secret_sha256, digest)
        or row.revoked_at is not None
        or row.expires_at <= now
        or not (row.networks is None or is_within(ip, row.networks))
    ):
        raise unauthorized(ADVICE, token)
    return row


def revoke_token(session: Session, token_id: str, now: datetime) -> ApiToken:
    """End a token now; ending it again changes nothing."""
    row = errors.found(session.get(ApiToken, token_id), f"token {token_id}")
    if row.revoked_at is None:
        row.revoked_at = now
        audit.record(session, "token.revoke", row.id, now, token=row.name)
    return row


def actor(caller: ApiToken) -> str:
    """Return how the audit log calls an operator; an identity has no row, and so no id."""
    return f"{caller.name} (fd_{caller.id})" if caller.id else f"{caller.name} (oidc)"


def note_use(session: Session, caller: ApiToken, now: datetime) -> None:
    """Note that a token was used just now."""
    session.execute(update(ApiToken).filter_by(id=caller.id).values(last_used_at=now))


def allowed(caller: ApiToken, scope: str | None) -> ApiToken:
    """Return the caller if its token carries the scope.

    Raises:
        Forbidden: it does not.
    """
    if scope is not None and scope not in caller.scopes:
        raise Forbidden(f"this token lacks the scope {scope}", scope=scope)
    return caller


def create_enrollment_token(
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
