"""An operator finds on one page what to do at everything that waits, refuses or rings."""

import re
from pathlib import Path

import pytest
import yaml

from device_agent import errors
from service.core import policy
from service.dashboard.pages import TEMPLATES
from service.db.rollout_tables import UNSTARTED
from service.fleet.holds import Hold
from service.signing.keys import Trouble
from trust.errors import CODES

ROOT = Path(__file__).parents[2]
PAGE = (ROOT / "docs" / "operating.md").read_text()
ALERTS = yaml.safe_load((ROOT / "deploy" / "alerts.yaml").read_text())["groups"]
OF_DEVICES = set(re.findall(r"\bE_[A-Z]+\b", errors.__doc__ or "")) | {"E_NO_PIPELINE", "went_back"}
NAMES = {
    "reason": {*vars(TEMPLATES.get_template("rollout.html").module)["paused_because"]},
    "state": set(UNSTARTED),
    "hold": {*map(str, Hold)},
    "trouble": {*map(str, Trouble)},
    "code": OF_DEVICES | CODES - {"E_AUDIT"},  # that one is told to people by their own command
    "alert": {rule["alert"] for group in ALERTS for rule in group["rules"]},
}


@pytest.mark.parametrize(
    ("kind", "name"), [(kind, name) for kind, names in NAMES.items() for name in sorted(names)]
)
def test_the_page_for_operators_names(kind: str, name: str) -> None:
    assert f"`{name}`" in PAGE, kind


def test_every_reason_that_ends_by_itself_is_said_to() -> None:
    for reason in policy.PASSING:
        row = next(line for line in PAGE.splitlines() if line.startswith(f"| `{reason}` |"))
        assert "it goes on by itself" in row


def test_every_command_of_the_page_exists() -> None:
    from release_manager.__main__ import COMMANDS, GROUPS, words_of

    known = {" ".join(words_of(usage)) for usage in COMMANDS}
    groups = "|".join(GROUPS)
    typed = set(re.findall(rf"`(?:fleetdiff )?((?:{groups}) [a-z]+)", PAGE))
    assert len(typed) > 20
    assert typed <= known
