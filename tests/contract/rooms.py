"""How large is each room? Lines of code, without docstrings, comments and blank lines.

`python -m tests.contract.rooms` prints the table; `test_shape.py` holds each room to a ratchet;
the plan's caps are smaller (docs/adr/0008-caps-proposed.md, 0021-rooms-of-the-service.md).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
CAPS = {  # the service's rooms: docs/adr/0021; of the other four a ratchet, not the goal
    "neural_diff": 3350,
    "trust": 920,
    "service": 600,  # what stands at the door: the program, its wiring, its settings
    "service/api": 1590,
    "service/dashboard": 400,
    "service/signing": 650,
    "service/engine": 1300,
    "service/fleet": 1800,
    "service/publishing": 800,
    "service/core": 1606,
    "service/db": 1200,
    "service/blobs": 300,
    "device_agent": 2196,
    "release_manager": 2306,
}


def code_lines(path: Path) -> int:
    """Return the lines of a file that are neither blank, comment nor docstring."""
    source = path.read_text()
    docstrings: set[int] = set()
    for node in ast.walk(ast.parse(source)):
        if not isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            continue
        first = node.body[0] if node.body else None
        if isinstance(first, ast.Expr) and isinstance(first.value, ast.Constant):
            docstrings |= set(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    return sum(
        bool(line.strip()) and not line.strip().startswith("#") and number not in docstrings
        for number, line in enumerate(source.splitlines(), 1)
    )


def files_of(room: str) -> dict[str, int]:
    """Return file -> lines of code of a room; what lies in a room further in is that room's."""
    inner = [ROOT / name for name in CAPS if name.startswith(f"{room}/")]
    return {
        str(path.relative_to(ROOT)): code_lines(path)
        for path in sorted((ROOT / room).rglob("*.py"))
        if not any(path.is_relative_to(further) for further in inner)
    }


if __name__ == "__main__":
    for room, cap in CAPS.items():
        files = files_of(room)
        print(f"{room:18}{sum(files.values()):>6} of {cap}")
        for name, lines in files.items():
            print(f"    {lines:>4}  {name}")
