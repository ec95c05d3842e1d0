"""The shape of the code: small files, short functions, no drawers, rooms within their caps."""

import ast
from pathlib import Path

import pytest

from tests.contract.rooms import CAPS, ROOT, files_of

FUNCTION_LINES_MAX = 60
FILE_LINES_MAX = 300
DRAWERS = {"utils", "helpers", "base", "common", "misc", "constants"}
PACKAGES = [room for room in CAPS if "/" not in room]
SOURCES = [
    path
    for folder in (*PACKAGES, "migrations", "demo", "benchmarks", "tests")
    for path in sorted((ROOT / folder).rglob("*.py"))
    if "build" not in path.parts
]


@pytest.mark.parametrize("room", CAPS)
def test_a_room_stays_within_its_cap(room: str) -> None:
    files = files_of(room)
    assert sum(files.values()) <= CAPS[room], f"{room} is crowded: {files}"


def test_every_folder_of_the_service_is_a_room_with_a_cap() -> None:
    folders = {str(p.parent.relative_to(ROOT)) for p in (ROOT / "service").rglob("*.py")}
    assert folders == {room for room in CAPS if room.startswith("service")}


def test_no_file_is_long_and_none_is_a_drawer() -> None:
    long = {str(p): n for p in SOURCES if (n := len(p.read_text().splitlines())) > FILE_LINES_MAX}
    assert not long
    assert not [str(p) for p in SOURCES if p.stem in DRAWERS]


def test_no_function_is_longer_than_a_screen() -> None:
    long = []
    for path in SOURCES:
        if "versions" in path.parts:  # a migration is a list, not a function
            continue
        for node in ast.walk(ast.parse(path.read_text())):
            if isinstance(node, ast.FunctionDef | ast.AsyncFunctionDef):
                lines = (node.end_lineno or node.lineno) - node.lineno + 1
                if lines > FUNCTION_LINES_MAX:
                    long.append(f"{path}:{node.lineno} {node.name} has {lines} lines")
    assert not long


def test_only_one_module_commits() -> None:
    allowed = {ROOT / "service/db/session.py", ROOT / "service/db/migrate.py"}
    found = [
        str(path)
        for path in (ROOT / "service").rglob("*.py")
        if path not in allowed and "commit()" in path.read_text()
    ]
    assert not found


def test_no_file_names_a_package_registry_or_leaves_work_undone() -> None:
    forbidden = ["py" + "pi.org", "python" + "hosted.org", "TO" + "DO", "FIX" + "ME"]
    texts = {path: path.read_text() for path in [*SOURCES, *Path(ROOT / "requirements").iterdir()]}
    assert not [(str(p), word) for p, text in texts.items() for word in forbidden if word in text]
