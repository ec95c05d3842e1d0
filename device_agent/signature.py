"""Signing requests in place of sending a secret (RFC 9421): the key never leaves the device.

Nobody imports this module before there is such a key: it needs `fleetdiff[signature]`.
"""

import secrets
from datetime import UTC, datetime
from types import SimpleNamespace

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat
from http_message_signatures import HTTPMessageSigner, MappingKeyResolver, algorithms

KIND = "fs_"  # what a key is written down as; a secret that is sent is `fc_...`
COVERED = ("@method", "@target-uri", "content-digest")


def new_key() -> str:
    """Return a new private key, as it is written down."""
    return KIND + secrets.token_hex(32)


def public_of(key: str) -> str:
    """Return the public key of a key, in hexadecimal."""
    return _read(key).public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


def sign(
    key: str, device_id: str, method: str, url: str, body: bytes, number: int
) -> dict[str, str]:
    """Return the headers that sign a request.

    Args:
        key: the private key.
        device_id: empty before enrollment.
        method: of the request.
        url: its whole address.
        body: its body, which may be empty.
        number: the time by the server's clock in microseconds, higher in each request.
    """
    headers: dict[str, str] = {}
    message = SimpleNamespace(method=method, url=url, headers=headers)
    keyid = f"{device_id}.{public_of(key)}"
    resolver = MappingKeyResolver(public_keys={}, private_keys={keyid: _read(key)})
    signer = HTTPMessageSigner(signature_algorithm=algorithms.ED25519, key_resolver=resolver)
    signer.sign(
        message,
        key_id=keyid,
        created=datetime.fromtimestamp(number // 1_000_000, UTC),
        nonce=str(number),
        label="s",
        include_alg=False,
        covered_component_ids=COVERED,
        body=body,
    )
    return headers


def _read(key: str) -> Ed25519PrivateKey:
    return Ed25519PrivateKey.from_private_bytes(bytes.fromhex(key.removeprefix(KIND)))
