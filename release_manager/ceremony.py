"""Keys: making and showing them, the first root and targets, and who signs for a role later."""

import tomllib
from argparse import Namespace
from datetime import datetime
from pathlib import Path
from typing import Any

from release_manager import metadata, show
from release_manager.client import connect
from release_manager.config import PUBLIC, Settings, replace_file
from release_manager.documents import publish_root, update_root, update_targets
from release_manager.errors import Refused, Usage
from release_manager.keys import KeyFolder, make_keys
from release_manager.metadata import Desk, desk_of
from release_manager.show import Reply
from release_manager.signers import ask_secret, file_of, holders, public_key, shown
from trust.accept import accept, canonical, review
from trust.errors import Untrusted
from trust.roles import DIRECTOR, TOP_LEVEL_ROLES
from trust.sign import Holders, generate_key, new_root, next_targets


def init(args: Namespace, settings: Settings) -> Reply:
    """Make the first root and targets, and give them to the server if one is configured.

    For a product, from a ceremony file: who holds the keys of each role, and how many must sign.
    Each of them then runs `fleetdiff sign root.json` and `fleetdiff sign targets.json`.

        [root]
        threshold = 2
        keys = ["anne.pub", "ben.pub", "carl.pub"]   # from fleetdiff key make or key show
        [targets]                                    # likewise; other keys, of other people
        [snapshot]                                   # one key each, held by the publisher
        [timestamp]
        [director]

    Example:
      fleetdiff init --ceremony ceremony.toml --keys keys
      fleetdiff init --dev --keys keys
    """
    if not (args.dev or args.publish or args.ceremony):
        raise Usage(
            "who holds the keys is not said",
            "use fleetdiff init --ceremony FILE, or --dev for one person who only tries it",
        )
    folder, now = KeyFolder(settings.keys), metadata.utc_now()
    done: dict[str, Any] = {"keys": str(folder.path), "published": False, "on_server": False}
    later = f"fleetdiff init --publish --keys {folder.path}"
    if args.ceremony:
        done["made"] = _prepare(folder, _read_ceremony(args.ceremony), now)
        done["sign"] = [f"fleetdiff sign {folder.path / name} --key URI" for name in done["made"]]
        return Reply(done | {"later": later})
    done["made"] = make_keys(folder, now) if args.dev else []
    if done["made"]:
        done["give"] = f"{folder.path / 'online'} to the server, root.json to every device"
    if args.publish or (settings.server and settings.token):
        desk = Desk(connect(settings), folder, now)
        try:
            root = publish_root(desk)
            done |= {"published": _publish_targets(desk) or root, "on_server": True}
        except Refused as error:
            if done["made"]:
                error.advice = f"the keys are made; later run {later}"
            raise
    else:
        done["later"] = later
    return Reply(done)


def make(args: Namespace, settings: Settings) -> Reply:
    """Make an Ed25519 key in a file, and its public part in FILE.pub for the ceremony.

    Keys of tokens and services are made by their own tools; `key show` shows them. A passphrase
    is stretched by bcrypt, about a second a try; a key on a token cannot even be copied.

    Example:
      fleetdiff key make anne.pem --passphrase
    """
    path = file_of(args.uri)
    if path is None:
        raise Usage(f"{args.uri} is not a file", "make the key with the tool of its token")
    public = path.with_name(f"{path.name}.pub")
    passphrase = ask_secret(f"a passphrase for {path}") if args.passphrase else ""
    if args.passphrase and ask_secret("the same again") != passphrase:
        raise Refused("these are two passphrases", "run the command again")
    try:
        document = shown(f"file:{path}", generate_key(path, passphrase))
    except FileExistsError:
        raise Refused(f"{path} is there already", "a key is never overwritten") from None
    replace_file(public, show.json_text(document).encode(), PUBLIC)
    return Reply({**document, "give": str(public)})


def show_key(args: Namespace, settings: Settings) -> Reply:
    """Show the public key at a URI: FILE, hsm:, awskms:, azurekms:, gcpkms: or hv:.

    Example:
      fleetdiff key show "hsm:2?label=anne" --json
    """
    return Reply(shown(*public_key(args.uri)))


