"""The publisher: the only code that signs with online keys.

It signs three things: a snapshot and a timestamp over what release managers signed offline, and
one small order for each device that is to move. It reads the wish from the database and believes
none of it: every document is verified again from the pinned root (`verified`), and numbers come
from a record of its own (`record`), so a forged row cannot make it say more than the offline
signatures allow.

It is a process of its own (`fleetdiff-server publish`), or a task of the server (embedded). Two at
once do no harm: a version of a document is written once, and an order replaces only the one that
was looked at. Signing holds no transaction open, for a key may be far away. A round that is cut
off anywhere is done by the next one.
"""

import logging
from collections.abc import Sequence
from datetime import datetime
from typing import Any

from securesystemslib.signer import Signer
from sqlalchemy.exc import IntegrityError
from sqlalchemy.orm import Session
from tuf.api.metadata import Metadata

from service.core import audit
from service.db.session import Database, insert_into
from service.db.tables import MetadataFile, PublisherState
from service.publishing.catalog import listed, store_metadata
from service.signing.keys import Blocked, Publisher, Trouble, check_key
from service.signing.orders import sign_orders
from service.signing.record import Record
from service.signing.verified import Verified, signed_by, verify_all
from trust.errors import Untrusted, require
from trust.roles import ONLINE_ROLES
from trust.sign import LIFETIME, next_snapshot, next_timestamp, sign

logger = logging.getLogger(__name__)
AUDIT = "audit"  # the log's name in the record: how far it went, and the digest it ended in
NOTED_S = 10  # seconds after which a round that found nothing new is noted again


def work(database: Database, publisher: Publisher, now: datetime) -> list[dict[str, str]]:
    """Sign everything that is due, and return what could not be signed.

    Raises:
        Untrusted: the pinned root is none.
    """
    with database.reader() as session:
        first = session.get(MetadataFile, ("root", 1))
        pinned = publisher.root or (first.body if first else None)
        found = verify_all(session, pinned, publisher.record) if pinned else None
    problems = []
    if found is not None:
        problems += [Blocked(Trouble.REFUSED, *why).problem for why in found.refused.items()]
        for part in (publish, sign_orders, sign_log) if found.targets else ():
            try:
                part(database, publisher, found, now)
            except* Blocked as errors:
                problems += [e.problem for e in errors.exceptions if isinstance(e, Blocked)]
    _note(database, problems, now)
    return problems


def publish(database: Database, publisher: Publisher, found: Verified, now: datetime) -> None:
    """Sign a snapshot and a timestamp if something was accepted, a key replaced, or they grow old.

    Raises:
        Blocked: WRONG_KEY or VERSION_TAKEN; nothing was written.
    """
    root, keys, record = found.roots[-1], publisher.keys, publisher.record
    check_key("snapshot", keys.snapshot, root.roles["snapshot"].keyids)
    check_key("timestamp", keys.timestamp, root.roles["timestamp"].keyids)
    with database.reader() as session:
        body = _still_good(session, found, "snapshot", record, now)
        stamped = _still_good(session, found, "timestamp", record, now)
    snapshot = next_snapshot(found.snapshot, found.bodies, now)
    # What one snapshot lists, the next one must: devices take a role that vanishes for an attack.
    snapshot.signed.meta = {**found.listed, **snapshot.signed.meta}
    vouched = listed(snapshot.signed)
    for role in found.refused:
        if role not in ("root", *ONLINE_ROLES) and vouched.get(role, 0) < record.highest(role):
            raise Blocked(Trouble.REFUSED, role, "what was published of it must come back first")
    documents: list[tuple[str, Metadata[Any], bytes]] = []
    if body is None or vouched != listed(found.snapshot):
        body = _numbered(snapshot, record.highest("snapshot"), keys.snapshot)
        documents.append(("snapshot", snapshot, body))
    if documents or stamped is None:
        stamp = next_timestamp(found.timestamp, body, now)
        signed = _numbered(stamp, record.highest("timestamp"), keys.timestamp)
        documents.append(("timestamp", stamp, signed))
    if documents:
        given = {role: document.signed.version for role, document, _ in documents}
        record.take({"root": root.version, **vouched, **given})
        _store(database, documents, now)
        found.timestamp = stamp.signed
        logger.info("published", extra={"roles": len(vouched)} | given)


def sign_log(database: Database, publisher: Publisher, found: Verified, now: datetime) -> None:
    """Vouch once a day for how far the audit log goes, if it goes on from where we last did.

    Raises:
        Blocked: REFUSED: an entry is not the one that was written.
    """
    record = publisher.record
    seq = record.highest(AUDIT)
    try:
        with database.reader() as session:
            if not audit.is_signature_due(session, now):
                return
            known = audit.head_at(session, seq)
            ours = known.seq == seq == record.highest(f"{AUDIT} {known.sha256}")
            require(ours, "E_AUDIT", f"entry {seq} of the audit log is not the one we vouched for")
            checked = audit.follow_log(session, known)  # here, where nobody waits for us
        with database.writer() as session:
            head = audit.sign_head(session, publisher.keys.director, checked, now)
    except Untrusted as error:
        raise Blocked(Trouble.REFUSED, AUDIT, error.message) from error
    record.take({AUDIT: head.seq, f"{AUDIT} {head.sha256}": head.seq})


def _still_good(
    session: Session, found: Verified, role: str, record: Record, now: datetime
) -> bytes | None:
    """Return our newest snapshot or timestamp if it need not be signed again."""
    document = found.snapshot if role == "snapshot" else found.timestamp
    if document is None or document.version < record.highest(role):
        return None
    named = found.timestamp.snapshot_meta.version if found.timestamp else 0
    if found.snapshot is None or named != found.snapshot.version:
        return None  # one of the two was taken away
    row = session.get_one(MetadataFile, (role, document.version))
    by_named_key = signed_by(found.roots[-1:], row) is not None
    return row.body if by_named_key and document.expires - now >= LIFETIME[role] / 2 else None


def _numbered(document: Metadata[Any], highest: int, signer: Signer) -> bytes:
    """Sign a document under a number that was never used."""
    document.signed.version = max(document.signed.version, highest + 1)
    return sign(document, [signer])


def _store(
    database: Database, documents: Sequence[tuple[str, Metadata[Any], bytes]], now: datetime
) -> None:
    """Write what belongs together at once; the files that it names are there already."""
    try:
        with database.writer() as session:
            for role, document, body in documents:
                store_metadata(session, role, document, body, now)
    except IntegrityError as error:
        taken = f"version {documents[0][1].signed.version} is taken; the next round goes higher"
        raise Blocked(Trouble.VERSION_TAKEN, documents[0][0], taken) from error


def _note(database: Database, problems: list[dict[str, str]], now: datetime) -> None:
    """Say that a round was made, for those who look at the health of the service."""
    with database.reader() as session:
        last = session.get(PublisherState, 1)
    news = last is None or last.problems != problems
    if last is not None and not news and abs((now - last.round_at).total_seconds()) < NOTED_S:
        return
    for problem in problems if news else ():
        logger.error("blocked", extra=problem)
    with database.writer() as session:
        said = {"round_at": now, "problems": problems}
        row = insert_into(session, PublisherState).values(id=1, **said)
        session.execute(row.on_conflict_do_update(index_elements=["id"], set_=said))
        for problem in problems if news else ():
            told = {"actor": "publisher", "result": "denied"}
            audit.record(session, "publisher.blocked", problem["role"], now, **told, **problem)
