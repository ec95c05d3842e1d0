"""How large is each room? Lines of code, without docstrings, comments and blank lines.

`python -m tests.contract.rooms` prints the table; `test_shape.py` holds each room to a ratchet;
the plan's caps are smaller (docs/adr/0008-caps-proposed.md, 0015-what-trust-costs.md).
"""

import ast
from pathlib import Path

ROOT = Path(__file__).parents[2]
CAPS = {  # a ratchet, not the goal
    "neural_diff": 3196,
    "trust": 938,
    "service": 7928,
    "device_agent": 2097,
    "release_manager": 2240,
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
    """Return file -> lines of code of a room."""
    return {
        str(path.relative_to(ROOT)): code_lines(path)
        for path in sorted((ROOT / room).rglob("*.py"))
    }


if __name__ == "__main__":
    for room, cap in CAPS.items():
        files = files_of(room)
        print(f"{room:18}{sum(files.values()):>6} of {cap}")
        for name, lines in files.items():
            print(f"    {lines:>4}  {name}")
