"""The way an update was done: what a device tells of it, and what is learnt from that.

A device names the blobs of the pipeline that it went, or of the first one that it could not go.
That is its word and no proof, so it counts once per deployment, only for patches that lead from
the deployment's beginning to its end, and only while the device is in good standing.
"""

import re
from collections.abc import Sequence

from sqlalchemy import update
from sqlalchemy.orm import Session

from service.core.device_bodies import DeviceEvent
from service.db import queries
from service.db.rollout_tables import Deployment
from service.db.session import changed
from service.db.tables import Device, DeviceModel, Patch

NAMED = 16  # hexadecimal digits of a blob's name
WAY = re.compile(rf"full|(?:patch|back)(?: [0-9a-f]{{{NAMED}}}){{1,8}}")
# What speaks of a patch or its blob; room, base and canary are the device's own affair.
FAULTS = frozenset("E_HASH E_HTTP E_PATCH E_REDIRECT E_RESULT E_SIZE".split())


def note_said(session: Session, device: Device, deployment: Deployment, event: DeviceEvent) -> None:
    """Note the way that an event tells of, or the first one that failed."""
    if not WAY.fullmatch(event.detail):
        return
    if event.kind == "applied":
        deployment.way = event.detail
    elif event.kind == "note" and event.reason in FAULTS and not deployment.failed_way:
        deployment.failed_way = event.detail
        if device.status == "active":
            _count(session, _patches(session, deployment, event.detail), "fail_count")


def note_arrival(session: Session, row: DeviceModel, deployment: Deployment) -> None:
    """Count the hops of a device whose poll proves that it arrived, and its patches' success."""
    if deployment.way == "full":
        row.hops = row.hashed_hops = 0
        return
    patches = _patches(session, deployment, deployment.way)
    if patches:
        row.hops += len(patches)
        row.hashed_hops += sum(patch.kind == "hashed" for patch in patches)
        if row.device.status == "active":
            _count(session, patches, "ok_count")
    elif deployment.direction == "forward":  # it does not say how: at worst, by a hashed patch
        row.hops, row.hashed_hops = row.hops + 1, row.hashed_hops + 1


def _patches(session: Session, deployment: Deployment, way: str) -> Sequence[Patch]:
    """Return the patches of a way, if that is a way from the deployment's beginning to its end."""
    op, *names = way.split() or [""]
    known = {p.sha256[:NAMED]: p for p in queries.patches_of(session, deployment.rollout.model)}
    at, found = deployment.from_sha256, [known[name] for name in names if name in known]
    for patch in found:
        ends = (patch.source.sha256, patch.target.sha256)
        start, end = ends[::-1] if op == "back" else ends
        if start != at:
            return []
        at = end
    return found if at == deployment.to_sha256 and len(found) == len(names) else []


def _count(session: Session, patches: Sequence[Patch], counter: str) -> None:
    if patches:
        here = (Patch.model == patches[0].model, Patch.sha256.in_([p.sha256 for p in patches]))
        counting = update(Patch).where(*here).values({counter: getattr(Patch, counter) + 1})
        # It weighs in the next plan; no answer changes by it.
        changed(session, counting.execution_options(synchronize_session=False), touches=())
