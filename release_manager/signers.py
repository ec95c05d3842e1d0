"""Keys wherever they lie, by one URI each: files with a passphrase, tokens, key services.

`file:` keys are read here; everything else is securesystemslib's, whose signers need no private
key on this machine: awskms:, azurekms:, gcpkms:, hsm: (PKCS#11; the module's path in PYKCS11LIB)
and hv: (Vault). A passphrase or PIN is asked for on the terminal, or taken from
FLEETDIFF_PASSPHRASE where there is none; it is never an argument, which other users could see.
"""

import getpass
import os
import sys
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import parse_qsl, urlsplit

from securesystemslib.signer import (
    AWSSigner,
    AzureSigner,
    GCPSigner,
    HSMSigner,
    Key,
    Signature,
    Signer,
    VaultSigner,
)

from release_manager.errors import Refused, Usage
from trust.keys import read_key
from trust.sign import Holders, load_signer

SECRET_VARIABLE = "FLEETDIFF_PASSPHRASE"
INSTALL = "check the URI, and that the library for its scheme is there: securesystemslib[SCHEME]"


def open_signer(uri: str, allowed: Iterable[Key] | None = None) -> Signer:
    """Return the signer at a URI, which must be one of these keys if any are given.

    Raises:
        Refused: it cannot be opened, or is none of them.
    """
    if (path := file_of(uri)) is not None:
        signer: Signer = load_file(path)
    else:
        uri, public = _import(uri)
        with _asking(uri, "cannot be opened", INSTALL):
            signer = Signer.from_priv_key_uri(uri, public, ask_secret)
    if allowed is None:
        return signer
    for key in allowed:
        if key.keyval == signer.public_key.keyval and key.scheme == signer.public_key.scheme:
            return signer
    raise Refused(
        f"the key at {uri} ({signer.public_key.keyid[:12]}…) may not sign this",
        "give the URI of one of the keys that fleetdiff draft list names",
    )


def signature_of(uri: str, signer: Signer, payload: bytes) -> Signature:
    """Return the signature that the key at a URI makes.

    Raises:
        Refused: it makes none.
    """
    with _asking(uri, "did not sign", "check the PIN, the token or the service"):
        return signer.sign(payload)


def public_key(uri: str) -> tuple[str, Key]:
    """Return a URI as it is best written down, and the public key there.

    Raises:
        Refused: it cannot be opened.
    """
    if (path := file_of(uri)) is not None:
        return f"file:{path}", load_file(path).public_key
    return _import(uri)


def file_of(uri: str) -> Path | None:
    """Return the path of a file's URI, or of a text without a scheme; None for another scheme."""
    scheme, colon, rest = uri.partition(":")
    if not colon or not scheme.isalnum():
        return Path(uri)
    return Path(rest) if scheme == "file" else None


def load_file(path: Path) -> Signer:
    """Return the signer in a key file.

    Raises:
        Refused: it holds no key, or the passphrase is wrong.
        OSError: it cannot be read.
    """
    try:
        return load_signer(path, lambda: ask_secret(f"passphrase of {path}"))
    except ValueError as error:
        raise Refused(str(error), "give the file of a private key, and its passphrase") from None


def ask_secret(what: str) -> str:
    """Return a passphrase or a PIN.

    Raises:
        Usage: there is neither a terminal nor the variable.
    """
    if secret := os.environ.get(SECRET_VARIABLE):
        return secret
    if not sys.stdin.isatty():
        raise Usage(f"{what} is needed", f"run this at a terminal, or set {SECRET_VARIABLE}")
    return getpass.getpass(f"{what}: ")


def read_public(path: Path) -> Key:
    """Return the public key that `fleetdiff key show --json` printed.

    Raises:
        Refused: it is none.
        OSError: the file cannot be read.
    """
    try:
        return read_key(path)
    except ValueError as error:
        raise Refused(str(error), "make it: fleetdiff key show URI --json") from None


def holders(role: str, keys: Iterable[Key], files: Iterable[Path], threshold: int) -> Holders:
    """Return who signs for a role: these keys, and those in files of public keys.

    Raises:
        Refused: a file holds none, or they could not sign.
    """
    try:
        return Holders((*keys, *map(read_public, files)), threshold)
    except ValueError as error:
        raise Refused(f"{role}: {error}", "name each key once, and fewer than there are") from None


def shown(uri: str, key: Key) -> dict[str, Any]:
    """Return a public key as its owner gives it to the others."""
    return {
        "uri": uri,
        "keyid": key.keyid,
        "keytype": key.keytype,
        "scheme": key.scheme,
        "public": key.keyval["public"],
    }


def _import(uri: str) -> tuple[str, Key]:
    """Ask a token or a service for its public key; the URI that comes back names all it takes."""
    parts = urlsplit(uri)
    label = dict(parse_qsl(parts.query)).get("label")
    with _asking(uri, "cannot be opened", INSTALL):
        match parts.scheme:
            case "hsm":
                keyid = int(parts.path) if parts.path else None
                return HSMSigner.import_(keyid, label, ask_secret)
            case "awskms":
                return AWSSigner.import_(parts.path)
            case "gcpkms":
                return GCPSigner.import_(parts.path)
            case "azurekms":
                name = parts.path.removeprefix("/keys/").partition("/")[0]
                return AzureSigner.import_(parts.netloc.partition(".")[0], name)
            case "hv":
                return VaultSigner.import_(parts.path.partition("/")[0])
    schemes = "file, awskms, azurekms, gcpkms, hsm, hv"
    raise Usage(f"{uri!r} is not the URI of a key", f"its scheme is one of {schemes}")


@contextmanager
def _asking(uri: str, failure: str, advice: str) -> Iterator[None]:
    """Refuse what a token or a service does not do; their libraries share no class of errors."""
    try:
        yield
    except Refused:
        raise
    except Exception as error:
        why = f"{type(error).__name__}: {error}".rstrip(": ")
        raise Refused(f"the key at {uri} {failure} ({why})", advice) from error
