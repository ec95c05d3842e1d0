"""Applies one patch apart: in a process that may open nothing, start nothing and use little.

`patches` runs this file: the base is its standard input, the new file its standard output, the
patch a third descriptor, and nothing else is open. It imports what it needs, locks itself up, and
only then reads the first byte of the patch. It need not be believed: `patches` hashes what it made.
What it says of a patch, beside that, only sways the planner: its kind, the bytes that applying it
holds, and whether it goes back.

    python -I -S apart.py SEARCHED BYTES_MAX PATCH
"""

import os
import resource
import sys
from contextlib import suppress
from importlib import import_module
from pathlib import Path

MEMORY_BYTES_MAX = 1 << 30  # of address space; a patch needs about 200 MB of it, with numpy
CPU_S_MAX = 600


def lock_up(bytes_max: int) -> None:
    """Give up what an applier does not need, for good: files, sockets, children, memory, time."""
    limits = {
        resource.RLIMIT_AS: MEMORY_BYTES_MAX,
        resource.RLIMIT_CPU: CPU_S_MAX,
        resource.RLIMIT_FSIZE: bytes_max,
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,  # for everybody but root
        resource.RLIMIT_NOFILE: 0,  # what is open stays open: no file, pipe or socket besides
    }
    for limit, most in limits.items():
        resource.setrlimit(limit, (most, most))
    os.nice(10)  # who polls comes first


def main(searched: str, bytes_max: str, patch_fd: str) -> None:
    """Apply the patch, or end with status 1 and the reason on the standard error."""
    sys.path += searched.split(os.pathsep)
    from neural_diff import stream
    from neural_diff.apply import write_new
    from neural_diff.errors import Corrupt, NeuralDiffError, Unsuitable
    from neural_diff.link import Link, check_size, damaged
    from neural_diff.patch import read_patch
    from neural_diff.section import open_bytes

    for room in ("decode_numpy", "view_numpy") if stream.NUMPY else ():
        import_module(f"neural_diff.{room}")  # nothing can be imported later
    named = Path("the base"), Path("the patch")
    files = os.fdopen(0, "rb"), os.fdopen(int(patch_fd), "rb"), os.fdopen(1, "r+b")
    lock_up(int(bytes_max))
    base, file, made = files
    goes_back = False
    try:
        patch = read_patch(file, os.fstat(file.fileno()).st_size)
        for number in damaged(patch, file):
            raise Corrupt(f"section {number}: its bytes do not have their digest")
        check_size(base, patch, named[0])
        for _ in write_new(base, [Link(patch, file, named[1])], made, named[0], False):
            pass
        made.flush()
        with suppress(Unsuitable):
            goes_back = bool(patch.back)
    except (NeuralDiffError, MemoryError, OSError) as error:
        sys.exit(f"{type(error).__name__}: {error}")
    held = open_bytes(patch.regions, patch.sections)
    sys.stderr.write(f"{patch.kind} {held} {int(goes_back)}")


if __name__ == "__main__":
    main(*sys.argv[1:])
