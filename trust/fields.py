"""How the fields of signed objects are read: strictly, so that two readers never differ.

A class says of each signed field who reads it and, if it differs, its name in the document:
`field(metadata=signed(count, "n"))`. A reader takes a JSON value and returns the attribute, or
raises ValueError.
"""

import re
from collections.abc import Callable
from dataclasses import Field, fields, is_dataclass
from typing import Any

NAME_FORM = r"[a-z0-9][a-z0-9._-]{0,63}"
NAME = re.compile(rf"{NAME_FORM}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_NUMBER = "(0|[1-9][0-9]{0,8})"
VERSION = re.compile(rf"{_NUMBER}\.{_NUMBER}\.{_NUMBER}\Z")


def signed(
    read: Callable[[Any], Any], named: str = "", *, optional: bool = False
) -> dict[str, Any]:
    """Return what a field says of its signed form: its reader, and its name there if another.

    An optional one that is empty is not written: who never heard of it still reads the document.
    """
    return {"read": read, "named": named, "optional": optional}


def signed_names(kind: type) -> dict[str, Field[Any]]:
    """Return the signed names of a class, each with its field."""
    found = [field for field in fields(kind) if field.metadata]
    return {field.metadata["named"] or field.name: field for field in found}


def read(kind: type, document: Any) -> dict[str, Any]:
    """Return the attributes of a class as a signed document gives them.

    Raises:
        ValueError, KeyError, TypeError: it does not.
    """
    return {
        field.name: field.metadata["read"](document[name])
        for name, field in signed_names(kind).items()
        if name in document or not field.metadata["optional"]
    }


def write(value: Any) -> dict[str, Any]:
    """Return the signed form of an object: what `read` reads, in the one way to write it."""
    found = {}
    for name, field in signed_names(type(value)).items():
        held = getattr(value, field.name)
        if held or not field.metadata["optional"]:
            found[name] = _plain(held)
    return found


def _plain(value: Any) -> Any:
    if isinstance(value, tuple):
        return list(map(_plain, value))
    return write(value) if is_dataclass(value) else value


def text(value: Any, form: re.Pattern[str] = re.compile(""), expected: str = "a text") -> str:
    """Return a text of this form."""
    if not isinstance(value, str) or not form.match(value):
        raise ValueError(f"{value!r} is not {expected}")
    return value


def name(value: Any) -> str:
    """Return a name."""
    return text(value, NAME, "a name")


def names(values: Any) -> tuple[str, ...]:
    """Return a list of names."""
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list of names")
    return tuple(name(value) for value in values)


def digest(value: Any) -> str:
    """Return a digest."""
    return text(value, SHA256, "a SHA-256 digest")


def version(value: Any) -> str:
    """Return a version: three numbers, as 1.20.0."""
    return text(value, VERSION, "a version: three numbers, as 1.20.0")


def is_at_least(version: str, least: str) -> bool:
    """Whether a version is this one or a later one; what is no version is none."""
    if not VERSION.match(version):
        return not least
    numbers = [[int(number) for number in text.split(".")] for text in (version, least or "0")]
    return numbers[0] >= numbers[1]


def count(value: Any, least: int = 1) -> int:
    """Return a number from 1."""
    if type(value) is not int or not least <= value < 1 << 53:
        raise ValueError(f"{value!r} is not an integer from {least}")
    return value


def counts(values: Any, most: int) -> tuple[int, ...]:
    """Return a list of numbers from 0, neither empty nor longer than that."""
    if not isinstance(values, list) or not 0 < len(values) <= most:
        raise ValueError(f"{values!r:.80} is not a list of up to {most} numbers")
    return tuple(count(value, 0) for value in values)


def change(value: Any) -> int:
    """Return a difference of numbers."""
    return count(value, -(1 << 53))


def second(value: Any) -> int:
    """Return a moment in seconds since 1970, or 0."""
    return count(value, 0)


def switch(value: Any) -> bool:
    """Return true or false."""
    if not isinstance(value, bool):
        raise ValueError(f"{value!r} is neither true nor false")
    return value


def one_of(choices: tuple[str, ...]) -> Callable[[Any], str]:
    """Return the reader of a text that is one of these."""
    form = re.compile(rf"(?:{'|'.join(choices)})\Z")
    return lambda value: text(value, form, f"one of {', '.join(choices)}")
