"""Everything a user sees: one JSON document or a table on stdout, notes and bars on stderr.

Commands return a `Reply`; this module prints it. A column's last word is its unit, so
`bytes_sent` and `old_wer_bp` become sizes and percentages by themselves. Texts from the server
lose their control characters: a device's serial cannot repaint the terminal.
"""

import json
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any


@dataclass(frozen=True)
class Reply:
    """What a command has to say.

    Attributes:
        document: for `--json`.
        lines: for people.
        exit_code: of the process.
    """

    document: Any
    lines: Sequence[str]
    exit_code: int = 0


def reply(answer: Reply, as_json: bool) -> None:
    """Print a reply on stdout."""
    if as_json:
        print(json.dumps(answer.document, indent=1, default=str))
    else:
        for line in answer.lines:
            print(line)


def note(text: str) -> None:
    """Print a remark on stderr."""
    print(_clean(text), file=sys.stderr)


def failure(message: str, advice: str) -> None:
    """Print what was wrong and what to do, one line each, on stderr."""
    print(f"fleetdiff: {_clean(message)}\n  {_clean(advice)}", file=sys.stderr)


@contextmanager
def progress(label: str) -> Iterator[Callable[[int, int], None]]:
    """Give a function of (bytes done, bytes to do) that moves a bar, if stderr is a terminal."""
    if not sys.stderr.isatty():
        yield lambda done, total: None
        return
    from rich.console import Console
    from rich.markup import escape
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    columns = TextColumn("{task.description}"), BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True) as bar:
        task = bar.add_task(escape(label), total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def table(columns: str, items: Sequence[Mapping[str, Any]]) -> list[str]:
    """Return the lines of a table: the named fields of every item, or one line saying `none`."""
    names = columns.split()
    if not items:
        return ["none"]
    rows = [[_label(name).upper() for name in names]]
    rows += [[value_text(name, item.get(name)) for name in names] for item in items]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["  ".join(map(str.ljust, row, widths)).rstrip() for row in rows]


def listed(answer: Mapping[str, Any], columns: str) -> Reply:
    """Return the reply that shows a list endpoint's answer."""
    return Reply(answer, table(columns, answer["items"]))


def published(done: dict[str, Any]) -> Reply:
    """Return the reply of a command that publishes, or found that it was done before."""
    outcome = "published" if done["published"] else "already published; nothing changed"
    return Reply(done, [outcome, *fields(done)])


def fields(document: Mapping[str, Any]) -> list[str]:
    """Return one aligned line for each field."""
    width = max((len(name) for name in document), default=0)
    return [f"{_label(name):<{width}}  {value_text(name, v)}" for name, v in document.items()]


def value_text(name: str, value: Any) -> str:
    """Return a value as people read it; the name's first or last word tells the unit."""
    if value is None or value == "" or value == [] or value == {}:
        return "-"
    number = isinstance(value, int | float) and not isinstance(value, bool)
    if number and name.endswith("_bp"):
        return f"{value / 100:.2f} %"
    if number and ("bytes" in (name.split("_")[0], name.split("_")[-1])):
        return _size(value)
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        held = {str(k): v for k, v in value.items() if v not in (None, "", [], {})}
        return " ".join(f"{_clean(k)}={value_text(k, v)}" for k, v in held.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(value_text("", v) for v in value)
    return _clean(str(value))


def _label(name: str) -> str:
    return _clean(name.removesuffix("_bp").replace("_", " "))


def _size(count: float) -> str:
    for unit in ("B", "kB", "MB", "GB"):
        if count < 1000 or unit == "GB":
            return f"{count:.0f} {unit}" if unit == "B" else f"{count:.1f} {unit}"
        count /= 1000
    raise AssertionError("the last unit returns")


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
