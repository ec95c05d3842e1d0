"""What a family may say, against what it said before: the releases of a model for ever."""

from dataclasses import replace
from typing import Any

import pytest

from tests.unit.signed_world import (
    MODEL,
    NOW,
    patch,
    release,
)
from trust import sign
from trust.accept import (
    accept_family,
)
from trust.errors import Untrusted
from trust.roles import Component, ComponentTarget, Family, Release, read_family

# What a family says, against what it said before


def family_of(*entries: Any, before: Family | None = None, model: str = MODEL) -> Family:
    pairs = [sign.target_of(MODEL, e) for e in entries]
    return accept_family(model, sign.next_family(None, pairs, NOW).signed, before)


def family_refused(code: str, *entries: Any, before: Family | None = None) -> None:
    with pytest.raises(Untrusted) as caught:
        family_of(*entries, before=before)
    assert caught.value.code == code, caught.value


LM = Component("lm.bin", "cd" * 32, 7)
R1, R2, R3 = release("r1"), release("r2"), release("r3")


def test_a_family_that_grows_is_accepted() -> None:
    before = family_of(R1, R2)
    after = family_of(
        replace(R1, rollback_from=("r2",)), R2, R3, patch(R1, R2), patch(R2, R3), before=before
    )
    assert sorted(after.releases) == ["r1", "r2", "r3"] and len(after.patches) == 2


@pytest.mark.attack("M50")
@pytest.mark.parametrize(
    "changed",
    [
        {"sha256": "ab" * 32},
        {"bytes": 7},
        {"seq": 9},
        {"components": ()},
        {"components": (replace(LM, name="other.bin"),)},
        {"components": (LM, replace(LM, name="other.bin"))},
        None,
    ],
)
def test_m50_a_release_that_changed_or_vanished_is_refused(changed: dict[str, Any] | None) -> None:
    file, bundle = ComponentTarget(LM.sha256, LM.bytes), replace(R2, components=(LM,))
    before = family_of(R1, bundle, file)
    family_of(R1, bundle, file, before=before)
    entries = [replace(bundle, **changed)] if changed else []
    family_refused("E_EQUIVOCATION", R1, file, *entries, before=before)


@pytest.mark.parametrize("status", ["active", "retired"])
def test_a_withdrawn_release_does_not_return(status: str) -> None:
    before = family_of(R1, replace(R2, status="withdrawn"))
    family_refused("E_WITHDRAWN", R1, replace(R2, status=status), before=before)
    family_of(R1, replace(R2, status="withdrawn"), before=before)


def test_a_retired_release_may_return() -> None:
    family_of(R1, before=family_of(replace(R1, status="retired")))


@pytest.mark.parametrize("edge", [("r9",), ("r1",), ("r2", "r9")])
def test_a_way_back_from_nowhere_or_from_itself_is_refused(edge: tuple[str, ...]) -> None:
    family_refused("E_NOT_RELEASED", replace(R1, rollback_from=edge), R2)


@pytest.mark.parametrize("ends", [(R3, R1), (R1, R3)])
def test_a_patch_that_joins_no_two_releases_is_refused(ends: tuple[Release, Release]) -> None:
    family_refused("E_NOT_RELEASED", R1, R2, patch(*ends))


@pytest.mark.attack("M37")
@pytest.mark.parametrize(
    "path",
    [
        *("tts/r1_r2.ndiff", "r1_r2.ndiff", "asr/../x_y.ndiff", "../asr/r1_r2.ndiff"),
        *("asr/a/b_c.ndiff", "asr/%2e%2e_x.ndiff", "asr/r1_r2\x00.ndiff", "asr/-r1_r2.ndiff"),
        *("asr/r1_r2.ndiff\n", "asr/r\u0456_r2.ndiff", "asr/" + "r" * 300 + "_r2.ndiff"),
        *("asr/r1_r2.model", "asr//r1_r2.ndiff", "/asr/r1_r2.ndiff", "asr/r1_r2", "asr/.ndiff"),
    ],
)
def test_m37_a_patch_with_a_path_outside_the_family_is_refused(path: str) -> None:
    family_refused("E_NOT_RELEASED", R1, R2, patch(R1, R2, path=path))


@pytest.mark.attack("M37")
def test_m37_a_release_with_a_path_outside_the_family_is_refused() -> None:
    for path in ("tts/r1.model", "asr/r2.model", "asr/../r1.model", "r1.model"):
        _, target = sign.target_of(MODEL, R1)
        document = sign.next_family(None, [(path, target)], NOW).signed
        for judge in (read_family, lambda m, d: accept_family(m, d, None)):
            with pytest.raises(Untrusted, match="E_NOT_RELEASED"):
                judge(MODEL, document)
