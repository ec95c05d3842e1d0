"""What comes before the first release: keys, a root on the server, a model and its canary set."""

import json
from argparse import Namespace
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from release_manager import metadata, show
from release_manager.client import connect, hash_file
from release_manager.config import Settings
from release_manager.errors import Refused, Usage
from release_manager.keys import KeyFolder, make_keys
from release_manager.metadata import Desk, Entries, desk_of
from release_manager.show import Reply
from trust.roles import NAME, CanaryTarget, Family, family_role
from trust.sign import canary_target

MANIFEST = "canary.json"
MANIFEST_BYTES_MAX = 1 << 20


def init(args: Namespace, settings: Settings) -> Reply:
    """Make the keys, and give their root to the server if one is configured.

    Example:
      fleetdiff init --dev --keys keys
    """
    if not (args.dev or args.publish):
        raise Usage(
            "the key ceremony with several people is not there yet",
            "use fleetdiff init --dev for development; do not trust production devices to it",
        )
    folder = KeyFolder(settings.keys)
    done: dict[str, Any] = {"keys": str(folder.path), "published": False, "on_server": False}
    done["made"] = make_keys(folder, metadata.utc_now()) if args.dev else []
    if done["made"]:
        done["give"] = f"{folder.path / 'online'} to the server, root.json to every device"
    later = f"fleetdiff init --publish --keys {folder.path}"
    if args.publish or (settings.server and settings.token):
        desk = Desk(connect(settings), folder, metadata.utc_now())
        try:
            root = metadata.publish_root(desk)
            done |= {"published": metadata.update_targets(desk) or root, "on_server": True}
        except Refused as error:
            if done["made"]:
                error.advice = f"the keys are made; later run {later}"
            raise
    else:
        done["later"] = later
    return Reply(done)


def create(args: Namespace, settings: Settings) -> Reply:
    """Make a model, and the key that signs its releases.

    Example:
      fleetdiff model create asr-en-edge
    """
    desk, model = desk_of(settings), args.model
    metadata.fetch(desk).targets_in_force(desk.now)
    made = desk.client.post("/v1/models", {"name": model}, none_for=409) is not None
    delegated = metadata.update_targets(desk, model)
    key = str(desk.folder.key_file(family_role(model)))
    done = {"model": model, "made": made, "delegated": delegated, "key": key}
    return Reply(done)


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
        return [canary_target(args.model, canary)]

    family, published = metadata.update_family(desk, args.model, change)
    done = {"model": args.model, "canary": canary.id, "sha256": canary.sha256}
    done |= {"shards": len(shards), "published": published, "version": family.version}
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
