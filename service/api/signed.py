"""Requests that a device signs (RFC 9421), in place of a secret that whoever reads it may use.

Nothing is negotiated: one signature, by Ed25519, over exactly these components, with exactly these
parameters. `keyid` is the device's id and its public key, so that what the database keeps of a key
is a digest, as of a secret. `nonce` is `created` in microseconds, and higher in each request: the
highest one so far is all that has to be remembered of a device, whichever process answers.
"""

import re
from datetime import datetime
from types import SimpleNamespace
from typing import Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
from fastapi import Request
from http_message_signatures import (
    HTTPMessageSignaturesException,
    HTTPMessageVerifier,
    HTTPSignatureKeyResolver,
    InvalidSignature,
    algorithms,
)

from service.core.credential import Shown, digest_of
from service.core.errors import Unauthorized

COVERED = ("@method", "@target-uri", "content-digest")
PARAMETERS = {"created", "keyid", "nonce"}
AGE_S_MAX = 300  # of a signature, by the server's clock
HEADER_LETTERS_MAX = 1024
AHEAD_S_MAX = 5  # of that clock: whoever is further on locks themselves out until then
_KEYID = re.compile(r"([0-9a-f]{0,32})\.([0-9a-f]{64})\Z")
_NUMBER = re.compile(r"[1-9]\d{0,17}\Z", re.ASCII)
_HEADERS = ("content-digest", "signature-input", "signature")
_HOW = "sign the request with this device's key and the server's time, as docs/protocol.md says"


class _NamedKeys(HTTPSignatureKeyResolver):
    def resolve_public_key(self, key_id: str) -> Ed25519PublicKey | None:
        named = _KEYID.match(key_id)
        return Ed25519PublicKey.from_public_bytes(bytes.fromhex(named[2])) if named else None


class _Verifier(HTTPMessageVerifier):
    """The library's verifier, by the server's own clock."""

    def __init__(self, now: datetime) -> None:
        super().__init__(signature_algorithm=algorithms.ED25519, key_resolver=_NamedKeys())
        self._now_s = now.timestamp()

    def validate_created_and_expires(self, sig_input: Any, max_age: object = None) -> None:
        created = sig_input.params.get("created")
        if type(created) is not int or not -AHEAD_S_MAX <= self._now_s - created <= AGE_S_MAX:
            raise InvalidSignature("`created` is too long ago, or still to come")


async def read_signature(request: Request, now: datetime) -> Shown:
    """Return what the signature of a request shows; a device without an id yet has an empty one.

    Raises:
        Unauthorized: it is not signed as it must be; the audit log is told why.
    """
    url = request.app.state.settings.public_url
    url = url or f"{request.url.scheme}://{request.headers.get('host', '')}"
    query = request.scope["query_string"].decode("latin-1")
    url += request.scope["raw_path"].decode("latin-1") + (f"?{query}" if query else "")
    lines = {name: request.headers.getlist(name) for name in _HEADERS}
    headers = {name: ", ".join(values) for name, values in lines.items() if values}
    if max(map(len, headers.values()), default=0) > HEADER_LETTERS_MAX:
        raise Unauthorized(_HOW)  # before anybody reads it
    # As the library reads a request; of a header that came twice, it gets both.
    message = SimpleNamespace(method=request.method, url=url, headers=headers)
    body = await request.body()
    try:
        (found,) = _Verifier(now).verify(message, max_age=None, body=body)
        covered = [name.strip('"') for name in found.covered_components]
        named = _KEYID.match(str(found.parameters["keyid"]))
        number = _NUMBER.match(str(found.parameters.get("nonce")))
        if covered != [*COVERED, "@signature-params"] or set(found.parameters) != PARAMETERS:
            raise InvalidSignature("other components or parameters than are demanded")
        if not (named and number and int(number[0]) // 1_000_000 == found.parameters["created"]):
            raise InvalidSignature("`nonce` is not `created` in microseconds")
    except HTTPMessageSignaturesException as error:
        refusal = Unauthorized(_HOW)
        refusal.noted = {"signature": str(error)[:200]}
        raise refusal from error
    return Shown(named[1], digest_of(named[2]), int(number[0]))
