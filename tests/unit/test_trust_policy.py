"""Which keys, thresholds and numbers a document may name: what the service refuses to publish."""

from typing import Any

import pytest
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import (
    Encoding,
    PublicFormat,
    load_pem_public_key,
)
from securesystemslib.signer import CryptoSigner, Key, SSlibKey
from tuf.api.metadata import Metadata

from tests.unit.signed_world import FAMILY, MODEL, NOW, digest, release, signer
from trust import sign
from trust.accept import (
    FAMILIES_MAX,
    ROOT_BYTES_MAX,
    ROOT_ROTATIONS_MAX,
    accept,
    delegators,
    review,
    signatures_of,
)
from trust.errors import Untrusted
from trust.keys import check_key
from trust.roles import TARGETS_PER_FAMILY_MAX, family_role, read_family
from trust.sign import Holders

ROLES = ("root", "targets", "snapshot", "timestamp")


def people(role: str, count: int, threshold: int) -> Holders:
    return Holders(tuple(signer(f"{role} {n}").public_key for n in range(count)), threshold)


def production(**changes: Holders) -> dict[str, Holders]:
    """Return the holders of a root for a product: two of three people, one key per process."""
    two_of_three = {name: people(name, 3, 2) for name in ("root", "targets")}
    online = {name: people(name, 1, 1) for name in ("snapshot", "timestamp")}
    return {**two_of_three, **online, **changes}


def root(**changes: Holders) -> Metadata[Any]:
    return sign.new_root(production(**changes), NOW, dev=False)


def targets(family: Holders, director: Any = None, **more: Holders) -> Metadata[Any]:
    director = director or signer("director").public_key
    families = {family_role(model): people for model, people in {MODEL: family, **more}.items()}
    return sign.next_targets(None, families | {"director": director}, NOW)


def unsigned(document: Metadata[Any]) -> bytes:
    return sign.sign(document, [])


def refused(code: str, role: str, document: Metadata[Any], beside: Any = None) -> str:
    with pytest.raises(Untrusted) as caught:
        review(role, unsigned(document), beside, None, NOW)
    assert caught.value.code == code, caught.value
    return str(caught.value)


def test_a_root_for_a_product_is_signed_by_two_of_three() -> None:
    document = root()
    signers = [signer(f"root {n}") for n in range(2)]
    assert accept("root", sign.sign(document, signers), None, None, NOW).signed.version == 1
    with pytest.raises(Untrusted, match="1 of 2"):
        accept("root", sign.sign(document, signers[:1]), None, None, NOW)


@pytest.mark.attack("M35")
@pytest.mark.parametrize("role", ["root", "targets"])
def test_one_person_is_not_enough_for_a_product(role: str) -> None:
    said = refused("E_SIG", "root", root(**{role: people(role, 3, 1)}))
    assert f"{role} asks for 1 of 3 keys; at least 2" in said


@pytest.mark.attack("M35")
def test_one_person_is_not_enough_for_a_family_of_a_product() -> None:
    above = root().signed
    refused("E_SIG", "targets", targets(people(FAMILY, 3, 1)), above)
    review("targets", unsigned(targets(people(FAMILY, 3, 2))), above, None, NOW)


def test_one_person_is_enough_for_development() -> None:
    one = {name: people(name, 1, 1) for name in ROLES}
    above = sign.new_root(one, NOW, dev=True)
    review("root", unsigned(above), None, None, NOW)
    review("targets", unsigned(targets(people(FAMILY, 1, 1))), above.signed, None, NOW)


@pytest.mark.parametrize("dev", [True, False])
def test_a_root_for_development_never_becomes_one_for_a_product_nor_back(dev: bool) -> None:
    first = sign.new_root(production(), NOW, dev=dev)
    second = sign.next_root(first.signed, {}, NOW)
    review("root", unsigned(second), None, unsigned(first), NOW)
    for profile in ({}, {"x-fleetdiff-profile": "dev"}, {"x-fleetdiff-profile": "test"}):
        second.signed.unrecognized_fields = profile
        if profile != first.signed.unrecognized_fields:
            with pytest.raises(Untrusted, match="development"):
                review("root", unsigned(second), None, unsigned(first), NOW)


