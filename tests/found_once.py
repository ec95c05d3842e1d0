"""What every world would find out anew, and always the same: here it is found out once a run.

That is only what follows from bytes and from code: what a patch makes of a base (a process apart,
with numpy to import), and the SQL of a statement (SQLAlchemy keeps it by database, and each world
has one of its own). Together they take half of the time in which a world is made.
"""

import hashlib
from collections.abc import Callable
from typing import Any

from sqlalchemy import Engine

from service.blobs import Blobs
from service.publishing import apart
from trust.roles import PatchTarget, Release

Check = Callable[[Blobs, PatchTarget, Release], dict[str, Any]]


def applied_once(check: Check) -> Check:
    """Return what checks a patch as `check` does, but the same bytes once.

    What was refused, and what another program than the service's own applies, is never kept.
    """
    honest, kept = apart.__file__, dict[tuple[Any, ...], dict[str, Any]]()

    def checked(blobs: Blobs, patch: PatchTarget, target: Release) -> dict[str, Any]:
        names = patch.from_sha256, patch.sha256
        if apart.__file__ != honest or None in map(blobs.size, names):
            return check(blobs, patch, target)
        held = []
        for name in names:
            with blobs.open(name) as file:
                held.append(hashlib.file_digest(file, "sha256").digest())
        key = (*held, target.sha256, target.bytes, patch.kind)
        if key not in kept:
            kept[key] = check(blobs, patch, target)
        return kept[key]

    return checked


def compiled_once(create: Callable[..., Engine]) -> Callable[..., Engine]:
    """Return what creates an engine as `create` does, but keeps SQL with those of its kind."""
    kept: dict[str, Engine] = {}

    def created(*asked: Any, **more: Any) -> Engine:
        engine = create(*asked, **more)
        first = kept.setdefault(engine.dialect.name, engine)
        if first.dialect.server_version_info is None:  # it was never connected, so it knows less
            kept[engine.dialect.name] = engine
        else:
            engine.dialect, engine._compiled_cache = first.dialect, first._compiled_cache
        return engine

    return created
