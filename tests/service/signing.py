"""A device that signs its requests, by RFC 9421 alone: none of our code, and no library."""

import base64
import hashlib
import json
from typing import TYPE_CHECKING, Any

from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
from cryptography.hazmat.primitives.serialization import Encoding, PublicFormat

if TYPE_CHECKING:
    from tests.service.world import World

COVERED = ("@method", "@target-uri", "content-digest")


def public_of(key: Ed25519PrivateKey) -> str:
    return key.public_key().public_bytes(Encoding.Raw, PublicFormat.Raw).hex()


class SigningPhone:
    """Speaks for a device with a key of its own; every part of a signature may be a wrong one."""

    def __init__(self, world: "World", serial: str = "signs") -> None:
        self.world, self.key, self.id = world, Ed25519PrivateKey.generate(), ""
        self.number = 0
        asked = {"model": "asr", "cohort": None}
        self.asked = {
            "enrollment_token": world.ok("POST", "/v1/enrollment-tokens", json=asked)["token"],
            "model": "asr",
            "serial": serial,
            "hardware": "h1",
            "agent_version": "1",
            "public_key": public_of(self.key),
        }

    def enroll(self) -> "SigningPhone":
        reply = self.request("POST", "/enroll", self.asked)
        assert reply.status_code == 201, reply.text
        assert reply.json()["credential"] == "", "a key is all it has"
        self.id = reply.json()["device_id"]
        return self

    def request(self, method: str, path: str, document: Any = None, **wrong: Any) -> Any:
        body = b"" if document is None else json.dumps(document).encode()
        headers = self.headers(method, path, body, **wrong)
        return self.send(method, path, body, headers)

    def send(self, method: str, path: str, body: bytes, headers: dict[str, str]) -> Any:
        where = f"/device/v1{path}"
        content, follow = (
            body or None,
            False,
        )  # a redirect leads to the store, which knows no device
        return self.world.client.request(
            method, where, content=content, headers=headers, follow_redirects=follow
        )

    def headers(
        self,
        method: str,
        path: str,
        body: bytes = b"",
        *,
        key: Ed25519PrivateKey | None = None,
        keyid: str | None = None,
        age_s: float = 0,
        covered: tuple[str, ...] = COVERED,
        host: str = "http://testserver",
        nonce: str | None = None,
        parameters: str = ';created={created};keyid="{keyid}";nonce="{nonce}"',
        label: str = "sig",
    ) -> dict[str, str]:
        """Return the headers of a request that is signed, rightly if nothing is given."""
        self.number += 1
        created = int(self.world.now.timestamp() - age_s)
        key = key or self.key
        digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
        values = {"@method": method, "@target-uri": f"{host}/device/v1{path}"}
        values |= {"content-digest": f"sha-256=:{digest}:", "content-type": "application/json"}
        how = f"({' '.join(json.dumps(name) for name in covered)})" + parameters.format(
            created=created,
            keyid=f"{self.id}.{public_of(key)}" if keyid is None else keyid,
            nonce=created * 1_000_000 + self.number if nonce is None else nonce,
        )
        base = "".join(f'"{name}": {values[name]}\n' for name in covered)
        base += f'"@signature-params": {how}'
        signature = base64.b64encode(key.sign(base.encode())).decode()
        return {
            "Content-Type": "application/json",
            "Content-Digest": values["content-digest"],
            "Signature-Input": f"{label}={how}",
            "Signature": f"{label}=:{signature}:",
        }
