"""Any byte of a bundle flipped, any file cut short: refused, or the very same is trusted.

The second happens, and is harmless: a hex digit of a signature in capitals is the same number.
"""

import json
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.unit.signed_world import DAY, NOW, Device, SignedWorld, order, release, signer
from trust.errors import Untrusted
from trust.floors import Floors
from trust.verify import Trusted

WORLD = SignedWorld()
PINNED = WORLD.pinned
WORLD.sign_root()
WORLD.publish(release("r3", rollback_from=("r2",)))
GOOD = {**WORLD.files, "order": order(release("r3"))}
NAMES = sorted(set(GOOD) - {"1.root.json"})  # a device does not ask for the root it was born with
relaxed = settings(
    max_examples=120, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture]
)


def judge(folder: Path, files: dict[str, bytes]) -> tuple[dict[str, Any], Any, Floors] | None:
    """Return all that a new device trusts after this bundle, or None if it refuses."""
    device = Device(folder, PINNED)
    device.wipe_cache()
    try:
        trusted: Trusted = device.refresh({n: b for n, b in files.items() if n != "order"})
        told = device.obey(trusted, files["order"])
    except Untrusted:
        return None
    return {**vars(trusted), "targets": trusted.targets.to_dict()}, told, device.floors


@relaxed
@given(st.sampled_from(NAMES), st.integers(0), st.integers(1, 255))
def test_a_changed_byte_is_refused_or_changes_nothing(
    tmp_path: Path, name: str, place: int, change: int
) -> None:
    body = bytearray(GOOD[name])
    body[place % len(body)] ^= change
    found = judge(tmp_path, {**GOOD, name: bytes(body)})
    assert found is None or found == judge(tmp_path, GOOD)


@relaxed
@given(st.sampled_from(NAMES), st.integers(0))
def test_a_file_cut_short_is_refused(tmp_path: Path, name: str, place: int) -> None:
    kept = GOOD[name][: place % len(GOOD[name])]
    assert judge(tmp_path, {**GOOD, name: kept}) is None


@relaxed
@given(st.sampled_from(NAMES), st.sampled_from(NAMES))
def test_a_file_in_the_place_of_another_is_refused(tmp_path: Path, one: str, other: str) -> None:
    if one != other:
        assert judge(tmp_path, {**GOOD, one: GOOD[other]}) is None


SECOND_FORMS: list[Callable[[bytes], bytes]] = [
    lambda b: b.replace(b'"version":', b'"version":9,"version":'),
    lambda b: b.replace(b'"version":', b'"version":1,"version":', 1)[:-1] + b',"signed":{}}',
    lambda b: b[:-1] + b',"unknown":{"v":1}}',
    lambda b: b"\xef\xbb\xbf" + b,
    lambda b: b + b"\n",
    lambda b: b + b"{}",
    lambda b: b.replace(b'"version":', b'"version":1.0,"x":'),
    lambda b: b.replace(b'"version":', b'"version":1e400,"x":'),
    lambda b: b.replace(b'"version":', b'"version":NaN,"x":'),
    lambda b: b.replace(b'"version":', b'"version":9007199254740993,"x":'),
    lambda b: b.replace(b'"version":', b'"version":' + b"9" * 5000 + b',"x":'),
    lambda b: b.replace(b'"sig"', b'"sig":"00","sig"'),
    lambda b: json.dumps(json.loads(b), indent=1).encode(),
]


@pytest.mark.attack("M42")
@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("respell", SECOND_FORMS)
def test_m42_json_in_a_second_form_is_refused_or_changes_nothing(
    tmp_path: Path, name: str, respell: Callable[[bytes], bytes]
) -> None:
    """python-tuf reads duplicate and unknown members; what it then trusts is what was signed."""
    found = judge(tmp_path, {**GOOD, name: respell(GOOD[name])})
    assert found is None or found == judge(tmp_path, GOOD)


@pytest.mark.parametrize("name", sorted(set(NAMES) - {"order"}))
def test_a_bundle_without_any_one_file_is_refused(tmp_path: Path, name: str) -> None:
    less = {n: b for n, b in GOOD.items() if n != name}
    found = judge(tmp_path, less)
    if name == "2.root.json":  # the older root is still in force; nothing else differs
        assert found is not None and found[0]["versions"]["root"] == 1
    else:
        assert found is None


def test_the_good_bundle_is_trusted(tmp_path: Path) -> None:
    found = judge(tmp_path, GOOD)
    assert found is not None
    told = found[1]
    assert (told.release, told.expires) == ("r3", NOW + 7 * DAY)
    assert replace(found[2], versions={}).order_seq == 1
    assert signer("director").public_key.keyid in str(found[0]["targets"])
