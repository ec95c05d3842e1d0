"""Rotation of keys and thresholds, as TUF's conformance suite and python-tuf test it."""

import json
from copy import copy, deepcopy
from pathlib import Path
from typing import Any

import pytest
from securesystemslib.signer import CryptoSigner

from tests.unit.signed_world import FAMILY, TOP, Device, SignedWorld, refuses, resign, signer

Versions = list[tuple[list[int], int, list[int]]]  # keys, threshold, who signs
ALL = [0, 1, 2, 3, 4]


@pytest.fixture
def world() -> SignedWorld:
    return SignedWorld()


@pytest.fixture
def device(world: SignedWorld, tmp_path: Path) -> Device:
    return Device(tmp_path, world.pinned)


def numbered(*numbers: int) -> list[CryptoSigner]:
    return [signer(f"key {number}") for number in numbers]


# Keys of root: each version is signed by thresholds of the one before and of its own

ROOTS: list[tuple[str, Versions, bool]] = [
    ("one key stays", [([1], 1, [1]), ([1], 1, [1])], True),
    ("one key, then another", [([1], 1, [1]), ([2], 1, [2, 1]), ([2], 1, [2])], True),
    ("and back", [([1], 1, [1]), ([2], 1, [2, 1]), ([1], 1, [1, 2]), ([1], 1, [1])], True),
    ("with needless signatures", [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 1, 4])], True),
    ("the old key is missing", [([1], 1, [1]), ([2], 1, [2, 3, 4])], False),
    ("the new key is missing", [([1], 1, [1]), ([2], 1, [1, 3, 4])], False),
    ("nobody signs", [([1], 1, [1]), ([1], 1, [])], False),
    ("three of five", [(ALL, 3, [0, 2, 4]), (ALL, 3, [0, 2, 4])], True),
    ("three of five, others sign", [(ALL, 3, [0, 2, 4]), (ALL, 3, [4, 1, 0])], True),
    ("two of five", [(ALL, 3, [0, 2, 4]), (ALL, 3, [0, 2])], False),
    ("one of five is replaced", [(ALL, 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 1])], True),
    ("the replaced one signs", [(ALL, 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4, 1])], True),
    ("only by the new five", [(ALL, 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 4, 5])], False),
    ("only by the old five", [(ALL, 3, [0, 2, 4]), ([0, 1, 3, 4, 5], 3, [0, 2, 4])], False),
    ("the threshold rises", [([1, 2], 1, [1]), ([1, 2], 2, [1, 2])], True),
    ("it rises and is not met", [([1, 2], 1, [1]), ([1, 2], 2, [1])], False),
    ("the threshold falls", [([1, 2], 2, [1, 2]), ([1, 2], 1, [1, 2]), ([1, 2], 1, [2])], True),
    ("it falls and the old is not met", [([1, 2], 2, [1, 2]), ([1, 2], 1, [2])], False),
    ("one in the middle is wrong", [([1], 1, [1]), ([2], 1, [2]), ([2], 1, [2, 1])], False),
]


@pytest.mark.parametrize(("versions", "good"), [r[1:] for r in ROOTS], ids=[r[0] for r in ROOTS])
def test_keys_of_root(world: SignedWorld, tmp_path: Path, versions: Versions, good: bool) -> None:
    del world.documents["root"]
    for keys, threshold, by in versions:
        world.signers["root"], world.thresholds["root"] = numbered(*keys), threshold
        world.sign_root(numbered(*by))
    device = Device(tmp_path, world.pinned)
    if good:
        assert device.refresh(world.files).versions["root"] == len(versions)
    else:
        refuses(device, world.files, "E_SIG")


# Keys of the other roles

OTHERS: list[tuple[str, Versions, bool]] = [
    ("one key, then another", [([1], 1, [1]), ([2], 1, [2])], True),
    ("with needless signatures", [([1], 1, [3, 1, 4]), ([2], 1, [3, 2, 4])], True),
    ("the old key signs on", [([1], 1, [1]), ([2], 1, [1, 3, 4])], False),
    ("three of five", [(ALL, 3, [0, 2, 4]), (ALL, 3, [4, 1, 0])], True),
    ("with more than three", [(ALL, 3, [0, 2, 3, 4]), (ALL, 3, [4, 3, 1, 0])], True),
    ("two of five and a stranger", [(ALL, 3, [0, 2, 4]), (ALL, 3, [4, 1, 6])], False),
    ("the threshold rises and is not met", [([1, 2], 1, [1]), ([1, 2], 2, [1])], False),
]


@pytest.mark.parametrize("role", [*TOP[1:], FAMILY])
@pytest.mark.parametrize(("versions", "good"), [r[1:] for r in OTHERS], ids=[r[0] for r in OTHERS])
def test_keys_of_other_roles(
    world: SignedWorld, device: Device, role: str, versions: Versions, good: bool
) -> None:
    for number, (keys, threshold, by) in enumerate(versions):
        world.signers[role], world.thresholds[role] = numbered(*keys), threshold
        if role in TOP:
            world.sign_root()
        else:
            world.sign_targets()
        resign(world, role, numbered(*by))
        if good or number == 0:
            device.refresh(world.files)
    if not good:
        refuses(device, world.files, "E_SIG")


# How keys and signatures are written


@pytest.mark.parametrize(
    "changes",
    [{"scheme": "rsassa-pss-sha256"}, {"keytype": "rsa"}, {"keyval": {"public": "00"}}],
    ids=str,
)
def test_a_key_that_is_described_otherwise_verifies_nothing(
    world: SignedWorld, device: Device, changes: dict[str, Any]
) -> None:
    root = world.documents["root"]
    keyid = root.roles["timestamp"].keyids[0]
    root.keys[keyid] = copy(root.keys[keyid])
    vars(root.keys[keyid]).update(changes)
    resign(world, "root")
    resign(world, "timestamp")
    refuses(device, world.files, "E_SIG")


def test_a_signature_that_does_not_verify_does_no_harm_beside_enough_that_do(
    world: SignedWorld, device: Device
) -> None:
    world.signers["timestamp"].append(signer("another"))
    world.sign_root()
    resign(world, "timestamp")
    document = json.loads(world.files["timestamp.json"])
    document["signatures"][1]["sig"] = "00" * 64
    world.files["timestamp.json"] = json.dumps(document).encode()
    assert device.refresh(world.files).versions["timestamp"] == 2


def test_members_of_keys_that_are_no_more_are_passed_over(
    world: SignedWorld, device: Device
) -> None:
    root = world.documents["root"]
    root.keys = deepcopy(root.keys)  # signers are shared by all tests
    for key in root.keys.values():
        key.unrecognized_fields["keyid_hash_algorithms"] = ["sha256", "md5"]
    resign(world, "root")
    assert device.refresh(world.files).versions["root"] == 2
