"""Everything a user sees: one JSON document or its text on stdout, notes and bars on stderr.

A command returns the document that `--json` prints, and every document is made text in one way:
its fields line by line, then what `SECTIONS` names, lists as tables of the columns given there. A
column's name tells its unit, so `bytes_sent`, `old_wer_bp`, `share` and `density` become sizes and
percentages by themselves. Texts from the server lose their control characters: a device's serial
cannot repaint the terminal. The tables are our own because those of `rich` wrap where no terminal
reads them.
"""

import json
import re
import sys
from collections.abc import Callable, Generator, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from itertools import zip_longest
from shutil import get_terminal_size
from textwrap import wrap
from typing import Any

from rich import filesize

from neural_diff.apply import Progress

BLOCK_BYTES = 1 << 20
SECTIONS = {
    "whoami": "",
    "health": "",
    "models": "model release status bytes devices",
    "releases": "name status back_from",
    "rollouts": "id model release cohort state reasons",
    "publisher": "",
    "staged": "",
    "components": "name bytes sha256",
    "downloads": "from kind bytes share",
    "pipelines": "way bytes cost_ms",
    "excluded": "way bytes cost_ms because",
    "regions": "name kind width elements how changed density bits_per_change bytes",
    "parts": "part state pairs change_bp lower_bp upper_bp",
    "signals": "signal state devices worse better",
    "below_floor": "floor devices running reason help",
    "stages": "number share_bp state progress refused failed rolled_back bytes_sent "
    "old_wer_bp new_wer_bp",
    "foretold": "number share_bp devices bytes seconds detects_wer_bp decides",
    "groups": "release network devices bytes",
    "notes": "about says",
    "rules": "rollout rule passes hold compared",
    "held": "answer rule devices for_example compared",
    "deployments": "",
    "events": "",
}
KEYIDS, KEYID_SHOWN = ("signed_by", "may_sign"), 12  # as much of a key's id as tells it apart
POINTS = ("change", "lower", "upper", "resolution", "detects")  # a rate less another rate
DIGEST = re.compile(r"[0-9a-f]{64}")
MOMENT = re.compile(r"^([0-9-]{10})T([0-9:]{8})(?:\.[0-9]+)?(?:Z|\+00:00)$")
GAP = "  "
_EMPTY: tuple[Any, ...] = (None, "", [], {})


@dataclass(frozen=True)
class Reply:
    """What a command has to say.

    Attributes:
        document: for `--json`.
        text: for people; none: the document as text.
        exit_code: of the process.
    """

    document: Any
    text: str = ""
    exit_code: int = 0


def reply(answer: Reply, as_json: bool) -> None:
    """Print a reply on stdout."""
    text = json_text(answer.document) if as_json else answer.text
    print(text or as_text(answer.document))


def note(text: str) -> None:
    """Print a remark on stderr."""
    print(_clean(text), file=sys.stderr)


def ask(question: str) -> str:
    """Ask on stderr, since stdout is for the reply, and return what was typed."""
    print(question, end=" ", file=sys.stderr, flush=True)
    return sys.stdin.readline().strip()


def json_text(document: Any) -> str:
    """Return a document as `--json` prints it."""
    return json.dumps(document, indent=1)


def failure(
    message: str, advice: str, code: int = 1, more: Any = None, as_json: bool = False
) -> int:
    """Print what was wrong and what to do on stderr, a line each or JSON; return the exit code."""
    told = {"detail": message, **(more or {}), "advice": advice, "exit": code}
    text = f"fleetdiff: {_clean(message)}\n  {_clean(advice)}"
    print(json.dumps(told) if as_json else text, file=sys.stderr)
    return code


def as_text(document: Mapping[str, Any]) -> str:
    """Return a document as people read it: its fields, then its sections."""
    shown = {name: value for name, value in document.items() if value not in _EMPTY}
    own = {n: v for n, v in shown.items() if n in SECTIONS}
    plain = {n: v for n, v in shown.items() if n not in SECTIONS}
    width = max(map(len, plain), default=0)
    parts = ["\n".join(f"{_label(n):<{width}}  {value_text(n, v)}" for n, v in plain.items())]
    for name, value in own.items():
        whole = isinstance(value, Mapping)
        text = as_text(value) if whole else as_table(value, SECTIONS[name])
        parts.append(f"{name}\n{text}")
    return "\n\n".join(filter(None, parts))


def outcome(done: Mapping[str, Any]) -> str:
    """Return the text of what was published, or found to be published before."""
    headline = "published" if done["published"] else "already published; nothing changed"
    if staged := done.get("staged"):
        how = f"its holders sign it with fleetdiff sign {staged['role']}"
        headline = f"staged; signatures missing: {staged['missing']}; {how}"
    return f"{headline}\n{as_text(done)}"


