"""What every credential is made of: a kind, the id of a row, and a secret.

Secrets are 256 random bits, so a plain SHA-256 at rest is enough; they are compared in constant
time.
"""

import hashlib
import hmac
import re
import secrets

from service.core.errors import Unauthorized

_TOKEN = re.compile(r"(fd|fe|fc)_([0-9a-f]{8,32})_([A-Za-z0-9_-]{43})\Z")


def new_secret(kind: str) -> tuple[str, str, str]:
    """Return an id, the digest of its secret, and the whole credential, which is shown once."""
    row_id, secret = secrets.token_hex(8), secrets.token_urlsafe(32)
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


def same(kept: str | None, digest: str) -> bool:
    """Whether a digest is the one that was kept."""
    return kept is not None and hmac.compare_digest(kept, digest)


def digest_of(secret: str) -> str:
    """Return what is stored of a secret."""
    return hashlib.sha256(secret.encode()).hexdigest()


def unauthorized(detail: str, credential: str) -> Unauthorized:
    """Return a refusal that tells the audit log, and nobody else, whose secret was tried."""
    refusal = Unauthorized(detail)
    match = _TOKEN.match(credential)
    refusal.noted = {"tried": f"{match[1]}_{match[2]}"} if match else {}
    return refusal
