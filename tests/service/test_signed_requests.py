"""RFC 9421: this server takes no signature in place of a credential, so none can be forged.

The option is not offered (docs/adr/0013-who-is-calling.md). What is tested is that nothing comes
to rely on the headers by accident: a request that is signed, rightly or in any wrong way, is one
without a credential, and one with a credential is judged by that alone.
"""

import base64
import hashlib
import json

import pytest
from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

from tests.service.world import World, refused

KEY, OTHER = Ed25519PrivateKey.generate(), Ed25519PrivateKey.generate()
PATH, DAY_S = "/device/v1/events", 86_400
BODY = json.dumps({"events": []}).encode()
COVERED = ("@method", "@target-uri", "content-digest")


def signed(
    world: World,
    keyid: str,
    *,
    key: Ed25519PrivateKey = KEY,
    age_s: int = 0,
    covered: tuple[str, ...] = COVERED,
    uri: str = PATH,
    body: bytes = BODY,
    label: str = "sig1",
) -> dict[str, str]:
    """Return the headers of a request that is signed as RFC 9421 says."""
    digest = base64.b64encode(hashlib.sha256(body).digest()).decode()
    values = {"@method": "POST", "@target-uri": f"http://testserver{uri}"}
    values["content-digest"] = f"sha-256=:{digest}:"
    created = int(world.now.timestamp()) - age_s
    names = " ".join(f'"{name}"' for name in covered)
    how = f'({names});created={created};keyid="{keyid}";alg="ed25519";nonce="n"'
    base = "".join(f'"{name}": {values[name]}\n' for name in covered)
    base += f'"@signature-params": {how}'
    signature = base64.b64encode(key.sign(base.encode())).decode()
    return {
        "Content-Type": "application/json",
        "Content-Digest": values["content-digest"],
        "Signature-Input": f"{label}={how}",
        "Signature": f"{label}=:{signature}:",
    }


@pytest.mark.attack("A08")
def test_no_signature_is_taken_in_place_of_a_credential(world_sqlite: World) -> None:
    world = world_sqlite
    phone = world.enroll("serial-1")
    right = signed(world, phone.id)
    second = signed(world, phone.id, key=OTHER, label="sig2")
    both = {name: f"{right[name]}, {second[name]}" for name in ("Signature", "Signature-Input")}
    tried = {
        "right in every way": right,
        "and repeated": right,
        "another body": signed(world, phone.id, body=b"{}"),
        "another address": signed(world, phone.id, uri="/device/v1/poll"),
        "signed a day ago": signed(world, phone.id, age_s=DAY_S),
        "signed tomorrow": signed(world, phone.id, age_s=-DAY_S),
        "without the body": signed(world, phone.id, covered=COVERED[:2]),
        "without the address": signed(world, phone.id, covered=(COVERED[0], COVERED[2])),
        "a second signature": right | both,
        "another key": signed(world, phone.id, key=OTHER),
        "another device's name": signed(world, "0" * 16),
        "no key's name": signed(world, ""),
    }
    before = world.rows()
    for how, headers in tried.items():
        reply = world.client.post(PATH, content=BODY, headers=headers)
        assert reply.status_code == 401, how
        refused(reply, 401, "unauthorized")
        wrong = headers | {"Authorization": f"Bearer {phone.credential[:-43]}{'A' * 43}"}
        refused(world.client.post(PATH, content=BODY, headers=wrong), 401, "unauthorized")
    assert world.rows() == before
    mine = {"Authorization": f"Bearer {phone.credential}"}
    worst = signed(world, "0" * 16, key=OTHER, age_s=DAY_S, body=b"{}")
    assert world.client.get("/device/v1/poll", headers=mine | worst).status_code == 200
