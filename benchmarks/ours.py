"""Fleetdiff as a program that makes or applies one patch, to be measured like its peers."""

import sys
from pathlib import Path

ROOT = Path(__file__).parents[1]


def make_command(old: Path, new: Path, buckets: Path | None, patch: Path) -> list[str | Path]:
    """Give the command that makes a patch; with buckets, it writes the new model beside it."""
    words = [sys.executable, "-m", "benchmarks.ours"]
    return [*words, "make", old, new, patch, *([buckets] if buckets else [])]


def apply_command(old: Path, new: Path, *patches: Path, numpy: bool) -> list[str | Path]:
    """Give the command that applies a chain; without numpy, as on a device that has none."""
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT)!r}); from pathlib import Path\n"
        "from neural_diff.apply import apply; from neural_diff.stream import NUMPY\n"
        f"assert NUMPY is {numpy}\n"
        "apply(Path(sys.argv[1]), [*map(Path, sys.argv[3:])], Path(sys.argv[2]))"
    )
    bare = [] if numpy else ["-I", "-S"]
    return [sys.executable, *bare, "-c", program, old, new, *patches]


def idle_command(*, numpy: bool) -> list[str | Path]:
    """Give the command of a process that does nothing, with or without numpy loaded."""
    return [sys.executable, "-c", "import hashlib, numpy"] if numpy else [sys.executable, "-c", ""]


def main() -> None:
    """Make a patch: `make OLD NEW PATCH [BUCKETS]`."""
    from neural_diff.make import make_hashed, make_patch

    old, new, patch, *buckets = map(Path, sys.argv[2:])
    if not buckets:
        make_patch(old, new, patch)
        return
    made = patch.with_suffix(".made")
    make_hashed(old, buckets[0], patch, made)
    if made.read_bytes() != new.read_bytes():
        sys.exit(f"{patch}: leads to another model than docs/patch-format.md says")
    made.unlink()


if __name__ == "__main__":
    main()