@pytest.mark.parametrize("role", ["director", FAMILY])
@pytest.mark.parametrize("taking", ROLES)
def test_a_new_root_may_not_take_a_key_that_targets_names(role: str, taking: str) -> None:
    below = targets(people(FAMILY, 2, 2)).signed
    key = below.get_key(below.get_delegated_role(role).keyids[0])
    first = root()
    held = production()[taking]
    second = sign.next_root(first.signed, {taking: Holders((*held.keys, key), held.threshold)}, NOW)
    with pytest.raises(Untrusted, match="serves in another role"):
        review("root", unsigned(second), below, unsigned(first), NOW)


def test_two_families_do_not_share_a_key() -> None:
    shared = people("tts", 1, 1).keys
    family = Holders((*people(FAMILY, 1, 1).keys, *shared), 2)
    said = refused("E_SIG", "targets", targets(family, tts=people("tts", 2, 2)), root().signed)
    assert "serves in another role" in said


# --- keys


def spelled(public: str, scheme: str = "ed25519", kind: str = "ed25519", **more: Any) -> Key:
    return SSlibKey(digest(public), kind, scheme, {"public": public}, **more)


SMALL_ORDER = [
    "00" * 32,
    "00" * 31 + "80",
    "01" + "00" * 31,
    "ec" + "ff" * 30 + "7f",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc05",
    "26e8958fc2b227b045c3f489f2ef98f0d5dfac05d3c63339b13802886d53fc85",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac037a",
    "c7176a703d4dd84fba3c0b760d10670f2a2053fa2c39ccc64ec7fd7792ac03fa",
]
NOT_CANONICAL = [
    f"{low:02x}" + "ff" * 30 + top for low in (0xED, 0xEE, 0xF0) for top in ("7f", "ff")
]
NO_POINT = ["02" + "00" * 31]
NO_KEY = ["", "zz" * 32, "ab" * 31, "ab" * 33, "AB" * 32]


@pytest.mark.attack("M51")
@pytest.mark.parametrize("public", [*SMALL_ORDER, *NOT_CANONICAL, *NO_POINT, *NO_KEY])
def test_a_weak_or_strangely_written_key_is_refused(public: str) -> None:
    with pytest.raises(Untrusted, match="E_SIG"):
        check_key(spelled(public))
    weak = Holders((*people("targets", 2, 2).keys, spelled(public)), 2)
    refused("E_SIG", "root", root(targets=weak))
    family = Holders((*people(FAMILY, 2, 2).keys, spelled(public)), 2)
    refused("E_SIG", "targets", targets(family), root().signed)


@pytest.mark.attack("M51")
def test_one_signature_for_every_message_is_what_a_key_of_small_order_means() -> None:
    """Why the list is there: this signature holds under that key, whatever was signed."""
    key = spelled("01" + "00" * 31)
    forged = sign.tuf.Signature(key.keyid, "01" + "00" * 63)
    for message in (b"one", b"another"):
        key.verify_signature(forged, message)


@pytest.mark.parametrize("member", [{"v": 1}, {"keyid_hash_algorithms": ["sha256"]}])
def test_a_key_with_more_members_is_refused(member: dict[str, Any]) -> None:
    public = signer("a").public_key.keyval["public"]
    check_key(spelled(public))
    with pytest.raises(Untrusted, match="E_SIG"):
        check_key(spelled(public, unrecognized_fields=member))


def test_keys_of_other_kinds_are_refused() -> None:
    rsa = CryptoSigner.generate_rsa().public_key
    with pytest.raises(Untrusted, match="of kind rsa"):
        check_key(rsa)
    public = signer("a").public_key.keyval["public"]
    for scheme, kind in (("ed25519", "ecdsa"), ("ecdsa-sha2-nistp256", "ed25519")):
        with pytest.raises(Untrusted, match="E_SIG"):
            check_key(spelled(public, scheme, kind))


