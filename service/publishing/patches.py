"""Every patch is applied to its base here before a family that lists it is accepted.

A patch is the one upload that the server has to understand, and it comes from whoever has a token,
so a process apart applies it (`apart`), outside of any transaction, few at a time. What it made is
hashed here: if it is the signed release byte for byte, that is written down once and for all, for
the patch, its base and its target are named by what they hold.
"""

import hashlib
import os
import re
import subprocess
import sys
import tempfile
from collections.abc import Sequence
from datetime import datetime
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from sqlalchemy.orm import Session

import neural_diff
from service.blobs import Blobs
from service.core import errors
from service.db.session import Database, insert_into
from service.db.tables import CheckedPatch
from service.publishing import apart
from trust.roles import Family, PatchTarget, Release

WALL_S_MAX = 2 * apart.CPU_S_MAX
SAYS = re.compile(r"(sparse|hashed|exact) (\d{1,9}) ([01])")
SAID_BYTES_MAX = 1 << 16  # what a process apart may say of its end
# Where it finds the kernel, and numpy if it is there: `-S` keeps every other path from it.
SEARCHED = [Path(neural_diff.__file__).parents[1]]
if (numpy := find_spec("numpy")) is not None and numpy.origin is not None:
    SEARCHED.append(Path(numpy.origin).parents[1])


def unchecked(session: Session, family: Family) -> list[PatchTarget]:
    """Return the patches of a family that were never applied here."""
    return [p for p in family.patches if checked(session, p) is None]


def checked(session: Session, patch: PatchTarget) -> CheckedPatch | None:
    """Return what was found out about a patch when it was applied, if it was."""
    return session.get(CheckedPatch, _key(patch))


def check_patches(
    database: Database, blobs: Blobs, family: Family, patches: Sequence[PatchTarget], now: datetime
) -> None:
    """Apply patches of a family, and write down each that makes the release it is signed for.

    Raises:
        MissingArtifact: a patch or its base was not uploaded.
        BadPatch: one does not lead where it is said to lead, or asks for too much.
    """
    for patch in patches:
        target = family.release_of(patch.to_sha256)
        if target is None:
            raise errors.NotAcceptable(f"{patch.path} leads to no release", patch=patch.path)
        found = {**_key(patch), **_check(blobs, patch, target), "checked_at": now}
        with database.writer() as session:
            row = insert_into(session, CheckedPatch).values(**found)
            session.execute(row.on_conflict_do_nothing())


def _check(blobs: Blobs, patch: PatchTarget, target: Release) -> dict[str, Any]:
    for sha256, what in ((patch.sha256, patch.path), (patch.from_sha256, "its base")):
        if blobs.size(sha256) is None:
            raise errors.MissingArtifact(
                f"upload {what} before {patch.path} can be checked", sha256=sha256
            )
    with (
        blobs.open(patch.from_sha256) as base,
        blobs.open(patch.sha256) as file,
        tempfile.TemporaryFile() as made,
        tempfile.TemporaryFile() as said,
    ):
        words = [os.pathsep.join(map(str, SEARCHED)), str(target.bytes), str(file.fileno())]
        try:
            ended = subprocess.run(
                [sys.executable, "-I", "-S", apart.__file__, *words],
                stdin=base,
                stdout=made,
                stderr=said,
                pass_fds=(file.fileno(),),
                env={"OPENBLAS_NUM_THREADS": "1"},
                cwd="/",
                timeout=WALL_S_MAX,
                check=False,
            ).returncode
        except subprocess.TimeoutExpired:
            ended = -1
        said.seek(0)
        told = said.read(SAID_BYTES_MAX).decode(errors="replace").strip()
        made.seek(0)
        sha256 = hashlib.file_digest(made, "sha256").hexdigest()
    if ended < 0:
        told = f"it was ended by signal {-ended}: it takes too long, or too much"
    elif ended == 0 and sha256 != target.sha256:
        told = f"it makes {sha256}, not {target.name}"
    elif ended == 0 and (says := SAYS.fullmatch(told)) and says[1] == patch.kind:
        return {"memory_bytes": int(says[2]), "goes_back": says[3] == "1"}
    elif ended == 0:
        told = f"it is of kind {told.partition(' ')[0]}, and signed as {patch.kind}"
    reason = told.splitlines()[-1][:300] if told else f"it ended with status {ended}"
    raise errors.BadPatch(f"{patch.path} cannot be published: {reason}", patch=patch.path)


def _key(patch: PatchTarget) -> dict[str, str]:
    names = ("sha256", "from_sha256", "to_sha256", "kind")
    return {name: getattr(patch, name) for name in names}
