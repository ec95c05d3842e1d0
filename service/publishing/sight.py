"""Whether devices can verify by the keys that are published: those that cannot are locked out."""

from collections.abc import Mapping
from datetime import datetime, timedelta
from typing import Any

from sqlalchemy.orm import Session
from tuf.api.metadata import Key, Metadata

from service.core import errors
from service.core.words import counted
from service.db import documents, queries
from trust.accept import Delegator
from trust.errors import require
from trust.keys import P256

SILENT = timedelta(days=90)  # a device that was not heard of for so long is lost
SHOWN_MAX = 10  # devices that a refusal names


def check_sight(session: Session, attributes: Mapping[str, str]) -> None:
    """Refuse a device that could not verify what is published: it would never be updated."""
    rows = (documents.newest_metadata(session, role) for role in ("root", "targets"))
    keys = [_keys_of(Metadata[Any].from_bytes(row.body).signed) for row in rows if row is not None]
    schemes = {key.scheme for named in keys for key in named.values()}
    if P256 in schemes and attributes.get(P256) != "yes":
        raise errors.CannotVerify(
            f"this fleet has {P256} keys; install fleetdiff[p256] on the device"
        )


def check_devices(
    session: Session, signed: Delegator, current: bytes | None, now: datetime
) -> None:
    """Check that every device can verify by the keys that are new: it would be locked out.

    One that was silent for long holds up nobody; it must enroll again if it ever comes back.
    """
    known = _keys_of(Metadata[Any].from_bytes(current).signed) if current else {}
    new = {key.scheme for keyid, key in _keys_of(signed).items() if keyid not in known}
    blind = queries.devices_without(session, P256, now - SILENT) if P256 in new else ()
    how = "sign with Ed25519, give them fleetdiff[p256] and enroll them again, or revoke them"
    named = ", ".join(blind[:SHOWN_MAX])
    some = counted(len(blind), "device cannot", "devices cannot")
    require(not blind, "E_SIG", f"{some} verify {P256} ({named}); {how}")


def _keys_of(signed: Any) -> dict[str, Key]:
    holder = signed if signed.type == "root" else signed.delegations
    return holder.keys if holder else {}
