"""The publisher: the only code that holds online keys.

It signs three things: a snapshot and a timestamp over what release managers signed offline, and
one small order for each device that is to move. It reads the wish from the database and checks
it again against the signed family, so a forged row cannot make it say more than the offline
signatures allow. It runs as a task of the server (embedded) and needs no request to run; the
handlers of requests never see a key.
"""

import logging
from dataclasses import dataclass
from datetime import datetime, timedelta
from pathlib import Path

from securesystemslib.signer import Signer
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata, Snapshot, Timestamp

from service.core import deployments
from service.core.catalog import published_family, store_metadata
from service.db import queries, rollout_queries
from service.db.rollout_tables import Deployment
from service.db.tables import Device, DeviceModel, MetadataFile
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


def publish(session: Session, keys: OnlineKeys, now: datetime) -> bool:
    """Sign a new snapshot and timestamp if something was accepted, or before the old ones expire.

    Returns:
        Whether something was signed.
    """
    versions = queries.newest_versions(session)
    offline = {r for r in versions if r == "targets" or r.startswith("family-")}
    if "targets" not in offline or "root" not in versions:
        return False
    snapshot_row = queries.newest_metadata(session, "snapshot")
    previous = Metadata[Snapshot].from_bytes(snapshot_row.body).signed if snapshot_row else None
    listed = (
        {n.removesuffix(".json"): m.version for n, m in previous.meta.items()} if previous else {}
    )
    body = snapshot_row.body if snapshot_row else b""
    signed = False
    if listed != {role: versions[role] for role in offline} or _ageing(snapshot_row, now):
        files = {f"{role}.json": _body(session, role) for role in offline}
        document = next_snapshot(previous, files, now)
        body = sign(document, [keys.snapshot])
        store_metadata(session, "snapshot", document, body, now)
        signed = True
    timestamp_row = queries.newest_metadata(session, "timestamp")
    if signed or _ageing(timestamp_row, now):
        before = (
            Metadata[Timestamp].from_bytes(timestamp_row.body).signed if timestamp_row else None
        )
        stamp = next_timestamp(before, body, now)
        store_metadata(session, "timestamp", stamp, sign(stamp, [keys.timestamp]), now)
        logger.info("published", extra={"timestamp": stamp.signed.version, "roles": len(offline)})
        signed = True
    return signed


def sign_orders(session: Session, keys: OnlineKeys, now: datetime) -> int:
    """Sign the orders that devices wait for, and renew those that grow old; returns how many."""
    families: dict[str, Family | None] = {}
    signed = 0
    aged = now + LIFETIME["order"] / 2
    for row in rollout_queries.orders_to_sign(session, aged, ORDERS_PER_TICK_MAX):
        if row.model not in families:
            families[row.model] = published_family(session, row.model)
        family = families[row.model]
        deployment = session.get(Deployment, row.deployment_id)
        if family is None or deployment is None:
            continue
        if _allowed(session, family, row, deployment):
            _sign_order(row, deployment, family, keys, now)
            signed += 1
        else:  # called off, so that a wish nobody may grant is not looked at for ever
            deployments.finish(session, deployment, "canceled", "not allowed", now)
            row.deployment_id = None
    return signed


def _allowed(session: Session, family: Family, row: DeviceModel, deployment: Deployment) -> bool:
    """Whether the signed family allows this device to go where the deployment says."""
    release = family.release_of(deployment.to_sha256)
    running = family.release_of(row.running_sha256)
    if release is None or release.status != "active" or deployment.device_id != row.device_id:
        logger.warning("order refused", extra={"deployment": deployment.id, "why": "not active"})
        return False
    if release.hardware and session.get_one(Device, row.device_id).hardware not in release.hardware:
        logger.warning("order refused", extra={"deployment": deployment.id, "why": "hardware"})
        return False
    forward = running is None or release.seq >= running.seq
    if not forward and running is not None and running.name not in release.rollback_from:
        logger.warning("order refused", extra={"deployment": deployment.id, "why": "no edge back"})
        return False
    return True


def _sign_order(
    row: DeviceModel, deployment: Deployment, family: Family, keys: OnlineKeys, now: datetime
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
        hold=False,
        deployment=deployment.id,
    )
    row.order_body = sign_order(order, keys.director)


def _ageing(row: MetadataFile | None, now: datetime) -> bool:
    """Whether a document is past half of its life."""
    return row is None or row.expires_at - now < _lifetime(row) / 2


def _lifetime(row: MetadataFile) -> timedelta:
    return LIFETIME[row.role]


def _body(session: Session, role: str) -> bytes:
    row = queries.newest_metadata(session, role)
    assert row is not None
    return row.body
