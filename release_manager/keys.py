"""The folder of keys, and `init`, which fills it.

    DIR/offline/root.pem  targets.pem  family-<model>.pem    stay on the release manager's machine
    DIR/online/snapshot.pem  timestamp.pem  director.pem     go to the server's publisher
    DIR/root.json                                            version 1; what devices are born with
    DIR/seen.json                                            newest metadata this folder verified

Nothing is ever overwritten. `root.json` is written last, so its presence means that every key was
made; until then running `init` again makes what is missing.
"""

import json
from dataclasses import dataclass
from datetime import datetime
from pathlib import Path

from securesystemslib.signer import CryptoSigner
from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root

from release_manager.config import replace_file
from release_manager.errors import Refused
from trust.roles import OFFLINE_ROLES, ONLINE_ROLES, family_role
from trust.sign import generate_key, load_signer, new_root, sign

_TOP_LEVEL = ("root", "targets", "snapshot", "timestamp")


@dataclass(frozen=True)
class KeyFolder:
    """Names the files in a folder of keys, and reads them."""

    path: Path

    @property
    def root_file(self) -> Path:
        """The pinned root."""
        return self.path / "root.json"

    @property
    def seen_file(self) -> Path:
        """What was the newest of each document when it was last verified."""
        return self.path / "seen.json"

    def key_file(self, role: str) -> Path:
        """The private key of a role."""
        return self.path / ("online" if role in ONLINE_ROLES else "offline") / f"{role}.pem"

    def signer(self, role: str) -> CryptoSigner:
        """Return the signer of a role.

        Raises:
            Refused: there is no such key, or its file holds none.
        """
        file = self.key_file(role)
        try:
            return load_signer(file)
        except FileNotFoundError:
            raise Refused(
                f"{file} is missing: the key of {role}",
                "give the right folder with --keys, or restore the key from its backup",
            ) from None
        except ValueError as error:
            raise Refused(
                str(error), "restore the key from its backup, or remove it if it was never used"
            ) from None

    def pinned_root(self) -> bytes:
        """Return the pinned root's bytes.

        Raises:
            Refused: there is none.
        """
        try:
            return self.root_file.read_bytes()
        except FileNotFoundError:
            raise Refused(
                f"{self.path} holds no root.json",
                "give the right folder with --keys, or make one: fleetdiff init --dev --keys DIR",
            ) from None


def make_keys(folder: KeyFolder, now: datetime) -> list[str]:
    """Make what is missing of a development folder and return the names of what was made.

    Raises:
        Refused: a file that is there does not fit the others; nothing is overwritten.
    """
    if folder.root_file.exists():
        _check_folder(folder)
        return []
    made = []
    for role in (*OFFLINE_ROLES, *ONLINE_ROLES):
        file = folder.key_file(role)
        file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
        if not file.exists():
            generate_key(file)
            made.append(str(file.relative_to(folder.path)))
    keys = {role: folder.signer(role).public_key for role in _TOP_LEVEL}
    root = sign(new_root(keys, now, dev=True), [folder.signer("root")])
    replace_file(folder.root_file, root)
    folder.root_file.chmod(0o644)
    return [*made, folder.root_file.name]


def family_signer(folder: KeyFolder, model: str, delegated: list[str] | None) -> CryptoSigner:
    """Return the signer of a model's family; its key is made if nobody holds one yet.

    Args:
        folder: where the key lies.
        model: whose family.
        delegated: ids of the keys that targets names for it, or None if it names none.

    Raises:
        Refused: the family belongs to a key that is not in this folder.
    """
    role = family_role(model)
    if delegated is None and not folder.key_file(role).exists():
        generate_key(folder.key_file(role))
    signer = folder.signer(role)
    if delegated is not None and signer.public_key.keyid not in delegated:
        raise Refused(
            f"{folder.key_file(role)} is not the key that targets names for {role}",
            "restore the right key from its backup; a family's key is not replaced silently",
        )
    return signer


def read_seen(folder: KeyFolder) -> dict[str, tuple[int, str]]:
    """Return role -> (version, SHA-256) of the newest documents that were verified before."""
    try:
        stored = json.loads(folder.seen_file.read_bytes())
        return {role: (int(version), str(digest)) for role, (version, digest) in stored.items()}
    except FileNotFoundError:
        return {}
    except (ValueError, TypeError, AttributeError):
        raise Refused(
            f"{folder.seen_file} is damaged",
            "remove it if you are sure that the server was not set back meanwhile",
        ) from None


def write_seen(folder: KeyFolder, seen: dict[str, tuple[int, str]]) -> None:
    """Keep what was verified."""
    replace_file(folder.seen_file, json.dumps(seen, sort_keys=True).encode())


def _check_folder(folder: KeyFolder) -> None:
    try:
        root = Metadata[Root].from_bytes(folder.pinned_root())
        root.verify_delegate("root", root)
    except (RepositoryError, ValueError) as error:
        raise Refused(
            f"{folder.root_file} is not a signed root: {error}",
            "restore it from a device or a backup, or use another folder",
        ) from None
    for role in _TOP_LEVEL:
        # A key that is not here was moved where it belongs, which is as it should be.
        if folder.key_file(role).exists():
            keyid = folder.signer(role).public_key.keyid
            if keyid not in root.signed.roles[role].keyids:
                raise Refused(
                    f"{folder.key_file(role)} is not the key that root.json names",
                    "restore the key from its backup, or use another folder",
                )
