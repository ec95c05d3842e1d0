"""How a release compares on the whole canary set: signed with it, and read strictly."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest

from release_manager.difference import as_lines, difference
from tests.unit.signed_world import MODEL, NOW, digest, release
from tests.unit.test_trust_roles import document, refused
from trust import sign
from trust.accept import METADATA_BYTES_MAX
from trust.roles import SHARDS_MAX, TARGETS_PER_FAMILY_MAX, Evaluation, read_family

FOUND = Evaluation(digest("set"), digest("r1"), (20, 0, 40), (21, 0, 38), -11, -300, 290, 412)
R1, R2 = release("r1"), replace(release("r2"), evaluation=FOUND)
Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "one shard less": lambda e: e["old"].pop(),
    "no shards": lambda e: e.update(old=[], new=[]),
    "more shards than may be": lambda e: e.update(
        old=[1] * (SHARDS_MAX + 1), new=[1] * (SHARDS_MAX + 1)
    ),
    "fewer errors than none": lambda e: e["new"].append(-1),
    "half an error": lambda e: e.update(old=[20, 0, 40.0]),
    "true errors": lambda e: e.update(old=[20, False, 40]),
    "errors in words": lambda e: e.update(old="20 0 40"),
    "no set": lambda e: e.pop("canary_set"),
    "a base that is a name": lambda e: e.update(base="r1"),
    "a change that is none": lambda e: e.update(change_ppm=None),
    "a change that is a fraction": lambda e: e.update(change_ppm=-11.0),
    "a resolution below nothing": lambda e: e.update(resolution_ppm=-1),
    "something more": lambda e: e.update(verdict="good"),
    "nothing accepted, which is not written": lambda e: e.update(worse_accepted=False),
    "an acceptance that is a number": lambda e: e.update(worse_accepted=1),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_an_evaluation_that_is_not_understood_is_refused(change: Change) -> None:
    path, target = sign.target_of(MODEL, R2)
    change(target.custom["evaluation"])
    refused("E_NOT_RELEASED", (path, target))


@pytest.mark.parametrize("value", [None, {}, [], 7, "good"])
def test_what_is_no_evaluation_is_refused(value: Any) -> None:
    path, target = sign.target_of(MODEL, R2)
    target.custom["evaluation"] = value
    refused("E_NOT_RELEASED", (path, target))


@pytest.mark.parametrize("accepted", [False, True])
def test_an_evaluation_is_read_as_it_was_written(accepted: bool) -> None:
    found = replace(R2, evaluation=replace(FOUND, worse_accepted=accepted))
    entry = sign.target_of(MODEL, found)
    assert read_family(MODEL, document(entry)).releases == {"r2": found}


def test_a_release_that_nobody_evaluated_is_signed_as_it_always_was() -> None:
    assert "evaluation" not in sign.target_of(MODEL, R1)[1].custom


def test_who_signs_sees_what_was_measured() -> None:
    before, after = (
        document(sign.target_of(MODEL, found)).to_dict() for found in (release("r2"), R2)
    )
    lines = "\n".join(as_lines(difference(before, after)))
    for said in ("evaluation old: none -> [20, 0, 40]", "evaluation lower_ppm: none -> -300"):
        assert said in lines


def test_eight_evaluations_of_a_thousand_shards_leave_a_full_family_its_room() -> None:
    many = replace(FOUND, old=(99,) * SHARDS_MAX, new=(101,) * SHARDS_MAX)
    releases = [release(f"r{n}") for n in range(1, TARGETS_PER_FAMILY_MAX + 1)]
    entries = [
        sign.target_of(MODEL, replace(r, evaluation=many) if n < 8 else r)
        for n, r in enumerate(releases)
    ]
    assert len(sign.sign(sign.next_family(None, entries, NOW), [])) < METADATA_BYTES_MAX / 2
