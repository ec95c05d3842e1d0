"""What a signature would change: two versions of a signed document, compared to the last member.

Nothing may hide between what a person reads and what that person signs, so nothing here knows
what a document means: every member is an entry or part of one, and every entry that differs is
told. A family's entries are its files; root's and targets' are their keys and roles.
"""

import json
from collections.abc import Iterator, Mapping
from typing import Any

_LISTED = ("targets", "keys", "roles")  # members whose parts are entries of their own
_Path = tuple[str, ...]


def difference(before: Mapping[str, Any], after: Mapping[str, Any]) -> list[dict[str, str]]:
    """Return every change between the signed parts of two documents, as rows of text.

    Each row says `change` (added, removed, changed), `what`, and the values `before` and `after`.
    """
    old, new = (dict(_entries(dict(signed), ())) for signed in (before, after))
    rows = []
    for path in sorted(old.keys() | new.keys()):
        was, will = old.get(path), new.get(path)
        if was is None or will is None:
            change = "added" if was is None else "removed"
            rows.append(_row(change, path, _whole(was), _whole(will)))
            continue
        for part in sorted(was.keys() | will.keys()):
            if was.get(part) != will.get(part):
                rows.append(_row("changed", path + part, was.get(part, ""), will.get(part, "")))
    return rows


def as_lines(rows: list[dict[str, str]]) -> list[str]:
    """Return the changes as people read them, one a line."""
    return [
        f"{row['change']:8} {row['what']}: "
        + " -> ".join(row[n] or "none" for n in ("before", "after") if _told(row, n))
        for row in rows
    ]


def _told(row: Mapping[str, str], name: str) -> bool:
    return row["change"] == "changed" or (name == "after") == (row["change"] == "added")


def _row(change: str, path: _Path, before: str, after: str) -> dict[str, str]:
    return {"change": change, "what": _plain(" ", path), "before": before, "after": after}


def _entries(value: dict[str, Any], path: _Path) -> Iterator[tuple[_Path, dict[_Path, str]]]:
    """Give each entry of a document with its parts; together they are the whole of it."""
    for name, part in value.items():
        if name == "delegations" and isinstance(part, dict):
            yield from _entries(part, ("delegated",))
        elif name in _LISTED and part:
            roles = part if isinstance(part, dict) else {role["name"]: role for role in part}
            for key, entry in roles.items():
                yield (*path, name[:-1], key), dict(_leaves(entry, ()))
        else:
            yield (*path, name), dict(_leaves(part, ()))


def _leaves(value: Any, path: _Path) -> Iterator[tuple[_Path, str]]:
    if isinstance(value, dict) and value:
        for name, part in value.items():
            yield from _leaves(part, (*path, name))
    else:
        # As JSON, which shows a look-alike letter and a control character for what they are.
        yield path, json.dumps(value)


def _whole(parts: Mapping[_Path, str] | None) -> str:
    return " ".join(
        f"{_plain('.', path)}={value}".lstrip("=") for path, value in (parts or {}).items()
    )


def _plain(between: str, path: _Path) -> str:
    """Join names as JSON writes them: one with a line break makes no line of its own."""
    return between.join(json.dumps(name)[1:-1] for name in path)
