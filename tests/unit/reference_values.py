"""What the reference reader says of the values of a manifest (see `reference`)."""

from typing import Any


class Refused(Exception):
    """The page says that this must not be."""


def must(holds: object, what: str) -> None:
    if not holds:
        raise Refused(what)


def number(value: Any, lowest: int, highest: int) -> int:
    must(type(value) is int and lowest <= value <= highest, "number")
    return int(value)


def text(value: Any, most: int) -> None:
    must(type(value) is str and len(value) <= most and value.isprintable(), "text")


def digest(value: Any) -> None:
    must(type(value) is str and len(value) == 64 and not set(value) - set("0123456789abcdef"), "")


def items(value: Any, most: int) -> Any:
    must(type(value) is list and len(value) <= most, "list")
    return value


def fields(value: Any, needed: str, optional: str = "") -> None:
    must(type(value) is dict, "object")
    must(set(needed.split()) <= set(value) <= set(f"{needed} {optional}".split()), "fields")
