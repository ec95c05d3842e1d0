"""Devices: how they are let in, and how each says who it is, by a secret or by a signature."""

import logging
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy import bindparam, select, update
from sqlalchemy.orm import Session

from service.core import audit
from service.core.credential import Shown, check_public_key, new_secret, same, sent, unauthorized
from service.core.errors import InvalidRequest, SerialTaken, Unauthorized, WrongState
from service.db import queries
from service.db.rollout_tables import CohortMember
from service.db.session import changed
from service.db.tables import Device, DeviceModel, EnrollmentToken
from service.publishing.sight import check_sight
from trust.errors import Untrusted

logger = logging.getLogger(__name__)
MAKE_A_KEY = "key"  # in place of a new credential, to a device that signs
# Made once: what a statement is compiled to is found again by what it is made of.
_LOCKED = select(Device).where(Device.id == bindparam("device"))
# FOR NO KEY UPDATE: others may still refer to the row meanwhile.
_LOCKED = _LOCKED.with_for_update(key_share=True).execution_options(populate_existing=True)
_COLUMNS: Any = Device.__table__.c
_KNOWN = select(
    *(_COLUMNS[name] for name in "id status signed_number certificate_sha256".split()),
    *(_COLUMNS[f"{which}credential_sha256"] for which in ("", "next_", "old_")),
).where(_COLUMNS.id == bindparam("device"))


def enroll(
    session: Session,
    token: str,
    *,
    model: str,
    serial: str,
    now: datetime,
    signed: Shown | None = None,
    **described: Any,
) -> tuple[Device, str]:
    """Admit a device; returns its row and its credential, which is shown once.

    One that `signed` this with a key of its own gets none. What else is known of it is
    `described`: hardware, attributes, agent_version, and the certificate that its credential is
    bound to from now on, if there is one.

    Raises:
        Unauthorized: the token is unknown, used up or expired, or of another model.
        SerialTaken: that serial is enrolled; its credential stays valid.
        CannotVerify: it has not what it takes to verify this fleet's keys.
    """
    row_id, digest = sent("fe", token)
    row = session.get(EnrollmentToken, row_id)
    right = row is not None and same(row.secret_sha256, digest)
    if row is None or not right or row.expires_at <= now or row.model != model:
        detail = "the enrollment token is not valid for this model, or expired"
        raise unauthorized(detail, token)
    taken = {
        EnrollmentToken.uses_left: EnrollmentToken.uses_left - 1,
        EnrollmentToken.admitted: EnrollmentToken.admitted + 1,
    }
    usable = update(EnrollmentToken).where(
        EnrollmentToken.id == row.id, EnrollmentToken.uses_left > 0
    )
    if not changed(session, usable.values(taken)):
        raise unauthorized("the enrollment token is used up", token)
    if queries.first(session, Device, serial=serial) is not None:
        raise SerialTaken(
            f"serial {serial} is enrolled; an operator must revoke that device first "
            "(fleetdiff device list, fleetdiff device revoke ID), and give a new token"
        )
    check_sight(session, described["attributes"])
    device_id, digest, credential = new_secret("fc")
    if signed is not None:
        digest, credential = signed.sha256, ""
    fresh = {"status": "active", "tags": {}, "enrolled_at": now, "credential_sha256": digest}
    number = signed.number if signed else None
    device = Device(
        id=device_id, serial=serial, enrolled_by=row.id, signed_number=number, **fresh, **described
    )
    session.add(device)
    session.flush()
    session.add(DeviceModel(device_id=device.id, model=model, running_sha256="", order_seq=0))
    if row.cohort_id is not None:
        session.add(CohortMember(cohort_id=row.cohort_id, device_id=device.id))
    told = {"serial": serial, "model": model, "invitation": row.id, "by": authentication(device)}
    bound = {"certificate": device.certificate_sha256} if device.certificate_sha256 else {}
    audit.record(session, "device.enroll", device.id, now, **told, **bound)
    return device, credential


def identify_device(
    session: Session, shown: Shown, certificate: str | None, now: datetime
) -> Device:
    """Return the device that a credential belongs to, locked: what it numbered itself counts once.

    Args:
        session: of its request, one of which goes after the other.
        shown: what the device sent, or signed with.
        certificate: by which TLS knows the device, if it does.
        now: the time.

    Raises:
        Unauthorized: unknown, wrong, revoked or superseded, all alike.
    """
    device = session.scalars(_LOCKED, {"device": shown.device_id}).one_or_none()
    return recognised(session, device, shown, certificate, now)


