"""The folder of keys, and what it remembers.

    DIR/offline/root.pem  targets.pem  family-<model>.pem    stay on the release manager's machine
    DIR/online/snapshot.pem  timestamp.pem  director.pem     go to the server's publisher
    DIR/root.json                                            version 1; what devices are born with
    DIR/seen.json                                            newest metadata this folder verified

Nothing is ever overwritten. `root.json` is written last, so its presence means that every key was
made; until then running `init` again makes what is missing.
"""

import json
from collections.abc import Collection
from dataclasses import dataclass
from datetime import datetime
from hashlib import sha256
from pathlib import Path
from typing import Any

from securesystemslib.signer import Signer
from tuf.api.metadata import Metadata, Root, Targets

from release_manager.config import PUBLIC, recall, replace_file
from release_manager.errors import Refused
from release_manager.signers import load_file
from trust.accept import check_signed, read_metadata
from trust.errors import Untrusted
from trust.roles import OFFLINE_ROLES, ONLINE_ROLES, TOP_LEVEL_ROLES
from trust.sign import Holders, generate_key, new_root, sign


@dataclass(frozen=True)
class KeyFolder:
    """A folder of keys."""

    path: Path

    @property
    def root_file(self) -> Path:
        """The pinned root."""
        return self.path / "root.json"

    def key_file(self, role: str) -> Path:
        """The private key of a role."""
        return self.path / ("online" if role in ONLINE_ROLES else "offline") / f"{role}.pem"

    def signer(self, role: str, keyids: Collection[str] = ()) -> Signer:
        """Return the signer of a role.

        Raises:
            Refused: there is no such key, its file holds none, or not one of `keyids` if given any.
        """
        file = self.key_file(role)
        advice = f"restore the key of {role} from its backup, or give the right folder with --keys"
        try:
            signer = load_file(file)
        except FileNotFoundError:
            raise Refused(f"{file} is missing: the key of {role}", advice) from None
        if keyids and signer.public_key.keyid not in keyids:
            raise Refused(f"{file} is not the key that was signed for {role}", advice)
        return signer

    def pinned_root(self) -> bytes:
        """Return the pinned root's bytes, which vouch for themselves.

        Raises:
            Refused: there is none, or it is damaged.
        """
        try:
            body = self.root_file.read_bytes()
            read_signed("root", body)
        except FileNotFoundError:
            raise Refused(
                f"{self.path} holds no root.json",
                "give the right folder with --keys, or make one: fleetdiff init --keys DIR",
            ) from None
        except Untrusted as error:
            advice = "let others sign it, or restore it from a device or a backup"
            raise Refused(f"{error} ({self.root_file})", advice) from None
        return body

    def check_seen(self, role: str, version: int, body: bytes) -> None:
        """Compare a verified document (version 0: none) with the newest seen, and remember it.

        Raises:
            Untrusted: it is older than, or another than, what was seen.
            Refused: the memory is damaged.
        """
        file = self.path / "seen.json"
        seen = recall(file, "remove it if you are sure that the server was not set back")
        known, digest = seen.get(role, (0, ""))
        found = sha256(body).hexdigest() if version else ""
        if version > known:
            document = json.dumps(seen | {role: (version, found)}, sort_keys=True)
            replace_file(file, document.encode())
        elif version < known:
            message = f"{role} is at {version}, but {known} was seen before"
            raise Untrusted("E_ROLLBACK_META", message)
        elif found != digest:
            raise Untrusted("E_EQUIVOCATION", f"two different documents are {role} {version}")


def make_keys(folder: KeyFolder, now: datetime) -> list[str]:
    """Make what is missing of a development folder and return the names of what was made.

    Raises:
        Refused: a file that is there does not fit the others; nothing is overwritten.
    """
    if folder.root_file.exists():
        root = read_signed("root", folder.pinned_root()).signed
        for role in TOP_LEVEL_ROLES:
            # A key that is not here was moved where it belongs, which is as it should be.
            if folder.key_file(role).exists():
                folder.signer(role, root.roles[role].keyids)
        return []
    made = []
    for role in (*OFFLINE_ROLES, *ONLINE_ROLES):
        file = folder.key_file(role)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            generate_key(file)
            made.append(str(file.relative_to(folder.path)))
    keys = {role: folder.signer(role).public_key for role in TOP_LEVEL_ROLES}
    root = sign(new_root(keys, now, dev=True), [folder.signer("root")])
    replace_file(folder.root_file, root, PUBLIC)
    return [*made, folder.root_file.name]


def family_key(folder: KeyFolder, role: str, known: Holders | None) -> Holders:
    """Return who signs a family; a key of its own is made if nobody does yet.

    Args:
        folder: where the key lies.
        role: of the family.
        known: who signs by the targets in force.

    Raises:
        Refused: the key in the folder is none of theirs.
    """
    here = folder.key_file(role).exists()
    if known is None and not here:
        generate_key(folder.key_file(role))
    if known is None or here:
        public = folder.signer(role, [key.keyid for key in known.keys] if known else ()).public_key
    return known or Holders((public,))


def read_signed(role: str, body: bytes, delegator: Root | Targets | None = None) -> Metadata[Any]:
    """Return a document that its delegator (None: itself, a root) asked for and signed.

    Raises:
        Untrusted: E_SIG.
    """
    document = read_metadata(role, body)
    check_signed(role, delegator or document.signed, document)
    return document
