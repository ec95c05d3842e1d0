"""Run a program and count what it used: processor seconds of it and its children, peak memory.

Linux counts the memory of the process that started a program into the peak of the program, so the
one that starts it must be small: this file run by itself, with nothing but `os` and `json`.
"""

import json
import os
import sys

TYPE_CHECKING = False  # `typing` is too large for the one that starts programs
if TYPE_CHECKING:
    from collections.abc import Sequence

_SMALL = ("-I", "-S")


def run(command: "Sequence[str | os.PathLike[str]]") -> "tuple[float, int]":
    """Run a command to its end; gives its processor seconds and its peak memory in bytes.

    Raises:
        RuntimeError: it failed; the last lines it wrote are in the text.
    """
    import subprocess
    from pathlib import Path

    words = [os.fspath(word) for word in command]
    starter = [sys.executable, *_SMALL, __file__, *words]
    ended = subprocess.run(starter, capture_output=True, text=True, cwd=Path(__file__).parents[1])
    if ended.returncode:
        raise RuntimeError(f"{words[0]} failed: {ended.stderr[-2000:]}")
    used = json.loads(ended.stdout.splitlines()[-1])
    return used["cpu_s"], used["peak_bytes"]


def _main() -> int:
    child = os.posix_spawnp(sys.argv[1], sys.argv[1:], os.environ)
    _, status, used = os.wait4(child, 0)
    figures = {"cpu_s": used.ru_utime + used.ru_stime, "peak_bytes": used.ru_maxrss * 1024}
    sys.stdout.write(json.dumps(figures) + "\n")
    return os.waitstatus_to_exitcode(status) and 1


if __name__ == "__main__":
    sys.exit(_main())
