"""What a release needs beside its model: an agent, and components that the family lists."""

from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
from tuf.api.metadata import Metadata, TargetFile, Targets

from tests.unit.signed_world import MODEL, digest, release
from tests.unit.test_trust_roles import document, refused
from trust import sign
from trust.fields import is_at_least
from trust.roles import COMPONENTS_MAX, Component, ComponentTarget, read_family

R1 = release("r1")


def part(**changes: Any) -> dict[str, Any]:
    return {"name": "a", "sha256": digest("lm"), "length": 5, **changes}


LISTED = sign.target_of(MODEL, ComponentTarget(digest("lm"), 5))
Change = Callable[[dict[str, Any]], Any]
CHANGES: dict[str, Change] = {
    "an agent that is empty, which is not written": lambda c: c.update(min_agent=""),
    "an agent that is null": lambda c: c.update(min_agent=None),
    "an agent that is a number": lambda c: c.update(min_agent=1.2),
    "an agent of two numbers": lambda c: c.update(min_agent="1.2"),
    "an agent of four numbers": lambda c: c.update(min_agent="1.2.0.1"),
    "an agent with a nought in front": lambda c: c.update(min_agent="1.02.0"),
    "an agent with a sign": lambda c: c.update(min_agent="1.-2.0"),
    "an agent with a suffix": lambda c: c.update(min_agent="1.2.0rc1"),
    "an agent with a blank": lambda c: c.update(min_agent=" 1.2.0"),
    "an agent and a line end": lambda c: c.update(min_agent="1.2.0\n"),
    "an agent in other digits": lambda c: c.update(min_agent="1.\u0662.0"),
    "an agent that is a relation": lambda c: c.update(min_agent=">=1.2.0"),
    "an agent beyond reason": lambda c: c.update(min_agent="1.2." + "9" * 10),
    "components that are none, which is not written": lambda c: c.update(components=[]),
    "components that are null": lambda c: c.update(components=None),
    "components that are an object": lambda c: c.update(components={}),
    "components that are a number": lambda c: c.update(components=1),
    "components that are text": lambda c: c.update(components="lm"),
    "a component that is a name": lambda c: c.update(components=["lm"]),
    "a component without a digest": lambda c: c.update(components=[{"name": "a", "length": 1}]),
    "a component of another case": lambda c: c.update(components=[part(name="LM")]),
    "a component in another folder": lambda c: c.update(components=[part(name="a/b")]),
    "a component above": lambda c: c.update(components=[part(name="..")]),
    "a component that hides": lambda c: c.update(components=[part(name=".lm")]),
    "a component and a line end": lambda c: c.update(components=[part(name="lm\n")]),
    "a component without bytes": lambda c: c.update(components=[part(length=0)]),
    "a component of true bytes": lambda c: c.update(components=[part(length=True)]),
    "a component of half bytes": lambda c: c.update(components=[part(length=1.0)]),
    "a component of another digest": lambda c: c.update(components=[part(sha256="A" * 64)]),
    "a component that says more": lambda c: c.update(components=[part(more=1)]),
    "a component twice": lambda c: c.update(components=[part(), part()]),
    "components in disorder": lambda c: c.update(components=[part(name="b"), part()]),
    "too many components": lambda c: c.update(
        components=[part(name=f"a{n:02}") for n in range(COMPONENTS_MAX + 1)]
    ),
}


@pytest.mark.parametrize("change", CHANGES.values(), ids=CHANGES)
def test_a_need_that_is_not_understood_is_refused(change: Change) -> None:
    path, target = sign.target_of(MODEL, R1)
    change(target.custom)
    refused("E_NOT_RELEASED", (path, target), LISTED)


def test_a_need_that_nobody_has_is_not_written_so_that_an_older_agent_reads_the_family() -> None:
    _, target = sign.target_of(MODEL, R1)
    assert set(target.custom) == set(
        "v kind id seq status format hardware rollback_from rollback_until".split()
    )
    needs = replace(R1, min_agent="1.20.0")
    entry = sign.target_of(MODEL, needs)
    assert entry[1].custom["min_agent"] == "1.20.0"
    assert read_family(MODEL, document(entry)).releases == {"r1": needs}


@pytest.mark.parametrize(
    ("version", "least", "fits"),
    [
        ("1.2.0", "1.2.0", True),
        ("1.10.0", "1.9.9", True),
        ("2.0.0", "1.99.99", True),
        ("1.9.9", "1.10.0", False),
        ("0.99.99", "1.0.0", False),
        ("1.2.0", "1.2.1", False),
        ("0.1.0", "", True),
        ("anything", "", True),
        ("", "0.0.0", False),
        ("1", "0.0.0", False),
        ("9.9", "1.0.0", False),
        ("9.9.9-dev", "1.0.0", False),
        ("v9.9.9", "1.0.0", False),
        ("9.9.9\n", "1.0.0", False),
    ],
)
def test_an_agent_is_new_enough_by_its_numbers_and_what_is_no_version_never_is(
    version: str, least: str, fits: bool
) -> None:
    assert is_at_least(version, least) is fits


def test_components_are_read_as_they_were_written() -> None:
    parts = tuple(Component(f"a{n:02}", digest("lm"), 5) for n in range(COMPONENTS_MAX))
    bundle = replace(R1, components=parts)
    entries = [sign.target_of(MODEL, bundle), LISTED]
    assert LISTED[0] == f"{MODEL}/{digest('lm')}.component"
    assert entries[0][1].custom["components"][0] == part(name="a00")
    body = sign.sign(Metadata(document(*entries)), [])
    family = read_family(MODEL, Metadata[Targets].from_bytes(body).signed)
    assert family.releases == {"r1": bundle}
    assert family.components == (ComponentTarget(digest("lm"), 5),)


@pytest.mark.attack("M49")
def test_m49_a_component_that_the_family_does_not_list_with_this_length_is_refused() -> None:
    for lost in (Component("lm", digest("lm"), 6), Component("lm", digest("other"), 5)):
        refused("E_NOT_RELEASED", sign.target_of(MODEL, replace(R1, components=(lost,))), LISTED)


def test_a_component_is_listed_under_its_digest() -> None:
    _, target = LISTED
    for path in (f"{MODEL}/{digest('x')}.component", f"tts/{digest('lm')}.component"):
        refused("E_NOT_RELEASED", (path, target))
    target = TargetFile(5, {"sha256": digest("lm")}, LISTED[0], {"custom": {"v": 1, "kind": "c"}})
    refused("E_NOT_RELEASED", (LISTED[0], target))
