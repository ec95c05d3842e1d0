"""What comes before the first release: a model, who signs it, and its canary set."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path

from release_manager import show
from release_manager.client import hash_file
from release_manager.config import Settings
from release_manager.documents import Entries, update_family, update_targets
from release_manager.errors import Refused
from release_manager.keys import family_key
from release_manager.metadata import Repository, desk_of, fetch, utc_now
from release_manager.show import Reply
from release_manager.signers import holders
from trust.fields import one_of
from trust.order import read_time
from trust.roles import NAME, NORMALISERS, UNITS, CanaryTarget, Family, family_role
from trust.sign import Holders, target_of

MANIFEST = "canary.json"
MANIFEST_BYTES_MAX = 1 << 20


def create(args: Namespace, settings: Settings) -> Reply:
    """Make a model, and say who signs its releases: one key of this folder, or several people's.

    Example:
      fleetdiff model create asr-en-edge
      fleetdiff model create asr-en-edge --add anne.pub --add ben.pub --add carl.pub --threshold 2
    """
    desk, model = desk_of(settings), args.model
    role = family_role(model)
    fetch(desk).targets_in_force(desk.now)
    given = holders(role, (), args.add, args.threshold or 1) if args.add else None
    made = desk.client.post("/v1/models", {"name": model}, none_for=409) is not None

    def changes(repository: Repository) -> dict[str, Holders]:
        known = repository.holders(role)
        if given and known and given != known:
            raise Refused(f"others sign {model} already", f"see fleetdiff key rotate {role} --help")
        signs = given or family_key(desk.folder, role, known)
        return {} if known else {role: signs}

    update = update_targets(desk, changes)
    done = {"model": model, "made": made, "delegated": update.changed and not update.draft}
    if not given:
        done["key"] = str(desk.folder.key_file(role))
    told = update.told()
    return Reply(done | ({"staged": told["staged"]} if update.draft else {}))


def publish_canary(args: Namespace, settings: Settings) -> Reply:
    """Upload and sign a model's canary set.

    Example:
      fleetdiff canary publish asr-en-edge demo/speech/canary
    """
    desk, manifest = desk_of(settings), args.folder / MANIFEST
    name, shards = read_canary(args.folder)
    canary = CanaryTarget(name, *hash_file(manifest))

    def change(family: Family | None) -> Entries:
        known = family.canary if family else None
        if known == canary:
            return []
        if known and known.id == canary.id:
            raise Refused(
                f"{args.model} has a canary set {known.id} with other content",
                f"give the new set a new name in {MANIFEST}: reports must not be mixed",
            )
        for shard in shards:
            desk.client.upload(args.folder / shard.file, shard.sha256)
        desk.client.upload(manifest, canary.sha256)
        return [target_of(args.model, canary)]

    _, update = update_family(desk, args.model, change)
    done = {"model": args.model, "canary": canary.id, "sha256": canary.sha256}
    done |= {"shards": len(shards), **update.told()}
    return Reply(done, show.outcome(done))


@dataclass(frozen=True)
class Shard:
    """One archive of recordings, as the manifest of a canary set lists it."""

    id: int | str
    file: str
    sha256: str
    bytes: int
    utterances: int
    ref_words: int


def read_canary(folder: Path) -> tuple[str, list[Shard]]:
    """Return a canary set's name and its shards, each compared with the manifest.

    Raises:
        Refused: names what does not fit.
    """
    file = folder / MANIFEST
    fix = f"make the set again, or correct {file}"
    try:
        document = json.loads(file.read_bytes())
        shards = [Shard(**shard) for shard in document["shards"]]
        name = str(document.get("name"))
        one_of(NORMALISERS)(document["normaliser"])
        one_of(UNITS)(document["unit"])
        ends = document.get("expires", "")
        if ends and read_time(ends) <= utc_now():
            raise ValueError(f"it expired at {ends}")
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} is not a canary manifest: {error!r}", fix) from None
    if not NAME.match(name):
        raise Refused(
            f"{name!r} in {file} is not a name for a canary set",
            "use small letters, digits, dot, dash and underscore, for example en-1",
        )
    if not shards or file.stat().st_size > MANIFEST_BYTES_MAX:
        raise Refused(f"{file} lists no shards, or is over {MANIFEST_BYTES_MAX} bytes", fix)
    if len({str(shard.id) for shard in shards}) != len(shards):
        raise Refused(f"{file} uses an id for two shards", fix)
    for shard in shards:
        counts = [shard.bytes, shard.utterances, shard.ref_words]
        if not all(type(count) is int and count > 0 for count in counts):
            raise Refused(f"{shard} must count bytes, utterances and words, each above 0", fix)
        if Path(shard.file).name != shard.file or shard.file in ("", ".."):
            raise Refused(f"shard file {shard.file!r} is not in the set's own folder", fix)
        if hash_file(folder / shard.file) != (shard.sha256, shard.bytes):
            raise Refused(f"{shard.file} is not the file that {MANIFEST} names", fix)
    return name, shards
