"""What comes before the first release: a model and its canary set."""

import json
from argparse import Namespace
from pathlib import Path
from typing import Any

from release_manager import arguments, artifacts, show
from release_manager.artifacts import Artifact
from release_manager.client import connect
from release_manager.command import MODEL, arg, command
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.metadata import (
    Desk,
    Entries,
    desk_of,
    fetch,
    update_family,
    update_targets,
)
from release_manager.show import Reply
from trust.roles import NAME, CanaryTarget, Family, family_role
from trust.sign import canary_target

MANIFEST = "canary.json"
MANIFEST_BYTES_MAX = 1 << 20
_SHARD_FIELDS = {"id", "file", "sha256", "bytes", "utterances", "ref_words"}


@command("model create", "asr-en-edge", arg("name", type=arguments.name, help="name of the model"))
def create(args: Namespace, settings: Settings) -> Reply:
    """Make a model, and the key that signs its releases."""
    made = create_model(desk_of(settings), args.name)
    if not (made["made"] or made["delegated"]):
        return Reply(made, [f"model {args.name} is already there; nothing changed"])
    return Reply(made, [f"model {args.name} is there; {made['key']} signs its releases"])


@command("model list", "")
def model_list(args: Namespace, settings: Settings) -> Reply:
    """List the models."""
    answer = connect(settings).get("/v1/models")
    return show.listed(answer, "name created_at releases devices canary_set")


@command(
    "canary publish",
    "asr-en-edge demo/speech/canary",
    MODEL,
    arg("folder", type=Path, help="holds canary.json and its shards"),
)
def canary_publish(args: Namespace, settings: Settings) -> Reply:
    """Upload and sign a model's canary set."""
    return show.published(publish_canary(desk_of(settings), args.model, args.folder))


def create_model(desk: Desk, name: str) -> dict[str, Any]:
    """Make a model on the server and delegate its family to a key in the folder.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: the family belongs to another key, or the server says no.
    """
    if fetch(desk).targets is None:
        raise Refused("the server has no signed targets yet", "run fleetdiff init --publish")
    made = True
    try:
        desk.client.post("/v1/models", {"name": name})
    except Refused as error:
        if error.status != 409:
            raise
        made = False
    delegated = update_targets(desk, [name])
    key = desk.folder.key_file(family_role(name))
    return {"model": name, "made": made, "delegated": delegated, "key": str(key)}


def publish_canary(desk: Desk, model: str, folder: Path) -> dict[str, Any]:
    """Upload a canary set and sign its manifest as the model's.

    Raises:
        Refused: the manifest or a shard is not what it should be.
        Untrusted: what the server shows is not what was signed.
    """
    document, shards = read_canary(folder)
    manifest = artifacts.hash_file(folder / MANIFEST)
    canary = CanaryTarget(str(document["name"]), manifest.sha256, manifest.bytes)
    signed = False

    def change(family: Family | None) -> Entries:
        nonlocal signed
        known = family.canary if family else None
        if known == canary:
            return []
        if known and known.id == canary.id:
            raise Refused(
                f"{model} has a canary set {known.id} with other content",
                f"give the new set a new name in {MANIFEST}: reports must not be mixed",
            )
        for artifact in [*shards, manifest]:
            artifacts.upload(desk.client, artifact)
        signed = True
        return [canary_target(model, canary)]

    family = update_family(desk, model, change)
    return {
        "model": model,
        "canary": canary.id,
        "sha256": canary.sha256,
        "shards": len(shards),
        "published": signed,
        "version": family.version,
    }


def read_canary(folder: Path) -> tuple[dict[str, Any], list[Artifact]]:
    """Return a canary set's manifest and its shards, each compared with the manifest.

    Raises:
        Refused: names what does not fit.
    """
    file = folder / MANIFEST
    fix = f"make the set again, or correct {file}"
    try:
        document = json.loads(file.read_bytes())
        shards = document["shards"]
        fitting = bool(shards) and all(set(shard) == _SHARD_FIELDS for shard in shards)
    except (ValueError, KeyError, TypeError) as error:
        raise Refused(f"{file} is not a canary manifest: {error!r}", fix) from None
    if not fitting or file.stat().st_size > MANIFEST_BYTES_MAX:
        raise Refused(f"{file} lists no shards, or not with {sorted(_SHARD_FIELDS)}", fix)
    if not NAME.match(str(document.get("name"))):
        raise Refused(
            f"{document.get('name')!r} in {file} is not a name for a canary set",
            "use small letters, digits, dot, dash and underscore, for example en-1",
        )
    if len({str(shard["id"]) for shard in shards}) != len(shards):
        raise Refused(f"{file} uses an id for two shards", fix)
    return document, [_read_shard(folder, shard, fix) for shard in shards]


def _read_shard(folder: Path, shard: dict[str, Any], fix: str) -> Artifact:
    name = str(shard["file"])
    if Path(name).name != name or name in ("", ".", ".."):
        raise Refused(f"shard file {name!r} is not in the set's own folder", fix)
    counts = [shard["bytes"], shard["utterances"], shard["ref_words"]]
    if not all(type(count) is int and count > 0 for count in counts):
        raise Refused(f"shard {name} must count bytes, utterances and ref_words, each above 0", fix)
    artifact = artifacts.hash_file(folder / name)
    if (artifact.sha256, artifact.bytes) != (shard["sha256"], shard["bytes"]):
        raise Refused(f"shard {name} is not the file that {MANIFEST} names", fix)
    return artifact
