"""Who is calling: API tokens with scopes, enrollment tokens, device credentials.

Secrets are 256 random bits, so a plain SHA-256 at rest is enough; they are compared in constant
time and shown exactly once. The first token is made on the server's own command line.
"""

import hashlib
import hmac
import re
import secrets
from collections.abc import Iterable
from datetime import datetime, timedelta
from ipaddress import ip_address, ip_network
from typing import Any, TypeVar

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core import audit, catalog, deployments, errors
from service.core.errors import Forbidden, InvalidRequest, SerialTaken, Unauthorized, WrongState
from service.db import queries
from service.db.rollout_tables import CohortMember
from service.db.session import changed
from service.db.tables import ApiToken, Device, DeviceModel, EnrollmentToken

Holder = TypeVar("Holder", ApiToken, EnrollmentToken, Device)
SCOPES = tuple(
    "releases:read releases:write rollouts:read rollouts:write rollouts:halt "
    "devices:read devices:write enroll:write telemetry:read audit:read "
    "tokens:admin".split()
)
TOKEN_LIFETIME_MAX = timedelta(days=365)
_TOKEN = re.compile(r"(fd|fe|fc)_([0-9a-f]{8,32})_([A-Za-z0-9_-]{43})\Z")


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

    Nobody gives away what they do not have: with a maker, its scopes are the most there can be.
    """
    if maker is not None:
        for scope in scopes:
            allowed(maker, scope)
    unknown = sorted(set(scopes) - set(SCOPES))
    if unknown or not scopes:
        raise InvalidRequest(f"unknown scopes {unknown}; known are {', '.join(SCOPES)}")
    if not timedelta(0) < lifetime <= TOKEN_LIFETIME_MAX:
        raise InvalidRequest("a token lives between a moment and 365 days")
    key, token = _new_secret("fd")
    valid = {"created_at": now, "expires_at": now + lifetime}
    row = ApiToken(name=name, scopes=sorted(set(scopes)), networks=networks, **valid, **key)
    session.add(row)
    audit.record(session, "token.create", row.id, now, token=name, scopes=row.scopes)
    return row, token


def authorize(session: Session, token: str, now: datetime, ip: str = "") -> ApiToken:
    """Return the API token's row if it is valid.

    Raises:
        Unauthorized: unknown, wrong, expired, revoked or from elsewhere, all alike.
    """
    row = _holder(session, ApiToken, "fd", token)
    if (
        row is None
        or row.revoked_at is not None
        or row.expires_at <= now
        or not (row.networks is None or is_within(ip, row.networks))
    ):
        raise _unauthorized("send a valid API token as `Authorization: Bearer fd_...`", token)
    return row


def revoke_token(session: Session, token_id: str, now: datetime) -> ApiToken:
    """End a token now; ending it again changes nothing."""
    row = errors.found(session.get(ApiToken, token_id), f"token {token_id}")
    if row.revoked_at is None:
        row.revoked_at = now
        audit.record(session, "token.revoke", row.id, now, token=row.name)
    return row


def note_use(session: Session, caller: ApiToken, now: datetime) -> None:
    """Note that a token was used just now."""
    session.execute(update(ApiToken).filter_by(id=caller.id).values(last_used_at=now))


def is_within(ip: str, networks: Iterable[str]) -> bool:
    """Whether an address lies in one of these networks; what is no address lies in none."""
    try:
        address = ip_address(ip)
    except ValueError:
        return False
    return any(address in ip_network(network) for network in networks)


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
    key, token = _new_secret("fe")
    valid = {"created_at": now, "expires_at": now + lifetime}
    cohort_id = chosen.id if chosen else None
    row = EnrollmentToken(model=model, cohort_id=cohort_id, uses_left=uses, **valid, **key)
    session.add(row)
    audit.record(session, "invitation.create", row.id, now, model=model, uses=uses)
    return row, token


def enroll(
    session: Session, token: str, *, model: str, serial: str, now: datetime, **described: Any
) -> tuple[Device, str]:
    """Admit a device; returns its row and its credential, which is shown once.

    What else it says of itself is `described`: hardware, attributes, agent_version.

    Raises:
        Unauthorized: the token is unknown, used up or expired, or of another model.
        SerialTaken: that serial is enrolled; its credential stays valid.
    """
    row = _holder(session, EnrollmentToken, "fe", token)
    if row is None or row.expires_at <= now or row.model != model:
        detail = "the enrollment token is not valid for this model, or expired"
        raise _unauthorized(detail, token)
    if queries.first(session, Device, serial=serial) is not None:
        raise SerialTaken(
            f"serial {serial} is enrolled; an operator must revoke that device first: "
            'PATCH /v1/devices/ID {"status": "revoked"}'
        )
    usable = update(EnrollmentToken).where(
        EnrollmentToken.id == row.id, EnrollmentToken.uses_left > 0
    )
    if not changed(session, usable.values(uses_left=EnrollmentToken.uses_left - 1)):
        raise _unauthorized("the enrollment token is used up", token)
    key, credential = _new_secret("fc")
    fresh = {"status": "active", "tags": {}, "enrolled_at": now}
    device = Device(serial=serial, **fresh, **described, **key)
    session.add(device)
    session.flush()
    session.add(DeviceModel(device_id=device.id, model=model, running_sha256="", order_seq=0))
    if row.cohort_id is not None:
        session.add(CohortMember(cohort_id=row.cohort_id, device_id=device.id))
    told = {"serial": serial, "model": model, "invitation": row.id}
    audit.record(session, "device.enroll", device.id, now, **told)
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
    device = _holder(session, Device, "fc", credential, lock=lock)
    if device is None or device.status == "revoked":
        detail = "send a valid device credential as `Authorization: Bearer fc_...`"
        raise _unauthorized(detail, credential)
    return device


def device_named(session: Session, device_id: str) -> DeviceModel:
    """Return a device with what it runs, or refuse."""
    return errors.found(session.get(DeviceModel, device_id), f"device {device_id}")


def set_device_status(session: Session, row: DeviceModel, status: str, now: datetime) -> None:
    """Quarantine, revoke or readmit a device; after a revocation its serial may enroll again."""
    device = row.device
    if device.status == "revoked" and status != "revoked":
        raise WrongState(f"device {device.id} is revoked; it must enroll again")
    if status == "revoked" and device.status != "revoked":
        # The serial is free again; the history stays under the device's id.
        device.serial = f"{device.serial} (revoked {device.id})"
    if status != "active":
        for deployment in queries.open_deployments(session, device.id):
            deployments.finish(session, deployment, "canceled", status, now)
        row.deployment_id = None  # no order is renewed
    if status != device.status:
        audit.record(session, f"device.{status}", device.id, now, before=device.status)
    device.status = status


def _unauthorized(detail: str, token: str) -> Unauthorized:
    """Return a refusal that tells the audit log, and nobody else, whose secret was tried."""
    refusal = Unauthorized(detail)
    match = _TOKEN.match(token)
    refusal.noted = {"tried": f"{match[1]}_{match[2]}"} if match else {}
    return refusal


def _new_secret(prefix: str) -> tuple[dict[str, Any], str]:
    """Return the id and the digest that a row keeps, and the whole token, which is shown once."""
    row_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
    kept = {"id": row_id, "secret_sha256": _digest(secret)}
    return kept, f"{prefix}_{row_id}_{secret}"


def _holder(
    session: Session, table: type[Holder], prefix: str, token: str, *, lock: bool = False
) -> Holder | None:
    """Return the row that a token belongs to, None if there is none or the secret is wrong."""
    match = _TOKEN.match(token)
    if match is None or match[1] != prefix:
        raise Unauthorized("the credential is missing or malformed")
    # FOR NO KEY UPDATE: others may still refer to the row meanwhile.
    row = session.get(table, match[2], with_for_update={"key_share": True} if lock else None)
    right = row is not None and hmac.compare_digest(row.secret_sha256, _digest(match[3]))
    return row if right else None


def _digest(secret: str) -> str:
    return hashlib.sha256(secret.encode()).hexdigest()
