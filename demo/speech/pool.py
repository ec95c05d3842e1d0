"""The canary pool: shards of recordings in held-out voices and held-out noise.

Every shard is balanced alike: ten home commands without any of the names that came later
(`old`), and five sentences with the names of each update. Files are the same bytes every time:
fixed dates, sorted members.
"""

import json
import random
from hashlib import sha256
from io import BytesIO
from pathlib import Path
from zipfile import ZIP_DEFLATED, ZipFile, ZipInfo

from demo.speech.corpora import CANARY_UTTERANCES, SEED, spoken
from demo.speech.features import SAMPLE_RATE_HZ, write_wav
from demo.speech.grammar import UPDATE_NAMES
from demo.speech.model_file import replace
from demo.speech.shards import MANIFEST, REFERENCES
from demo.speech.synthesis import in_room, noise_bank
from device_agent.scoring import NORMALISER, SCORER

SHARDS = 20
ZIP_DATE = (2026, 1, 1, 0, 0, 0)


def build_pool(build: Path, folder: Path) -> None:
    """Writes `canary.json` and all shards from the canary corpora."""
    rng = random.Random(f"pool/{SEED}")
    noises = noise_bank("canary", spoken(build, "canary-old"), SEED)
    members: list[list[tuple[str, str, str, bytes]]] = [[] for _ in range(SHARDS)]
    for tag in CANARY_UTTERANCES:
        clean = spoken(build, f"canary-{tag}")
        for k, (text, sound) in enumerate(zip(clean.texts, clean.sounds, strict=True)):
            samples, _ = in_room(sound, "canary", noises, rng)
            members[k % SHARDS].append((f"{tag}-{k:03}", text, tag, write_wav(samples)))
    shards = []
    for number, lines in enumerate(members):
        data = _zipped(lines)
        name = f"shard-{number:02}.zip"
        replace(folder / name, data)
        words = sum(len(text.split()) for _, text, _, _ in lines)
        shards.append(
            {
                "id": f"{number:02}",
                "file": name,
                "sha256": sha256(data).hexdigest(),
                "bytes": len(data),
                "utterances": len(lines),
                "ref_words": words,
            }
        )
    manifest = {
        "name": "home-en-1",
        "language": "en",
        "sample_rate": SAMPLE_RATE_HZ,
        "normaliser": NORMALISER,
        "scorer": SCORER,
        "unit": "word",
        "tags": {"old": "home commands"} | {t: " ".join(n) for t, n in UPDATE_NAMES.items()},
        "shards": shards,
    }
    replace(folder / MANIFEST, (json.dumps(manifest, indent=1) + "\n").encode())
    total = sum(len(path.read_bytes()) for path in folder.glob("shard-*.zip"))
    print(f"canary pool: {SHARDS} shards, {total / 1e6:.2f} MB")


def _zipped(lines: list[tuple[str, str, str, bytes]]) -> bytes:
    references = [{"id": i, "text": text, "tag": tag} for i, text, tag, _ in lines]
    files = {f"{i}.wav": wav for i, _, _, wav in lines}
    files[REFERENCES] = (json.dumps(references, indent=1) + "\n").encode()
    buffer = BytesIO()
    with ZipFile(buffer, "w") as archive:
        for name in sorted(files):
            info = ZipInfo(name, ZIP_DATE)
            info.compress_type = ZIP_DEFLATED
            info.external_attr = 0o644 << 16
            info.create_system = 3
            archive.writestr(info, files[name], compresslevel=9)
    return buffer.getvalue()
