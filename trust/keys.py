"""Which public keys may be named in a signed document: strong ones, in one spelling each.

Two keys that look different must be different: python-tuf counts keys by their ids, and whoever
holds one key in two spellings would meet a threshold of two alone.
"""

import json
from pathlib import Path

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, EllipticCurvePublicKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat, load_pem_public_key
from securesystemslib.signer import Key, SSlibKey

from trust.errors import require
from trust.fields import SHA256

ED25519, P256 = "ed25519", "ecdsa-sha2-nistp256"
KEY_TYPES = {ED25519: "ed25519", P256: "ecdsa"}
_PRIME = 2**255 - 19
_D = -121665 * pow(121666, -1, _PRIME)
# The points of order 1, 2, 4 and 8: under such a "key" one signature is good for every message.
_SMALL_ORDER = {0, 1, _PRIME - 1} | {
    int.from_bytes(bytes.fromhex(text), "little")
    for text in (
        "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
        "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    )
}


def read_key(file: Path) -> Key:
    """Return the public key that `fleetdiff key show --json` printed to a file.

    Raises:
        OSError: it cannot be read.
        ValueError: it is none.
    """
    try:
        document = json.loads(file.read_bytes())
        keyval = {"public": document["public"]}
        return SSlibKey(document["keyid"], document["keytype"], document["scheme"], keyval)
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise ValueError(f"{file} is no public key: {error!r}") from error


def check_key(key: Key) -> None:
    """Refuse a key that is weak, of another kind, or written in another way than ours.

    Raises:
        Untrusted: E_SIG.
    """
    kind = f"{key.keytype} {key.scheme}"
    require(KEY_TYPES.get(key.scheme) == key.keytype, "E_SIG", f"a key of kind {kind} is not taken")
    public = str(key.keyval.get("public"))
    good = _is_good_ed25519(public) if key.scheme == ED25519 else _is_good_p256(public)
    plain = SHA256.match(key.keyid) and set(key.keyval) == {"public"}
    good = good and bool(plain) and not key.unrecognized_fields
    require(good, "E_SIG", f"key {key.keyid[:64]!r} is weak, or written in an unusual way")


def _is_good_ed25519(public: str) -> bool:
    """Whether this is a point of the curve, in its only form, and not one of small order."""
    if not SHA256.match(public):  # 32 bytes in hex look like a digest
        return False
    y = int.from_bytes(bytes.fromhex(public), "little") & ((1 << 255) - 1)
    x_squared = (y * y - 1) * pow(_D * y * y + 1, -1, _PRIME)
    on_curve = pow(x_squared, (_PRIME - 1) // 2, _PRIME) == 1
    return y < _PRIME and y not in _SMALL_ORDER and on_curve


def _is_good_p256(public: str) -> bool:
    try:
        key = load_pem_public_key(public.encode())
    except (ValueError, UnsupportedAlgorithm):
        return False
    if not isinstance(key, EllipticCurvePublicKey) or not isinstance(key.curve, SECP256R1):
        return False
    form = key.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    return public.strip() == form.strip()
