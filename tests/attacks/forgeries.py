"""What a hostile server can put before a device: functions that change what a laboratory serves.

Some need keys that were stolen; those say so by naming who signs.
"""

import gzip
import json
import shutil
from collections.abc import Callable
from copy import deepcopy
from datetime import timedelta
from typing import Any

from securesystemslib.signer import CryptoSigner
from tuf.api.metadata import DelegatedRole, Root, Targets

from tests.agent.conftest import Lab
from tests.agent.hostile import change_bundle
from tests.agent.loopback import Answer
from tests.agent.server_double import FAMILY, MODEL, ServerDouble, digest
from trust import sign
from trust.order import PAYLOAD_TYPE, read_envelope

Forge = Callable[[Lab], Any]
MALLORY = CryptoSigner.generate_ed25519()
TOP = "root targets snapshot timestamp".split()


def spoil(role: str, change: Callable[[Any], Any] = lambda signed: None, *by: str) -> Forge:
    """Sign a changed document as the next of its role, and truly what names it."""

    def forge(lab: Lab) -> None:
        server = lab.server
        document = deepcopy(server.documents[role])
        document.signed.version += 1
        change(document.signed)
        server.put(role, document, *(MALLORY if n == "mallory" else server.keys[n] for n in by))
        if role in ("targets", "family"):
            server.sign_online()
        elif role == "snapshot":
            stamp(server)
        server.offer("r2")

    return forge


def stamp(server: ServerDouble, *by: CryptoSigner) -> None:
    """Sign the next timestamp over the newest snapshot."""
    before = server.documents["timestamp"].signed
    server.put("timestamp", sign.next_timestamp(before, server.bodies["snapshot"], server.now), *by)


# Metadata


def expired(document: Any) -> None:
    document.expires -= timedelta(days=3650)


def old_body(role: str) -> Forge:
    """Serve the body of before under the name of now."""

    def forge(lab: Lab) -> None:
        old = lab.server.files[file_of(lab.server, role)]
        lab.server.publish("r3")
        lab.server.files[file_of(lab.server, role)] = old

    return forge


def file_of(server: ServerDouble, role: str) -> str:
    return next(name for name in server.files if name.endswith(f"{role}.json"))


def older_state(lab: Lab, *, wipe: bool) -> None:
    """Show what there was before, to a device that has seen the new."""
    old = {name: body.decode() for name, body in lab.server.files.items()}
    lab.server.order = lab.server.plan = None
    lab.server.publish("r3")
    assert lab.once() is None
    lab.server.offer("r2")
    lab.server.lie = change_bundle(lambda bundle: bundle.update(metadata=old))
    if wipe:
        shutil.rmtree(lab.config.state_dir / "tuf")


def family_of_before(lab: Lab) -> None:
    """With all online keys: bring the family back that still had r2, whose withdrawal was seen."""
    server = lab.server
    document, body = deepcopy(server.documents["family"]), server.bodies["family"]
    server.order = server.plan = None
    server.publish("r2", status="withdrawn")
    assert lab.once() is None
    server.files = {name: b for name, b in server.files.items() if FAMILY not in name}
    server.files[f"{document.signed.version}.{FAMILY}.json"] = server.bodies["family"] = body
    server.sign_online()
    server.offer("r2")


def new_director(lab: Lab) -> None:
    """The next targets name another director; the old one goes on giving orders."""
    server = lab.server
    before: Targets = server.documents["targets"].signed
    stolen = {"director": MALLORY.public_key}
    server.put("targets", sign.next_targets(before, stolen, server.now))
    server.sign_online()
    server.offer("r2")


def status(word: str) -> Forge:
    def forge(lab: Lab) -> None:
        lab.server.publish("r2", status=word)
        lab.server.offer("r2")

    return forge


def without_r2(family: Targets) -> None:
    del family.targets[f"{MODEL}/r2.model"]


def two_of(key: CryptoSigner) -> Callable[[Any], None]:
    """Let the family need two signatures, the second by this key."""

    def change(targets: Targets) -> None:
        assert targets.delegations is not None and targets.delegations.roles is not None
        role = targets.delegations.roles[FAMILY]
        targets.delegations.keys[key.public_key.keyid] = key.public_key
        role.keyids.append(key.public_key.keyid)
        role.threshold = 2

    return change


def half_a_threshold(lab: Lab) -> None:
    spoil("targets", two_of(MALLORY))(lab)
    spoil("family")(lab)


def twin_of(key: CryptoSigner) -> CryptoSigner:
    """Return the same key under another id."""
    other = CryptoSigner(key._private_key)
    other.public_key.keyid = "ab" * 32
    return other


def twin_of_the_family(lab: Lab) -> None:
    key = lab.server.keys["family"]
    lab.server.keys["twin"] = twin_of(key)
    spoil("targets", two_of(lab.server.keys["twin"]))(lab)
    spoil("family", lambda signed: None, "family", "twin")(lab)


