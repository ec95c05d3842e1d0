"""What the service refuses to publish: metadata uploads, by the ids of the attack list."""

import json
from collections.abc import Callable
from datetime import timedelta
from typing import Any

import pytest
from tuf.api.metadata import DelegatedRole, Delegations, Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from tests.unit.signed_world import DAY, FAMILY, MODEL, NOW, TOP, SignedWorld, signer, twin
from trust import sign
from trust.accept import METADATA_BYTES_MAX
from trust.accept import accept as judge
from trust.errors import Untrusted


@pytest.fixture
def world() -> SignedWorld:
    return SignedWorld()


def accept(world: SignedWorld, role: str, body: bytes) -> Metadata[Any]:
    """Offer a document to a service that holds everything this world has signed."""
    current = world.bodies.get(role)
    if role == "root":
        return judge(role, body, None, current, NOW)
    above = Metadata[Any].from_bytes(world.bodies["root" if role == "targets" else "targets"])
    return judge(role, body, above.signed, current, NOW)


def following(world: SignedWorld, role: str) -> Any:
    """Return the next version of a document, unsigned, still to be spoiled."""
    return {"root": world.root, "targets": world.targets, FAMILY: world.family}[role]()


def signed(world: SignedWorld, role: str, document: Any, *by: str) -> bytes:
    return sign.sign(Metadata(document), [signer(n) for n in by] or world.signers[role])


def refused(world: SignedWorld, role: str, body: bytes, *codes: str) -> None:
    with pytest.raises(Untrusted) as caught:
        accept(world, role, body)
    assert caught.value.code in codes, caught.value


ROLES = ("root", "targets", FAMILY)
each_role = pytest.mark.parametrize("role", ROLES)


@each_role
def test_the_next_version_is_accepted(world: SignedWorld, role: str) -> None:
    body = signed(world, role, following(world, role))
    assert accept(world, role, body).signed.version == 2


def test_the_first_of_each_is_accepted(world: SignedWorld) -> None:
    bodies, world.bodies = world.bodies, {}
    for role in ROLES:
        accept(world, role, bodies[role])
        world.bodies[role] = bodies[role]


@pytest.mark.attack("A15")
@each_role
@pytest.mark.parametrize("version", [1, 3])
def test_a_version_that_skips_or_repeats_is_refused(
    world: SignedWorld, role: str, version: int
) -> None:
    document = following(world, role)
    document.version = version
    refused(world, role, signed(world, role, document), "E_ROLLBACK_META")
    refused(world, role, world.bodies[role], "E_ROLLBACK_META")


@pytest.mark.attack("A15")
@each_role
@pytest.mark.parametrize("ahead", [3650 * DAY, -DAY, timedelta(0), 3 * DAY, 401 * DAY])
def test_an_expiry_too_far_or_past_is_refused(
    world: SignedWorld, role: str, ahead: timedelta
) -> None:
    document = following(world, role)
    document.expires = NOW + ahead
    refused(world, role, signed(world, role, document), "E_CLOCK")


@pytest.mark.attack("M42")
@each_role
@pytest.mark.parametrize(
    "spoil",
    [
        lambda b: json.dumps(json.loads(b)).encode(),
        lambda b: json.dumps(json.loads(b), indent=1, sort_keys=True).encode(),
        lambda b: b + b"\n",
        lambda b: b"\xef\xbb\xbf" + b,
        lambda b: b.replace(b'"version":2', b'"version":2,"version":2'),
        lambda b: b.replace(b'"version":2', b'"version":2.0'),
        lambda b: b.replace(b'"version":2', b'"version":1e400'),
        lambda b: b.replace(b'"version":2', b'"version":"2"'),
        lambda b: b.replace(b'"version":2', b'"version":99999999999999999999'),
        lambda b: b[:-1] + b',"unknown":1}',
        lambda b: b[:-1],
        lambda b: b"[" * 60_000,
        lambda b: b"",
        lambda b: b"null",
    ],
)
@pytest.mark.attack("M42")
def test_m42_any_other_form_of_the_bytes_is_refused(
    world: SignedWorld, role: str, spoil: Callable[[bytes], bytes]
) -> None:
    body = spoil(signed(world, role, following(world, role)))
    refused(world, role, body, "E_SIG", "E_ROLLBACK_META")


