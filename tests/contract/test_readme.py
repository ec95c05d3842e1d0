"""What the README tells people to type exists."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[2]
README = (ROOT / "README.md").read_text()
PROGRAMS = {
    "fleetdiff": "release_manager",
    "fleetdiff-server": "service",
    "fleetdiff-agent": "device_agent",
}
TYPED = sorted(set(re.findall(r"^    (fleetdiff[a-z-]*(?: [a-z]+){1,2})", README, re.MULTILINE)))


@pytest.mark.parametrize("typed", TYPED)
def test_a_command_of_the_readme_has_help(typed: str) -> None:
    program, *words = typed.split()
    command = [sys.executable, "-m", PROGRAMS[program], *words[:2], "--help"]
    done = subprocess.run(command, capture_output=True, text=True, check=False, cwd=ROOT)
    assert done.returncode == 0, done.stderr
    assert "usage:" in done.stdout


def test_every_make_target_of_the_readme_exists() -> None:
    makefile = (ROOT / "Makefile").read_text()
    for target in set(re.findall(r"(?:`|    )make ([a-z]+(?:-[a-z]+)?)", README)):
        name = "bench-%" if target.startswith("bench-") else target
        assert re.search(rf"^{name}:", makefile, re.MULTILINE), target


def test_every_page_that_a_page_links_to_exists() -> None:
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md")]
    missing = [
        (page.name, link)
        for page in pages
        for link in re.findall(r"\]\((?!http)([^)#]+)\)", page.read_text())
        if not (page.parent / link).exists()
    ]
    assert not missing
