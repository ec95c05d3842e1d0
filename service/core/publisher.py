"""The publisher: the only code that holds online keys.

It signs three things: a snapshot and a timestamp over what release managers signed offline, and
one small order for each device that is to move. It reads the wish from the database and checks
it again against the signed family, so a forged row cannot make it say more than the offline
signatures allow. It runs as a task of the server (embedded) and needs no request to run; the
handlers of requests never see a key.
"""

import logging
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import Signer
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from service.core import deployments
from service.core.catalog import listed, published_family, store_metadata
from service.db import queries
from service.db.rollout_tables import Deployment
from service.db.tables import DeviceModel, MetadataFile
from trust.order import Order
from trust.roles import Family
from trust.sign import LIFETIME, load_signer, next_snapshot, next_timestamp, sign, sign_order

logger = logging.getLogger(__name__)
ORDERS_PER_TICK_MAX = 1000


@dataclass(frozen=True)
class OnlineKeys:
    """The publisher's three keys; their `repr` shows none of them."""

    snapshot: Signer
    timestamp: Signer
    director: Signer

    def __repr__(self) -> str:
        return "OnlineKeys(***)"

    @staticmethod
    def load(folder: Path) -> "OnlineKeys":
        """Return the keys of a folder: snapshot.pem, timestamp.pem, director.pem.

        Raises:
            OSError, ValueError: naming the file that is missing or not a key.
        """
        return OnlineKeys(
            *(load_signer(folder / f"{role}.pem") for role in ("snapshot", "timestamp", "director"))
        )


def publish(session: Session, keys: OnlineKeys, now: datetime) -> None:
    """Sign a new snapshot and timestamp if something was accepted, or the old ones grow old."""
    versions = queries.newest_versions(session)
    offline = {r: n for r, n in versions.items() if r == "targets" or r.startswith("family-")}
    if not {"root", "targets"} <= versions.keys():
        return
    row = queries.newest_metadata(session, "snapshot")
    previous = Metadata[Snapshot].from_bytes(row.body).signed if row else None
    body = row.body if row else b""
    changed = listed(previous) != offline or _ageing(row, now)
    if changed:
        files = {f"{role}.json": _body(session, role) for role in offline}
        document = next_snapshot(previous, files, now)
        body = sign(document, [keys.snapshot])
        store_metadata(session, "snapshot", document, body, now)
    row = queries.newest_metadata(session, "timestamp")
    if not changed and not _ageing(row, now):
        return
    before = Metadata[Timestamp].from_bytes(row.body).signed if row else None
    stamp = next_timestamp(before, body, now)
    store_metadata(session, "timestamp", stamp, sign(stamp, [keys.timestamp]), now)
    logger.info("published", extra={"timestamp": stamp.signed.version, "roles": len(offline)})


def sign_orders(session: Session, keys: OnlineKeys, now: datetime) -> int:
    """Sign the orders that devices wait for, and renew those that grow old; returns how many."""
    families: dict[str, Family | None] = {}
    signed = 0
    aged = now + LIFETIME["order"] / 2
    beside = queries.newest_versions(session)
    for row in queries.orders_to_sign(session, aged, ORDERS_PER_TICK_MAX):
        if row.model not in families:
            families[row.model] = published_family(session, row.model)
        family = families[row.model]
        deployment = session.get(Deployment, row.deployment_id)
        if family is None or deployment is None:
            continue
        barred = _barred(family, row, deployment)
        if barred is None:
            _sign_order(row, deployment, family, beside, keys, now)
            signed += 1
        else:  # called off, so that a wish nobody may grant is not looked at for ever
            logger.warning("order refused", extra={"deployment": deployment.id, "why": barred})
            deployments.finish(session, deployment, "canceled", "not allowed", now)
            row.deployment_id = None
    return signed


def _barred(family: Family, row: DeviceModel, deployment: Deployment) -> str | None:
    """Why the signed family does not allow this device to go where the deployment says."""
    release = family.release_of(deployment.to_sha256)
    running = family.release_of(row.running_sha256)
    if release is None or release.status != "active" or deployment.device_id != row.device_id:
        return "not active"
    if release.hardware and row.device.hardware not in release.hardware:
        return "hardware"
    if running and release.seq < running.seq and running.name not in release.rollback_from:
        return "no edge back"
    return None


def _sign_order(
    row: DeviceModel,
    deployment: Deployment,
    family: Family,
    beside: dict[str, int],
    keys: OnlineKeys,
    now: datetime,
) -> None:
    release = family.release_of(deployment.to_sha256)
    assert release is not None
    row.order_seq += 1
    row.order_deployment = deployment.id
    row.order_expires_at = (now + LIFETIME["order"]).replace(microsecond=0)
    order = Order(
        device=row.device_id,
        seq=row.order_seq,
        issued=now.replace(microsecond=0),
        expires=row.order_expires_at,
        model=row.model,
        release=release.name,
        sha256=release.sha256,
        root=beside["root"],
        timestamp=beside["timestamp"],
        hold=False,
        deployment=deployment.id,
    )
    row.order_body = sign_order(order, keys.director)


def _ageing(row: MetadataFile | None, now: datetime) -> bool:
    """Whether a document is past half of its life."""
    return row is None or row.expires_at - now < LIFETIME[row.role] / 2


def _body(session: Session, role: str) -> bytes:
    row = queries.newest_metadata(session, role)
    assert row is not None
    return row.body