def rotate(args: Namespace, settings: Settings) -> Reply:
    """Change who signs for a role: root, targets, snapshot, timestamp, director or family-MODEL.

    Makes the next root or targets; a new root takes signatures of the old holders and of the new.
    Without any change, root or targets themselves are signed again as they are, for a new year.

    Example:
      fleetdiff key rotate family-asr-en-edge --add dora.pub --remove KEYID
      fleetdiff key rotate root
    """
    desk, role = desk_of(settings), args.role
    repository = metadata.fetch(desk)
    known = repository.holders(role)
    if known is None:
        raise Refused(f"nobody signs for {role} yet", "give a role that there is")
    strangers = set(args.remove) - {key.keyid for key in known.keys}
    if strangers:
        ids = ", ".join(key.keyid for key in known.keys)
        raise Refused(f"{role} has no key {', '.join(sorted(strangers))}", f"it has {ids}")
    kept = [key for key in known.keys if key.keyid not in args.remove]
    new = holders(role, kept, args.add, args.threshold or known.threshold)
    if role == "targets" and new == known:
        # Who signs targets stands in root, which has nothing to do with when targets expire.
        director = repository.holders(DIRECTOR)
        update = update_targets(desk, lambda _: {DIRECTOR: director} if director else {})
    elif role in TOP_LEVEL_ROLES:
        update = update_root(desk, {role: new})
    else:
        update = update_targets(desk, lambda _: {role: new})
    done = {"role": role, "threshold": new.threshold, "keys": [key.keyid for key in new.keys]}
    done |= update.told()
    return Reply(done, show.outcome(done))


def _prepare(folder: KeyFolder, held: dict[str, Holders], now: datetime) -> list[str]:
    """Write the first root and targets, unsigned, and return their names."""
    top = {role: held[role] for role in TOP_LEVEL_ROLES}
    director = {DIRECTOR: held[DIRECTOR]}
    root, targets = new_root(top, now, dev=False), next_targets(None, director, now)
    bodies = {"root": canonical(root), "targets": canonical(targets)}
    try:
        review("root", bodies["root"], targets.signed, None, now)
        review("targets", bodies["targets"], root.signed, None, now)
    except Untrusted as error:
        raise Refused(f"this ceremony breaks a rule: {error.message}", "correct its file") from None
    if folder.root_file.exists():
        raise Refused(f"{folder.root_file} is there already", "use another folder: --keys DIR")
    folder.path.mkdir(mode=0o700, parents=True, exist_ok=True)
    for role in ("targets", "root"):  # root last: while it is missing, nothing was begun
        replace_file(folder.path / f"{role}.json", bodies[role], PUBLIC)
    return ["root.json", "targets.json"]


def _read_ceremony(file: Path) -> dict[str, Holders]:
    roles = (*TOP_LEVEL_ROLES, DIRECTOR)
    try:
        document = tomllib.loads(file.read_text())
        if set(document) != set(roles):
            raise ValueError(f"it must have exactly {', '.join(roles)}")
        return {
            role: holders(
                role, (), [file.parent / name for name in asked["keys"]], asked.get("threshold", 1)
            )
            for role, asked in document.items()
        }
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise Refused(
            f"{file} is no ceremony: {error!r}", "see the example in fleetdiff init --help"
        ) from None


def _publish_targets(desk: Desk) -> bool:
    """Upload the targets of a ceremony, or sign the first ones; return whether that was needed."""
    file, repository = desk.folder.path / "targets.json", metadata.fetch(desk)
    if repository.targets or not file.exists():
        return update_targets(desk, lambda _: {}).changed
    body = file.read_bytes()
    try:
        accept("targets", body, repository.root.signed, None, desk.now)
    except Untrusted as error:
        advice = f"let others sign it: fleetdiff sign {file} --key URI"
        raise Refused(f"{file} cannot be published: {error.message}", advice) from None
    desk.client.put("/v1/metadata/targets", body)
    return True