@each_role
def test_a_document_with_unsigned_members_is_refused(world: SignedWorld, role: str) -> None:
    metadata = Metadata(following(world, role), unrecognized_fields={"zz": 1})
    refused(world, role, sign.sign(metadata, world.signers[role]), "E_SIG")


@each_role
def test_a_float_inside_the_signature_is_refused(world: SignedWorld, role: str) -> None:
    document = json.loads(signed(world, role, following(world, role)))
    document["signed"]["x-note"] = 1.5
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    refused(world, role, body, "E_SIG")


@each_role
@pytest.mark.parametrize("sig", [5, None, {}, "zz", ""])
def test_a_signature_that_is_no_signature_is_refused(
    world: SignedWorld, role: str, sig: Any
) -> None:
    document = json.loads(signed(world, role, following(world, role)))
    document["signatures"][0]["sig"] = sig
    body = json.dumps(document, sort_keys=True, separators=(",", ":")).encode()
    refused(world, role, body, "E_SIG")


@each_role
def test_a_wrong_key_is_refused(world: SignedWorld, role: str) -> None:
    with pytest.raises(Untrusted, match="0 of 1"):
        accept(world, role, signed(world, role, following(world, role), "mallory"))
    others = [name for name in world.signers if name != role]
    refused(world, role, signed(world, role, following(world, role), *others), "E_SIG")


@each_role
def test_a_document_of_another_type_is_refused(world: SignedWorld, role: str) -> None:
    other = world.targets() if role == "root" else world.root()
    refused(world, role, signed(world, role, other), "E_SIG")
    refused(world, role, world.bodies["timestamp"], "E_SIG")


def test_too_many_bytes_and_a_role_that_nobody_delegated_are_refused(world: SignedWorld) -> None:
    refused(world, FAMILY, b" " * (METADATA_BYTES_MAX + 1), "E_SIZE")
    refused(world, "family-tts", world.bodies[FAMILY], "E_SIG")


@pytest.mark.attack("M33", "M34")
def test_m33_m34_half_a_threshold_and_a_twin_do_not_sign(world: SignedWorld) -> None:
    world.signers[FAMILY] = [signer("family a"), signer("family b")]
    world.thresholds[FAMILY] = 2
    world.sign_targets()
    refused(world, FAMILY, signed(world, FAMILY, world.family(), "family a"), "E_SIG")
    accept(world, FAMILY, signed(world, FAMILY, world.family()))
    world.signers[FAMILY] = [signer("family a"), twin("family a")]
    world.sign_targets()
    refused(world, FAMILY, signed(world, FAMILY, world.family()), "E_SIG")


@pytest.mark.attack("M32")
def test_m32_a_root_needs_the_old_keys_and_the_new(world: SignedWorld) -> None:
    world.signers["root"] = [signer("root anew")]
    refused(world, "root", signed(world, "root", world.root(), "root anew"), "E_SIG")
    refused(world, "root", signed(world, "root", world.root(), "root"), "E_SIG")
    accept(world, "root", signed(world, "root", world.root(), "root", "root anew"))


@pytest.mark.attack("M34")
@pytest.mark.parametrize("role", TOP)
def test_m34_a_root_that_gives_one_key_two_ids_is_refused(world: SignedWorld, role: str) -> None:
    world.signers[role] = [signer(role), twin(role)]
    refused(world, "root", signed(world, "root", world.root(), "root"), "E_SIG")


@pytest.mark.parametrize("role", ["targets", "snapshot", "timestamp"])
def test_a_root_that_gives_two_roles_one_key_is_refused(world: SignedWorld, role: str) -> None:
    world.signers[role] = [signer("root")]
    refused(world, "root", signed(world, "root", world.root()), "E_SIG")
    world.signers[role] = [twin("root")]
    refused(world, "root", signed(world, "root", world.root()), "E_SIG")


