"""A key service that speaks as AWS KMS does: it signs digests, and never gives its key away."""

import base64
import json
from collections.abc import Iterator
from contextlib import contextmanager

from cryptography.hazmat.primitives import hashes, serialization
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.asymmetric.utils import Prehashed

from tests.agent.loopback import Answer, Asked, serving


@contextmanager
def run_key_service(name: str) -> Iterator[str]:
    """Serve one P-256 key under a name; yields the address."""
    key = ec.generate_private_key(ec.SECP256R1())
    der = serialization.Encoding.DER, serialization.PublicFormat.SubjectPublicKeyInfo
    told = {"SigningAlgorithms": ["ECDSA_SHA_256"]}
    told["PublicKey"] = base64.b64encode(key.public_key().public_bytes(*der)).decode()

    def answer(asked: Asked) -> Answer:
        wish, verb = json.loads(asked.body), asked.headers["x-amz-target"].split(".")[1]
        if wish["KeyId"] != name:
            return Answer(400, json.dumps({"__type": "NotFoundException"}).encode())
        if verb == "GetPublicKey":
            return Answer(200, json.dumps({"KeyId": name, **told}).encode())
        assert (verb, wish["MessageType"]) == ("Sign", "DIGEST")
        digest = base64.b64decode(wish["Message"])
        signature = key.sign(digest, ec.ECDSA(Prehashed(hashes.SHA256())))
        return Answer(200, json.dumps({"Signature": base64.b64encode(signature).decode()}).encode())

    with serving(answer, []) as address:
        yield address