def recognised(
    session: Session, device: Device | None, shown: Shown, certificate: str | None, now: datetime
) -> Device:
    """Return the device that was read and locked, if it is the caller's; what it shows counts."""
    renewed = check_shown(device, shown, certificate)
    assert device is not None
    count_request(session, shown)
    if renewed:
        _supersede(session, device, now)
    return device


def admit(session: Session, shown: Shown, certificate: str | None) -> None:
    """Refuse whoever is no device, at the price of looking it up; see `identify_device`."""
    check_shown(
        session.connection().execute(_KNOWN, {"device": shown.device_id}).first(),
        shown,
        certificate,
    )


def check_shown(device: Any, shown: Shown, certificate: str | None) -> bool:
    """Refuse what is not a device's own; returns whether it is its new credential."""
    digest, refusal = shown.sha256, _unknown(shown)
    if device is None or device.status == "revoked":
        raise refusal
    if (device.signed_number is None) != (shown.number is None):
        raise refusal  # a key's digest is no secret's, nor the other way round
    if shown.number is not None and shown.number <= (device.signed_number or 0):
        raise _repeated(refusal)  # whoever repeats what they heard raises no alarm about keys
    renewed = same(device.next_credential_sha256, digest)
    if not renewed and not same(device.credential_sha256, digest):
        if same(device.old_credential_sha256, digest):
            refusal.noted["alarm"] = "superseded"  # two hold it: one of them is not the device
            logger.warning("superseded credential", extra={"device": device.id})
        raise refusal
    if device.certificate_sha256 is not None and not same(device.certificate_sha256, certificate):
        refusal.noted["alarm"] = "certificate"  # the credential is somewhere without its key
        raise refusal
    return renewed


def count_request(session: Session, shown: Shown) -> None:
    """Note the number of a signed request, so that it is taken once, whichever process asks first.

    Raises:
        Unauthorized: it, or one with a higher number, was taken before.
    """
    if shown.number is not None:
        fresh = update(Device).where(
            Device.id == shown.device_id, Device.signed_number < shown.number
        )
        if not changed(session, fresh.values(signed_number=shown.number), touches=()):
            raise _repeated(_unknown(shown))


def authentication(device: Device) -> str:
    """Return how a device says who it is."""
    return "bearer" if device.signed_number is None else "signature"


def renew_credential(device: Device, lifetime: timedelta, now: datetime) -> str | None:
    """Return a new credential for a device whose own grew old, None if it did not.

    Both are valid until the new one is used. An answer may get lost: then there is another one.
    A device that signs makes its new key itself: it is only told that it is time.
    """
    if now < renewal_due(device, lifetime):
        return None
    if device.signed_number is not None:
        return MAKE_A_KEY
    _, device.next_credential_sha256, credential = new_secret("fc", device.id)
    return credential


def renewal_due(device: Device, lifetime: timedelta) -> datetime:
    """Return when the device's credential is old enough for another one."""
    return (device.renewed_at or device.enrolled_at) + lifetime


def take_key(device: Device, public_key: str) -> None:
    """Let a device sign with another key, from its first use on, as its own signature asks.

    Raises:
        WrongState: it does not sign.
        InvalidRequest: the key is weak, or none.
    """
    if device.signed_number is None:
        raise WrongState("this device sends a credential; to sign, it must enroll again")
    device.next_credential_sha256 = key_sha256(public_key)


def key_sha256(public_key: str) -> str:
    """Return what is stored of a device's public key, if it is a good one."""
    try:
        return check_public_key(public_key)
    except Untrusted as error:
        raise InvalidRequest(error.message) from error


def _supersede(session: Session, device: Device, now: datetime) -> None:
    assert device.next_credential_sha256 is not None
    device.old_credential_sha256 = device.credential_sha256
    device.credential_sha256 = device.next_credential_sha256
    device.next_credential_sha256, device.renewed_at = None, now
    audit.record(session, "device.renew", device.id, now)


def _unknown(shown: Shown) -> Unauthorized:
    how = "send a valid device credential as `Authorization: Bearer fc_...`"
    refusal = Unauthorized(how if shown.number is None else "sign with a key of this device")
    refusal.noted = {"tried": f"{'fc' if shown.number is None else 'fs'}_{shown.device_id}"}
    return refusal


def _repeated(refusal: Unauthorized) -> Unauthorized:
    refusal.noted["signature"] = "it was taken before, or a later one was"
    return refusal
