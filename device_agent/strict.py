"""One strict reader for whatever was not made in memory: the wire, files, an engine's output.

A dataclass says by its annotations what may stand where; `read` builds it from JSON or TOML
values, or names the first thing that does not fit. `Annotated` narrows a type: a text by a
pattern, a number by its maximum, a list by its maximal length (and then it is not empty). Numbers
are never negative. Keys that nobody asks for are ignored, unless the reading is `exact`.
"""

import json
import re
from dataclasses import fields, is_dataclass
from datetime import datetime
from pathlib import Path
from types import UnionType
from typing import Annotated, Any, TypeVar, Union, cast, get_args, get_origin, get_type_hints

from device_agent.errors import Rejected
from trust.order import read_time

T = TypeVar("T")


def accept(kind: type[T], value: Any, code: str) -> T:
    """Return a stranger's JSON, as bytes or parsed, as a value of this type.

    Raises:
        Rejected: with this code, if it does not fit.
    """
    try:
        return read(kind, json.loads(value) if isinstance(value, bytes) else value)
    except (ValueError, RecursionError) as error:
        raise Rejected(code, str(error)) from error


def read(kind: type[T], value: Any, *, exact: bool = False) -> T:
    """Return JSON or TOML values as a value of this type.

    Raises:
        ValueError: names the key that does not fit, is missing or, if `exact`, is unknown.
    """
    return cast(T, _read(kind, value, "", exact))


def _read(kind: Any, value: Any, where: str, exact: bool) -> Any:
    origin, inner = get_origin(kind), get_args(kind)
    if is_dataclass(kind) and isinstance(value, dict):
        return _record(kind, value, where, exact)
    if origin is Annotated:
        return _narrow(_read(inner[0], value, where, exact), inner[1], where)
    if origin in (UnionType, Union):  # X | None
        return None if value is None else _read(inner[0], value, where, exact)
    if origin is tuple and isinstance(value, list | tuple):
        kinds = inner[:1] * len(value) if inner[-1] is ... else inner
        pairs = zip(kinds, value, strict=True)
        return tuple(_read(k, v, f"{where}[{n}]", exact) for n, (k, v) in enumerate(pairs))
    if origin is dict and isinstance(value, dict):
        return {k: _read(inner[1], v, f"{where}.{k}", exact) for k, v in value.items()}
    return _plain(kind, value, where)


def _record(kind: Any, value: dict[str, Any], where: str, exact: bool) -> Any:
    hints, found = get_type_hints(kind, include_extras=True), {}
    if exact and (unknown := sorted(set(value) - set(hints))):
        raise ValueError(f"unknown key {unknown[0]!r}")
    for field in fields(kind):
        if field.name in value:
            place = f"{where}.{field.name}".lstrip(".")
            found[field.name] = _read(hints[field.name], value[field.name], place, exact)
        elif field.default is field.default_factory:  # There is neither.
            raise ValueError(f"missing key {field.name!r}")
    return kind(**found)


def _plain(kind: Any, value: Any, where: str) -> Any:
    if kind is Path and isinstance(value, str):
        return Path(value)
    if kind is datetime:
        return read_time(value)
    if kind is float and type(value) is int:
        value = float(value)
    fits = kind is Any or type(value) is kind
    if not fits or (kind in (int, float) and not value >= 0):  # Nor is NaN.
        raise _misfit(value, where)
    if kind is str:
        value.encode()  # Half a surrogate pair is no text.
    return value


def _narrow(value: Any, limit: re.Pattern[str] | int, where: str) -> Any:
    if isinstance(limit, re.Pattern):
        fits = limit.match(value) is not None
    else:
        fits = value <= limit if isinstance(value, int) else 0 < len(value) <= limit
    if not fits:
        raise _misfit(value, where)
    return value


def _misfit(value: Any, where: str) -> ValueError:
    return ValueError(f"{where or 'the document'} = {value!r:.80} has a wrong type or value")