def as_table(items: Sequence[Mapping[str, Any]], columns: str, most: int = 0) -> str:
    """Return a table of these fields of every item (none named: all), or `none`.

    On a terminal, which is `most` letters wide, digests are cut, and cells that make a row too wide
    take several lines; elsewhere, as for grep, a row is a line and whole.
    """
    if not items:
        return "none"
    names = columns.split() or list(items[0])
    most = most or (get_terminal_size().columns if sys.stdout.isatty() else 0)
    rows = [[_label(name).upper() for name in names]]
    rows += [[_cell(value_text(name, item.get(name)), most) for name in names] for item in items]
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    # No word is broken, for people copy them.
    slack = [
        w - max(map(_longest, c)) for w, c in zip(widths, zip(*rows, strict=True), strict=True)
    ]
    while most and max(slack) and sum(widths) + len(GAP) * (len(widths) - 1) > most:
        place = slack.index(max(slack))
        widths[place], slack[place] = widths[place] - 1, slack[place] - 1
    return "\n".join(line for row in rows for line in _lines(row, widths))


def _lines(row: Sequence[str], widths: Sequence[int]) -> Iterator[str]:
    """Give the lines of one row; its cells are broken between words to these widths."""
    whole: dict[str, Any] = {"break_long_words": False, "break_on_hyphens": False}
    cells = [wrap(cell, width, **whole) for cell, width in zip(row, widths, strict=True)]
    for line in zip_longest(*cells, fillvalue=""):
        yield GAP.join(map(str.ljust, line, widths)).rstrip()


def _longest(cell: str) -> int:
    return max(map(len, cell.split()), default=0)


def _cell(text: str, most: int) -> str:
    return f"{text[:KEYID_SHOWN]}…" if most and DIGEST.fullmatch(text) else text


def value_text(name: str, value: Any) -> str:
    """Return a value as people read it; a word of its name tells the unit."""
    if value in _EMPTY:
        return "-"
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, Mapping):
        held = {str(k): v for k, v in value.items() if v not in _EMPTY}
        return " ".join(f"{_clean(k)}={value_text(k, v)}" for k, v in held.items()) or "-"
    if isinstance(value, list | tuple):
        return ", ".join(value_text(name if name in KEYIDS else "", v) for v in value)
    if isinstance(value, int | float) and (number := _number_text(name.split("_"), value)):
        return number
    text = MOMENT.sub(r"\1 \2Z", _clean(str(value)))
    return f"{text[:KEYID_SHOWN]}…" if name in KEYIDS else text


def _number_text(words: Sequence[str], value: float) -> str:
    """Return a number with its unit; nothing if none of the words tells one."""
    if words[0] == "seconds":
        return str(timedelta(seconds=value))
    if words[-1] == "bp":
        number = f"{value / 100:.2f}".removesuffix(".00")
        return f"{number} {'points' if words[0] in POINTS else '%'}"
    if "bytes" in (words[0], words[-1]):
        return filesize.decimal(int(value))
    if words[0] in ("share", "density"):
        return f"{100 * value:.2f} %"
    return f"{value:.1f}" if words[0] == "bits" else ""


@contextmanager
def progress(label: str) -> Iterator[Progress]:
    """Give a function of (bytes done, bytes to do) that moves a bar, if stderr is a terminal."""
    from rich.console import Console
    from rich.progress import BarColumn, DownloadColumn, Progress, TextColumn, TransferSpeedColumn

    text, hidden = TextColumn("{task.description}", markup=False), not sys.stderr.isatty()
    columns = text, BarColumn(), DownloadColumn(), TransferSpeedColumn()
    with Progress(*columns, console=Console(stderr=True), transient=True, disable=hidden) as bar:
        task = bar.add_task(label, total=None)
        yield lambda done, total: bar.update(task, completed=done, total=total)


def blocks(read: Callable[[int], bytes], total: int, label: str) -> Generator[bytes, None, None]:
    """Give what `read` reads, block by block to its end, and move a bar."""
    done = 0
    with progress(label) as report:
        while block := read(BLOCK_BYTES):
            yield block
            done += len(block)
            report(done, max(total, done))


@contextmanager
def screen() -> Iterator[Callable[[str], None]]:
    """Give a function that shows a text: in place of the one before, if stdout is a terminal."""
    if not sys.stdout.isatty():
        yield lambda text: print(text, end="\n\n", flush=True)
        return
    from rich.live import Live
    from rich.text import Text

    with Live(auto_refresh=False, vertical_overflow="visible") as live:
        yield lambda text: live.update(Text(text, no_wrap=True, overflow="ellipsis"), refresh=True)


def _label(name: str) -> str:
    return _clean(name.removesuffix("_bp").replace("_", " "))


def _clean(text: str) -> str:
    return "".join(c if c.isprintable() else "\N{REPLACEMENT CHARACTER}" for c in text)
