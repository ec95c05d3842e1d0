"""What every credential is made of: a kind, the id of a row, and a secret.

Secrets are 256 random bits, so a plain SHA-256 at rest is enough; they are compared in constant
time.
"""

import hashlib
import hmac
import re
import secrets
from base64 import b64decode
from dataclasses import dataclass

from cryptography.exceptions import UnsupportedAlgorithm
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from cryptography.x509 import load_der_x509_certificate
from securesystemslib.signer import SSlibKey

from service.core.errors import Unauthorized
from trust.keys import ED25519, check_key

_TOKEN = re.compile(r"(fd|fe|fc)_([0-9a-f]{8,32})_([A-Za-z0-9_-]{43})\Z")
_SHA256 = re.compile(r"[0-9A-Fa-f]{64}\Z")


@dataclass(frozen=True)
class Shown:
    """What a device shows of itself: a secret that it sent, or a key that it signed with.

    Attributes:
        device_id: who it says it is.
        sha256: the digest of the secret, or of the public key.
        number: of a signed request; None: a secret was sent.
    """

    device_id: str
    sha256: str
    number: int | None = None


def new_secret(kind: str, row_id: str = "") -> tuple[str, str, str]:
    """Return an id, the digest of its secret, and the whole credential, which is shown once."""
    row_id, secret = row_id or secrets.token_hex(8), secrets.token_urlsafe(32)
    return row_id, digest_of(secret), f"{kind}_{row_id}_{secret}"


def sent(kind: str, credential: str) -> tuple[str, str]:
    """Return the id in a credential of this kind, and the digest of its secret.

    Raises:
        Unauthorized: it is none of this kind.
    """
    match = _TOKEN.match(credential)
    if match is None or match[1] != kind:
        raise unauthorized("the credential is missing or malformed", credential)
    return match[2], digest_of(match[3])


def shown_by(credential: str) -> Shown:
    """Return what a device shows that sends its credential.

    Raises:
        Unauthorized: it is no device's.
    """
    return Shown(*sent("fc", credential))


def same(kept: str | None, told: str | None) -> bool:
    """Whether two digests or secrets are there and are one."""
    if kept is None or told is None:
        return False
    return hmac.compare_digest(kept.encode(), told.encode())


def read_certificate(text: str) -> str | None:
    """Return the digest that a proxy names, or that of the public key in a certificate.

    None for anything that is neither 64 hexadecimal digits nor a DER certificate as a byte
    sequence of RFC 8941.
    """
    if _SHA256.match(text):
        return text.lower()
    try:
        certificate = load_der_x509_certificate(b64decode(text[1:-1], validate=True))
        key = certificate.public_key().public_bytes(Encoding.DER, PublicFormat.SubjectPublicKeyInfo)
    except (ValueError, UnsupportedAlgorithm):
        return None
    return hashlib.sha256(key).hexdigest() if text[0] == text[-1] == ":" else None


def digest_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def check_public_key(public_key: str) -> str:
    """Return what is stored of the Ed25519 key, in hexadecimal, with which a device will sign.

    Raises:
        Untrusted: it is weak, or none.
    """
    key_sha256 = digest_of(public_key)
    check_key(SSlibKey(key_sha256, ED25519, ED25519, {"public": public_key}))
    return key_sha256


def unauthorized(detail: str, credential: str) -> Unauthorized:
    """Return a refusal that tells the audit log, and nobody else, whose secret was tried."""
    refusal = Unauthorized(detail)
    match = _TOKEN.match(credential)
    refusal.noted = {"tried": f"{match[1]}_{match[2]}"} if match else {}
    return refusal
