"""A crowd of devices, made by the database itself: ids as random as those that are given out."""

from datetime import datetime

from sqlalchemy import text
from sqlalchemy.orm import Session

from service.db.tables import Release
from tests.service.world import MODEL

ID = {
    "sqlite": "lower(hex(randomblob(8)))",
    "postgresql": "substr(replace(gen_random_uuid()::text, '-', ''), 1, 8)"
    " || right(gen_random_uuid()::text, 8)",
}
DEVICES = """
    INSERT INTO device (id, serial, hardware, status, attributes, tags, agent_version,
                        credential_sha256, enrolled_at, last_seen_at)
    WITH RECURSIVE number (n) AS (SELECT 1 UNION ALL SELECT n + 1 FROM number WHERE n < :devices)
    SELECT {id}, :prefix || n, CASE WHEN n % :every = 0 THEN 'rare' ELSE 'h1' END,
           'active', '{{}}', '{{}}', '1', '', :now, :now
    FROM number
"""
RUNS = """
    INSERT INTO device_model (device_id, model, running_sha256, running_release, order_seq)
    SELECT id, :model, :sha256, :release, 0 FROM device
    WHERE serial >= :prefix AND serial < :prefix || '~'
"""


def crowd(
    session: Session,
    devices: int,
    prefix: str,
    now: datetime,
    *,
    runs: str = "",
    model: str = MODEL,
    rare_every: int = 50,
) -> None:
    """Add devices that run a release, or bytes that nobody knows; a few are of rare hardware."""
    release = session.query(Release).filter_by(model=model, name=runs).one_or_none()
    insert = DEVICES.format(id=ID[session.get_bind().dialect.name])
    # SQLite stores no zone, and every time is UTC.
    at = now.replace(tzinfo=None).isoformat(" ")
    fixed = {"devices": devices, "prefix": prefix, "every": rare_every, "now": at}
    session.execute(text(insert), fixed)
    known = {"sha256": release.sha256, "release": release.id} if release else {}
    given = {"sha256": "", "release": None, "model": model, "prefix": prefix} | known
    session.execute(text(RUNS), given)
