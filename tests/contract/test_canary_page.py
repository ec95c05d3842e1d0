"""docs/canary.md names every field of the gate, with its default and its bounds."""

import re
from dataclasses import fields

import pytest

from service.core.canary import Gate
from tests.contract.rooms import ROOT

PAGE = (ROOT / "docs" / "canary.md").read_text()
ROW = re.compile(r"^\| `(\w+)` \| ([\d.,e+-]+) \| ([\d.,e+-]+) to ([\d.,e+-]+) \| (.+) \|$", re.M)
LISTED = {name: numbers for name, *numbers, _ in ROW.findall(PAGE)}


@pytest.mark.parametrize("field", fields(Gate), ids=lambda field: field.name)
def test_the_page_has_the_gate_as_it_is(field) -> None:  # type: ignore[no-untyped-def]
    assert field.name in LISTED, "a field of the gate that docs/canary.md does not explain"
    told = [float(number.replace(",", "")) for number in LISTED[field.name]]
    assert told == [field.default, *field.metadata["bounds"]]


def test_the_page_has_no_field_that_the_gate_has_not() -> None:
    assert set(LISTED) == {field.name for field in fields(Gate)}
