"""The golden patches on a processor of the other order of bytes: `make big-endian`.

Debian's interpreter and numpy for s390x are unpacked under `build/` and run by qemu; nothing is
installed, and nothing but `qemu-user-static` has to be. Both decoders must make every file that the
patches promise. It is no test of the suite, for it downloads 20 MB from Debian.
"""

import json
import os
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parents[2]
ROOM = ROOT / "build" / "s390x"
EMULATOR = "qemu-s390x-static"
PACKAGES = (
    "libblas3 libbz2-1.0 libc6 libcrypt1 libexpat1 libffi8 libgcc-s1 libgfortran5 liblapack3 "
    "liblzma5 libpython3.11-minimal libpython3.11-stdlib libssl3 libstdc++6 libuuid1 python3-numpy "
    "python3.11-minimal zlib1g"
).split()


def main() -> int:
    """Unpack what is missing, and run this file there; return its exit code."""
    if shutil.which(EMULATOR) is None:
        sys.exit(f"{EMULATOR} is not installed: apt install qemu-user-static")
    unpacked = ROOM / "root"
    if not unpacked.exists():
        _unpack(unpacked)
    libraries = unpacked / "usr/lib/s390x-linux-gnu"
    asked = {
        "LD_LIBRARY_PATH": f"{libraries}/blas:{libraries}/lapack",
        "PYTHONPATH": str(unpacked / "usr/lib/python3/dist-packages"),
        "PYTHONDONTWRITEBYTECODE": "1",
    }
    words = [word for name, value in asked.items() for word in ("-E", f"{name}={value}")]
    python = unpacked / "usr/bin/python3.11"
    return subprocess.call([EMULATOR, *words, "-L", unpacked, python, __file__, "inside"])


def _unpack(target: Path) -> None:
    """Fetch and unpack the packages, with lists of apt's own that leave the machine's alone."""
    for name in ("lists/partial", "cache/archives/partial", "unpacking"):
        (ROOM / name).mkdir(parents=True, exist_ok=True)
    chosen = {
        "APT::Architecture": "s390x",
        "APT::Architectures": "s390x",
        "Dir::State::lists": str(ROOM / "lists"),
        "Dir::Cache": str(ROOM / "cache"),
        "APT::Sandbox::User": "",
    }
    apt = ["apt-get", "-qq", *(f"-o{name}={value}" for name, value in chosen.items())]
    subprocess.run([*apt, "update"], check=True)
    subprocess.run([*apt, "download", *PACKAGES], cwd=ROOM, check=True)
    for package in sorted(ROOM.glob("*.deb")):
        subprocess.run(["dpkg-deb", "-x", package, ROOM / "unpacking"], check=True)
        package.unlink()
    (ROOM / "unpacking").rename(target)


def inside() -> int:
    """Apply every golden patch by both decoders; return 1 if one does not give its file."""
    sys.path.insert(0, str(ROOT))
    from neural_diff import stream
    from neural_diff.apply import apply
    from neural_diff.errors import NeuralDiffError

    assert sys.byteorder == "big"
    wanted: dict[str, str] = {}
    for path in HERE.glob("sha256*.json"):
        wanted |= json.loads(path.read_text())
    wrong = []
    for stream.NUMPY in (False, True):
        decoder = "numpy" if stream.NUMPY else "standard library"
        for name, digest in sorted(wanted.items()):
            with tempfile.TemporaryDirectory() as room:
                files = HERE / f"{name}.base", [HERE / f"{name}.patch"], Path(room) / "new"
                try:
                    found = apply(*files).sha256
                except NeuralDiffError as error:
                    found = str(error)
            if found != digest:
                wrong.append(f"{name}, {decoder}: {found}")
    machine = f"{os.uname().machine}, {sys.byteorder}-endian"
    told = f"{machine}: {len(wanted)} golden patches by two decoders, {len(wrong)} wrong"
    sys.stdout.write("\n".join([*wrong, told]) + "\n")
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(inside() if sys.argv[1:] == ["inside"] else main())