def twin_of_the_timestamp(lab: Lab) -> None:
    key = lab.server.keys["timestamp"]
    twin = twin_of(key)

    def change(root: Root) -> None:
        root.keys[twin.public_key.keyid] = twin.public_key
        root.roles["timestamp"].keyids.append(twin.public_key.keyid)
        root.roles["timestamp"].threshold = 2

    spoil("root", change)(lab)
    stamp(lab.server, key, twin)


def keys_of_mallory(root: Root) -> None:
    root.keys[MALLORY.public_key.keyid] = MALLORY.public_key
    root.roles["root"].keyids = [MALLORY.public_key.keyid]


def named(path: str) -> Callable[[Any], None]:
    """Let the family list r2 under another path."""

    def change(family: Targets) -> None:
        family.targets[path] = family.targets.pop(f"{MODEL}/r2.model")

    return change


def without_family(snapshot: Any) -> None:
    del snapshot.meta[f"{FAMILY}.json"]


def nine_decoys(targets: Targets) -> None:
    assert targets.delegations is not None and targets.delegations.roles is not None
    names = [f"decoy-{number}" for number in range(9)]
    first = {name: DelegatedRole(name, [], 1, False, [f"{MODEL}/*"]) for name in names}
    targets.delegations.roles = {**first, **targets.delegations.roles}


def many_files(family: Targets) -> None:
    sample = family.targets[f"{MODEL}/r2.model"]
    family.targets |= {f"{MODEL}/x{number}.model": sample for number in range(300)}


# Orders


def ordered(**changes: Any) -> Forge:
    return lambda lab: lab.server.offer("r2", **changes)


def after_a_hold(back: int) -> Forge:
    """Give an order under a number that the device has seen, or one before."""

    def forge(lab: Lab) -> None:
        lab.server.offer("r2", hold=True)
        assert lab.once() is None
        lab.server.seq -= back
        lab.server.offer("r2")

    return forge


def order_by(role: str, *, posing: bool = False) -> Forge:
    """Sign the order with the key of another role, under its own id or under the director's."""

    def forge(lab: Lab) -> None:
        key = CryptoSigner(lab.server.keys[role]._private_key)
        if posing:
            key.public_key.keyid = lab.server.keys["director"].public_key.keyid
        lab.server.keys["director"] = key
        lab.server.offer("r2")

    return forge


def payload(change: Callable[[bytes], bytes], kind: str = PAYLOAD_TYPE, told: str = "") -> Forge:
    """Let the director sign a changed payload, of this kind; `told` is the kind on the outside."""

    def forge(lab: Lab) -> None:
        server = lab.server
        assert server.order is not None
        envelope = read_envelope(server.order)
        envelope.payload, envelope.payload_type = change(envelope.payload), kind
        envelope.signatures.clear()
        envelope.sign(server.keys["director"])
        server.order = json.dumps(envelope.to_dict() | {"payloadType": told or kind}).encode()

    return forge


# Bodies


def in_bundle(name: str, body: str) -> Forge:
    """Put a body in the place of a document."""

    def change(bundle: dict[str, Any]) -> None:
        (bundle if name == "order" else bundle["metadata"])[name] = body

    def forge(lab: Lab) -> None:
        lab.server.lie = change_bundle(change)

    return forge


def blob(change: Callable[[bytes], Answer]) -> Forge:
    """Lie about the bytes of r2."""

    def forge(lab: Lab) -> None:
        path = lab.server.releases["r2"].sha256
        lab.server.lie = lambda asked, honest: (
            change(honest.body) if path in asked.path and honest.status == 200 else honest
        )

    return forge


def half_a_chain(lab: Lab) -> None:
    server = lab.server
    server.publish("r3")
    server.make_patch("r1", "r2")
    withheld = server.make_patch("r2", "r3")
    server.offer("r3", [server.patch("r1", "r2"), server.patch("r2", "r3")])
    del server.blobs[withheld.sha256]


def component(served: bytes) -> Forge:
    def forge(lab: Lab) -> None:
        lab.server.publish("r3", components={"lm": b"of r3"})
        lab.server.blobs[digest(b"of r3")] = served
        lab.server.offer("r3")

    return forge


def unlisted(family: Targets) -> None:
    named = {"name": "lm", "sha256": "ab" * 32, "length": 1}
    family.targets[f"{MODEL}/r2.model"].custom["components"] = [named]


def no_shard(lab: Lab) -> None:
    del lab.server.blobs[lab.server.shard["sha256"]]


def inflating(lab: Lab) -> None:
    bomb = Answer(200, gzip.compress(bytes(100 << 20)), {"Content-Encoding": "gzip"})
    lab.server.lie = lambda asked, honest: bomb if "poll" in asked.path else honest
