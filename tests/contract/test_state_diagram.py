"""The diagram in the documentation is the one that the signatures draw."""

from pathlib import Path

import pytest

from device_agent import diagram

PAGE = Path(__file__).parents[2] / "docs" / "architecture.md"


def test_the_page_shows_the_cycle_as_it_is() -> None:
    if not PAGE.exists():
        pytest.fail(
            f"{PAGE.name} is missing; it holds the output of python -m device_agent.diagram"
        )
    text = PAGE.read_text(encoding="utf-8")
    assert text.count(diagram.BEGIN) == text.count(diagram.END) == 1
    block = text[text.index(diagram.BEGIN) : text.index(diagram.END) + len(diagram.END)]
    assert block == diagram.mermaid(), "put the output of python -m device_agent.diagram there"


def test_every_state_is_entered_and_left() -> None:
    arrows = diagram.arrows()
    left = {source for source, _, _ in arrows}
    entered = {target for _, _, target in arrows}
    assert left == entered
    assert len(arrows) == len(set(arrows))


def test_every_state_of_the_union_has_its_function() -> None:
    from typing import get_args

    from device_agent.states import State

    assert {state.__name__ for state in get_args(State)} == {s for s, _, _ in diagram.arrows()}
