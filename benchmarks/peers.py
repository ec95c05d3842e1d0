"""What else makes a patch of two files, each run as a program of its own.

Some take a minute for 24 MB, so what a peer made of two files is kept in `build/bench/peers` by
the digests of the files and its command, and shown as `cached` when it is met again. Every patch is
applied and its result compared before it counts.
"""

import importlib.util
import json
import shutil
import sys
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from hashlib import file_digest, sha256
from pathlib import Path

from benchmarks import process
from benchmarks.rows import FOLDER

KEPT = FOLDER / "peers"
Command = list[str | Path]
_OLD, _NEW, _PATCH = Path("OLD"), Path("NEW"), Path("PATCH")  # in the name of what is kept

_HDIFF = """
import sys, hdiffpatch
from pathlib import Path
old, new, out = map(Path, sys.argv[1:])
plain = hdiffpatch.diff(old.read_bytes(), new.read_bytes(), "none", validate=False)
packed = [hdiffpatch.recompress(plain, name) for name in ("zstd", "lzma2", "bzip2")]
out.write_bytes(min(packed, key=len))
"""
_HPATCH = """
import sys, hdiffpatch
from pathlib import Path
old, patch, out = map(Path, sys.argv[1:])
out.write_bytes(hdiffpatch.apply(old.read_bytes(), patch.read_bytes()))
"""


@dataclass(frozen=True)
class Peer:
    """A program that makes and applies patches; the commands take old, new, patch and code bits."""

    name: str
    needs: str  # a program, or a Python module if there is no Debian package
    debian: str
    make: Callable[[Path, Path, Path, int], Command]
    apply: Callable[[Path, Path, Path, int], Command]


@dataclass(frozen=True)
class Made:
    """What a peer made of two files, and what making and applying it used."""

    patch_bytes: int
    make_s: float
    make_peak_bytes: int
    apply_s: float
    apply_peak_bytes: int
    cached: bool = False


def _zstd(*words: str | Path) -> Command:
    return ["zstd", "-q", "-f", "--long=27", *words]


def _xdelta(*words: str | Path, window: str = "134217728") -> Command:
    return ["xdelta3", "-f", "-B", window, *words]


def _handmade(way: str) -> dict[str, Callable[[Path, Path, Path, int], Command]]:
    program = [sys.executable, "-m", "benchmarks.handmade"]
    return {
        "make": lambda old, new, patch, bits: [*program, "make", way, str(bits), old, new, patch],
        "apply": lambda old, new, patch, bits: [*program, "apply", way, str(bits), old, patch, new],
    }


PEERS = [
    Peer(
        "bsdiff",
        "bsdiff",
        "bsdiff",
        lambda old, new, patch, _: ["bsdiff", old, new, patch],
        lambda old, new, patch, _: ["bspatch", old, new, patch],
    ),
    Peer(
        "xdelta3",
        "xdelta3",
        "xdelta3",
        lambda old, new, patch, _: _xdelta("-e", "-9", "-S", "lzma", "-s", old, new, patch),
        lambda old, new, patch, _: _xdelta("-d", "-s", old, patch, new),
    ),
    Peer(
        "zstd",
        "zstd",
        "zstd",
        lambda old, new, patch, _: _zstd("-19", f"--patch-from={old}", new, "-o", patch),
        lambda old, new, patch, _: _zstd("-d", f"--patch-from={old}", patch, "-o", new),
    ),
    Peer(
        "hdiffpatch",
        "hdiffpatch",
        "",
        lambda old, new, patch, _: [sys.executable, "-c", _HDIFF, old, new, patch],
        lambda old, new, patch, _: [sys.executable, "-c", _HPATCH, old, patch, new],
    ),
    Peer(
        "detools",
        "detools",
        "",
        lambda old, new, patch, _: [
            *(sys.executable, "-m", "detools", "create_patch", "-c", "bz2"),
            *(old, new, patch),
        ],
        lambda old, new, patch, _: [
            sys.executable,
            "-m",
            "detools",
            "apply_patch",
            old,
            patch,
            new,
        ],
    ),
    Peer("index", "zstandard", "", **_handmade("index")),
    Peer("bitmap", "zstandard", "", **_handmade("bitmap")),
]
NAMES = [peer.name for peer in PEERS]
CODE_BITS = {"int8": 8, "int4": 4, "fp16": 16, "bf16": 16}


def present(without: Sequence[str]) -> list[Peer]:
    """Give the peers to measure; ends the program if one of them is not installed."""
    wanted = [peer for peer in PEERS if peer.name not in without]
    missing = [peer for peer in wanted if not _is_there(peer)]
    if not missing:
        return wanted
    debian = sorted({peer.debian for peer in missing if peer.debian})
    said = [f"not installed: {', '.join(peer.name for peer in missing)}."]
    if debian:
        said.append(f"Try: apt-get install {' '.join(debian)}")
    if len(debian) < len({peer.needs for peer in missing}):
        said.append("Try: pip install --require-hashes -r requirements/bench.txt (make does)")
    said.append("Or leave them out: " + " ".join(f"--without {peer.name}" for peer in missing))
    sys.exit("\n".join(said))


def measure(peer: Peer, old: Path, new: Path, kind: str) -> Made:
    """Let a peer make and apply its patch, unless it has done so before."""
    kept = kept_patch(peer, old, new, kind)
    facts = kept.with_suffix(".json")
    if facts.exists() and kept.exists():
        return Made(**json.loads(facts.read_text()), cached=True)
    KEPT.mkdir(parents=True, exist_ok=True)
    part, result, bits = kept.with_suffix(".part"), kept.with_suffix(".new"), CODE_BITS[kind]
    part.unlink(missing_ok=True)
    make_s, make_peak = process.run(peer.make(old, new, part, bits))
    apply_s, apply_peak = process.run(peer.apply(old, result, part, bits))
    if result.read_bytes() != new.read_bytes():
        sys.exit(f"{peer.name}: its patch of {old.name} does not lead to {new.name}")
    result.unlink()
    made = Made(part.stat().st_size, make_s, make_peak, apply_s, apply_peak)
    part.replace(kept)
    found = {name: value for name, value in asdict(made).items() if name != "cached"}
    facts.write_text(json.dumps(found) + "\n")
    return made


def kept_patch(peer: Peer, old: Path, new: Path, kind: str) -> Path:
    """Give where the patch of a peer lies once `measure` has made it."""
    words = [str(word) for word in peer.make(_OLD, _NEW, _PATCH, CODE_BITS[kind])]
    spelled = "\0".join([*words, *map(_digest, (old, new))]).replace(sys.executable, "python")
    return KEPT / f"{peer.name}-{sha256(spelled.encode()).hexdigest()[:16]}.patch"


def _digest(path: Path) -> str:
    with path.open("rb") as file:
        return file_digest(file, "sha256").hexdigest()


def _is_there(peer: Peer) -> bool:
    if peer.debian:
        return shutil.which(peer.needs) is not None
    return importlib.util.find_spec(peer.needs) is not None