@pytest.mark.parametrize("name", ["root", "targets", "snapshot", "timestamp", FAMILY])
def test_a_director_key_that_serves_in_another_role_is_refused(
    world: SignedWorld, name: str
) -> None:
    world.signers["director"] = [signer(name)]
    refused(world, "targets", signed(world, "targets", world.targets()), "E_SIG")


@pytest.mark.attack("M34")
@pytest.mark.parametrize("role", ["director", FAMILY])
def test_m34_targets_that_give_one_key_two_ids_are_refused(world: SignedWorld, role: str) -> None:
    world.signers[role] = [signer(role), twin(role)]
    refused(world, "targets", signed(world, "targets", world.targets()), "E_SIG")


def with_threshold(document: Any, role: str, threshold: Any) -> Any:
    roles = document.roles if isinstance(document, Root) else document.delegations.roles
    roles[role].threshold = threshold
    return document


@pytest.mark.attack("M35")
@pytest.mark.parametrize("threshold", [0, -1, True, 1.0, "2", 2, 1 << 60, None])
@pytest.mark.parametrize(
    ("document", "role"), [("root", "timestamp"), ("root", "root"), ("targets", FAMILY)]
)
def test_m35_a_threshold_that_no_device_could_meet_is_refused(
    world: SignedWorld, document: str, role: str, threshold: Any
) -> None:
    metadata = Metadata(with_threshold(following(world, document), role, threshold))
    try:
        body = sign.sign(metadata, world.signers[document])
    except Exception:  # tuf will not sign a float: send the unsigned form
        body = metadata.to_bytes(JSONSerializer(compact=True))
    refused(world, document, body, "E_SIG")


@pytest.mark.parametrize("document", ["root", "targets"])
def test_a_role_that_names_a_missing_key_is_refused(world: SignedWorld, document: str) -> None:
    spoiled = following(world, document)
    roles = spoiled.roles if document == "root" else spoiled.delegations.roles
    role = roles["snapshot" if document == "root" else FAMILY]
    role.keyids.append("00" * 32)
    refused(world, document, signed(world, document, spoiled), "E_SIG")


def test_top_level_targets_that_sign_a_file_are_refused(world: SignedWorld) -> None:
    document = world.targets()
    document.targets = dict(world.entries)
    refused(world, "targets", signed(world, "targets", document), "E_NOT_RELEASED")


def test_a_nested_delegation_is_refused(world: SignedWorld) -> None:
    document = world.family()
    document.delegations = Delegations({}, {})
    refused(world, FAMILY, signed(world, FAMILY, document), "E_NOT_RELEASED")


@pytest.mark.attack("M36")
@pytest.mark.parametrize(
    ("name", "paths", "terminating"),
    [
        ("family-tts", ["*/*"], True),
        ("family-tts", [f"{MODEL}/*"], True),
        ("family-tts", ["tts/*", f"{MODEL}/*"], True),
        ("family-tts", ["tts/*"], False),
        ("family-tts", [], True),
        ("family-../x", ["../x/*"], True),
        ("family-", ["/*"], True),
        ("tts", ["tts/*"], True),
        ("family-director", ["director/*"], True),
        ("snapshot", ["snapshot/*"], True),
    ],
)
def test_m36_a_delegation_beyond_its_own_folder_is_refused(
    world: SignedWorld, name: str, paths: list[str], terminating: bool
) -> None:
    document = world.targets()
    delegations = document.delegations
    assert delegations is not None and delegations.roles is not None
    key = signer("another").public_key
    delegations.keys[key.keyid] = key
    try:
        role = DelegatedRole(name, [key.keyid], 1, terminating, paths)
        delegations.roles[name] = role
        body = signed(world, "targets", document)
    except ValueError:  # tuf refuses the top-level names by itself
        return
    refused(world, "targets", body, "E_NOT_RELEASED", "E_SIG")


def test_targets_without_a_director_are_refused(world: SignedWorld) -> None:
    document = world.targets()
    assert document.delegations is not None and document.delegations.roles is not None
    del document.delegations.roles["director"]
    refused(world, "targets", signed(world, "targets", document), "E_NOT_RELEASED")
    bare = Targets(2, None, NOW + 30 * DAY)
    refused(world, "targets", signed(world, "targets", bare), "E_NOT_RELEASED")