@pytest.mark.attack("M34")
def test_a_p256_key_has_one_spelling() -> None:
    key = CryptoSigner.generate_ecdsa().public_key
    check_key(key)
    pem = key.keyval["public"]
    point = load_pem_public_key(pem.encode())
    assert isinstance(point, ec.EllipticCurvePublicKey)
    packed = point.public_bytes(Encoding.X962, PublicFormat.CompressedPoint)
    lines = pem.strip().splitlines()
    others = [
        pem.replace("\n", "\r\n"),
        "note\n" + pem,
        "\n".join([lines[0], "".join(lines[1:-1]), lines[-1]]),
        packed.hex(),
        "",
        "no key",
    ]
    for public in others:
        with pytest.raises(Untrusted, match="weak, or written"):
            check_key(spelled(public, "ecdsa-sha2-nistp256", "ecdsa"))
    curve = ec.generate_private_key(ec.SECP384R1()).public_key()
    other = curve.public_bytes(Encoding.PEM, PublicFormat.SubjectPublicKeyInfo).decode()
    with pytest.raises(Untrusted, match="weak, or written"):
        check_key(spelled(other, "ecdsa-sha2-nistp256", "ecdsa"))


# --- limits


@pytest.mark.attack("M52")
def test_a_root_that_no_new_device_could_reach_is_refused() -> None:
    first = root()
    first.signed.version = ROOT_ROTATIONS_MAX
    last = sign.next_root(first.signed, {}, NOW)
    review("root", unsigned(last), None, unsigned(first), NOW)
    beyond = sign.next_root(last.signed, {}, NOW)
    with pytest.raises(Untrusted, match="E_SIZE"):
        review("root", unsigned(beyond), None, unsigned(last), NOW)


@pytest.mark.attack("M52")
def test_more_families_than_devices_are_made_for_are_refused() -> None:
    first, *more = (people(f"m{n}", 2, 2) for n in range(FAMILIES_MAX + 1))
    families = {f"m{n}": held for n, held in enumerate(more[1:])}
    review("targets", unsigned(targets(more[0], **families)), root().signed, None, NOW)
    refused("E_SIZE", "targets", targets(more[0], **families, last=first), root().signed)


@pytest.mark.attack("M52")
def test_a_root_larger_than_devices_read_is_refused() -> None:
    document = root()
    document.signed.unrecognized_fields["x-note"] = "n" * ROOT_BYTES_MAX
    refused("E_SIZE", "root", document)


@pytest.mark.attack("M52")
def test_more_files_than_a_family_may_list_are_refused() -> None:
    entries = [
        sign.target_of(MODEL, release(f"r{n}")) for n in range(1, TARGETS_PER_FAMILY_MAX + 2)
    ]
    with pytest.raises(Untrusted, match="E_SIZE"):
        read_family(MODEL, sign.next_family(None, entries, NOW).signed)
    read_family(MODEL, sign.next_family(None, entries[1:], NOW).signed)


def test_files_that_are_not_named_by_their_version_are_refused() -> None:
    document = root()
    document.signed.consistent_snapshot = False
    refused("E_SIG", "root", document)


# --- who signed


def test_somebody_who_is_named_twice_signs_for_the_old_root_and_the_new_at_once() -> None:
    first = root()
    stays, comes = signer("root 0"), signer("root new")
    holders = Holders((stays.public_key, comes.public_key), 2)
    second = sign.next_root(first.signed, {"root": holders}, NOW)
    asked = delegators(second, unsigned(first), None)
    # One who stays counts for both: with root 1 for the old root and the newcomer, three do.
    assert signatures_of("root", second, asked).missing == 3
    second.sign(stays, append=True)
    left = signatures_of("root", second, asked)
    assert (left.missing, stays.public_key.keyid in left.open) == (2, False)
    second.sign(signer("root 1"), append=True)
    left = signatures_of("root", second, asked)
    assert (left.missing, left.open) == (1, (comes.public_key.keyid,))
    second.sign(comes, append=True)
    assert signatures_of("root", second, asked).missing == 0
