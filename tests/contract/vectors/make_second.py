"""Made the golden files of version 2, and of classes of runs, which came with it (`…-v2`).

python -m tests.contract.vectors.make_second DIRECTORY
"""

import hashlib
import json
import sys
from pathlib import Path

import numpy as np

from tests.contract.vectors.make_more import hashed, moves, nibbles, resized, ways
from tests.unit import reference


def main(room: Path) -> None:
    """Writes bases and patches, and the digests of what they lead to."""
    rng = np.random.default_rng(2028)
    made = {
        "ways-int4-v2": ways(rng, "int", 4),
        "ways-int8-v2": ways(rng, "int", 8),
        "ways-f32-v2": ways(rng, "f32", 32),
        "blocked-int4-v2": nibbles(rng, 4, "low"),
        "hashed-v2": hashed(rng, 900, 5),
        "moves-v2": moves(rng),
        "grown-v2": resized(rng, 70),
    }
    digests = {}
    for name, (old, new, patch) in made.items():
        assert reference.applied(old, patch) == new
        (room / f"{name}.base").write_bytes(old)
        (room / f"{name}.patch").write_bytes(patch)
        digests[name] = hashlib.sha256(new).hexdigest()
    (room / "sha256-v2.json").write_text(json.dumps(digests, indent=1, sort_keys=True) + "\n")


if __name__ == "__main__":
    main(Path(sys.argv[1]))
