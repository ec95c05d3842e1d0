"""What the README tells people to type exists."""

import re
from importlib import import_module
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
def test_a_command_of_the_readme_has_help(typed: str, capsys: pytest.CaptureFixture[str]) -> None:
    program, *words = typed.split()
    with pytest.raises(SystemExit) as ended:
        import_module(f"{PROGRAMS[program]}.__main__").main([*words[:2], "--help"])
    said = capsys.readouterr()
    assert ended.value.code == 0, said.err
    assert "usage:" in said.out


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
