"""Makes one patch of several, and the patch that goes back (maker side).

Both begin with the files: what a chain leads to, or what a patch started from, is found with the
code of the devices, and the difference of two files is then made as ever. So a squashed chain is
as small as a patch made of its two ends, whatever it went through: hashed and classed sections
compose as well, which bytes alone could not say.
"""

import tempfile
from collections.abc import Sequence
from pathlib import Path

from neural_diff.apply import Progress, apply
from neural_diff.make import make_patch
from neural_diff.patch import Patch


def squash(
    base: Path,
    patches: Sequence[Path],
    out: Path,
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Writes to `out` one patch that does what a chain of patches does to `base`.

    Raises:
        Malformed, WrongBase, Corrupt: as `apply`.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:100]}.", dir=out.parent) as room:
        apply(base, patches, Path(room) / "new")
        return make_patch(base, Path(room) / "new", out, provenance=provenance, progress=progress)


def invert(
    model: Path,
    patch: Path,
    out: Path,
    *,
    provenance: dict[str, str] | None = None,
    progress: Progress | None = None,
) -> Patch:
    """Writes to `out` the patch back from `model`, which `patch` leads to; its base is not needed.

    Raises:
        Unsuitable: only with its base could the patch be undone; make a patch of the two files.
        Malformed, WrongBase, Corrupt: as `apply`.
    """
    with tempfile.TemporaryDirectory(prefix=f".{out.name[:100]}.", dir=out.parent) as room:
        apply(model, [patch], Path(room) / "old", back=True)
        return make_patch(model, Path(room) / "old", out, provenance=provenance, progress=progress)
