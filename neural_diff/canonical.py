"""Canonical JSON: one value has exactly one spelling, so a manifest can be compared as bytes.

Sorted keys, no spaces, ASCII only, integers only. Text is printable, so that a name can be shown
on a terminal or in a log line as it is.

What a value must be is said by a **reader**: a function of a value and of the words that name its
place, which gives what it read or refuses. An object is read by a table of readers, one a field;
a named tuple whose fields are annotated with readers is such a table.
"""

import json
import re
from collections.abc import Callable, Container, Hashable, Mapping
from functools import cache
from typing import Any, NamedTuple, NoReturn, TypeVar, get_args, get_type_hints

from neural_diff.errors import Malformed
from neural_diff.limits import NAME_CHARS_MAX

Reader = Callable[[object, str], Any]
Kind = TypeVar("Kind")


def serialise(value: object) -> bytes:
    """Gives the one spelling of a value made of objects, lists, texts and integers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(data: bytes) -> object:
    """Reads canonical JSON.

    Raises:
        Malformed: the bytes are no JSON, or not the one spelling of their value.
    """
    try:
        value = strict_json(data.decode("ascii"))
        spelled = serialise(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"manifest is not JSON ({error}); fetch the patch again") from None
    if spelled != data:
        raise Malformed("manifest is not in its canonical spelling (keys sorted, no spaces)")
    return value


def strict_json(spelled: str) -> object:
    """Reads JSON of integers only and with no key twice in an object; else a ValueError."""
    return json.loads(
        spelled,
        object_pairs_hook=_object,
        parse_float=_refuse_number,
        parse_constant=_refuse_number,
    )


def record(
    value: object, where: str, readers: Mapping[str, Reader], optional: Container[str] = ()
) -> dict[str, Any]:
    """Reads an object that has exactly the fields of a table; the optional ones may be left out."""
    needed = {name for name in readers if name not in optional}
    if not isinstance(value, dict) or not needed <= value.keys() <= readers.keys():
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise Malformed(f"{where}: fields must be {sorted(readers)}, found {found!s:.200}")
    return {name: readers[name](item, f"{where}: {name}") for name, item in value.items()}


def read_as(kind: Callable[..., Kind], value: object, where: str) -> Kind:
    """Reads an object as a named tuple; what has a default may be left out."""
    defaults: Mapping[str, Any] = kind._field_defaults  # type: ignore[attr-defined]
    return kind(**record(value, where, readers_of(kind), defaults))


@cache
def readers_of(kind: Hashable) -> dict[str, Reader]:
    """Gives the table that a class is: those of its fields that are annotated with a reader."""
    hints = get_type_hints(kind, include_extras=True)
    return {name: hint.__metadata__[0] for name, hint in hints.items() if get_args(hint)[1:]}


def spell(thing: NamedTuple) -> dict[str, Any]:
    """Gives the fields that `read_as` reads, without those that are as their default is."""
    given = {name: getattr(thing, name) for name in readers_of(thing.__class__)}
    defaults = thing._field_defaults
    return {name: x for name, x in given.items() if name not in defaults or x != defaults[name]}


def row_of(kind: Callable[..., Kind]) -> Callable[[object, str], Kind]:
    """Reads a list as a named tuple, each item by the reader of its field."""
    names = kind._fields  # type: ignore[attr-defined]

    def read(value: object, where: str) -> Kind:
        if not isinstance(value, list) or len(value) != len(names):
            raise Malformed(f"{where}: must be [{', '.join(names)}]".replace("_", " "))
        return kind(**record(dict(zip(names, value, strict=True)), where, readers_of(kind)))

    return read


def many(read: Reader, count_max: int, one: str) -> Reader:
    """Reads a list of at most `count_max` items; `one` is what an item is called."""
    whole = _reader(
        lambda value: isinstance(value, list) and len(value) <= count_max,
        f"a list of at most {count_max} items",
    )
    return lambda value, where: tuple(
        read(item, f"{where}: {one} {number}") for number, item in enumerate(whole(value, where))
    )


def named(read: Reader, count_max: int) -> Reader:
    """Reads an object of at most `count_max` values with names of their own."""
    name = text(NAME_CHARS_MAX)
    whole = _reader(
        lambda value: isinstance(value, dict) and len(value) <= count_max,
        f"an object of at most {count_max} names",
    )
    return lambda value, where: {
        name(key, where): read(item, f"{where}: {key}") for key, item in whole(value, where).items()
    }


def integer(lowest: int, highest: int) -> Reader:
    """Reads an integer within [lowest, highest]."""
    return _reader(
        lambda value: type(value) is int and lowest <= value <= highest,
        f"an integer from {lowest} to {highest}",
    )


def text(length_max: int) -> Reader:
    """Reads printable text of at most `length_max` characters."""
    return _reader(
        lambda value: isinstance(value, str) and len(value) <= length_max and value.isprintable(),
        f"printable text of at most {length_max} characters",
    )


def one_of(*allowed: object) -> Reader:
    """Reads a value that is one of those allowed, and of the same type."""
    # `True == 1`, and an unhashable value must not end a search with a TypeError.
    return _reader(
        lambda value: any(type(value) is type(a) and value == a for a in allowed),
        f"one of {allowed}",
    )


def _reader(holds: Callable[[Any], bool], must_be: str) -> Reader:
    def read(value: object, where: str) -> Any:
        if not holds(value):
            # What holds other values may be nested too deeply to be shown.
            shown = type(value).__name__ if isinstance(value, list | dict) else f"{value!r:.40}"
            raise Malformed(f"{where}: must be {must_be}, is {shown}")
        return value

    return read


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse_number(number: str) -> NoReturn:
    raise ValueError(f"{number:.20} is not an integer")


digest = _reader(
    lambda value: isinstance(value, str) and bool(re.fullmatch(r"[0-9a-f]{64}", value)),
    "a SHA-256 digest of 64 lowercase hexadecimal digits",
)
