"""Canonical JSON: one value has exactly one spelling, so a manifest can be compared as bytes.

Sorted keys, no spaces, ASCII only, integers only. Text is printable, so that a name can be shown
on a terminal or in a log line as it is.
"""

import json
import re
from collections.abc import Collection
from typing import Any, NoReturn

from neural_diff.errors import Malformed

_SHA256 = re.compile(r"[0-9a-f]{64}")


def serialise(value: object) -> bytes:
    """Gives the one spelling of a value made of objects, lists, texts and integers."""
    return json.dumps(value, sort_keys=True, separators=(",", ":"), allow_nan=False).encode()


def parse(data: bytes) -> object:
    """Reads canonical JSON.

    Raises:
        Malformed: the bytes are no JSON, or not the one spelling of their value.
    """
    try:
        value = json.loads(
            data.decode("ascii"),
            object_pairs_hook=_object,
            parse_float=_refuse_number,
            parse_constant=_refuse_number,
        )
        spelled = serialise(value)
    except (ValueError, RecursionError) as error:
        raise Malformed(f"manifest is not JSON ({error}); fetch the patch again") from None
    if spelled != data:
        raise Malformed("manifest is not in its canonical spelling (keys sorted, no spaces)")
    return value


def fields(value: object, where: str, names: Collection[str]) -> dict[str, Any]:
    """Gives an object that has exactly the named fields."""
    if not isinstance(value, dict) or value.keys() != set(names):
        found = sorted(value) if isinstance(value, dict) else type(value).__name__
        raise Malformed(f"{where}: fields must be {sorted(names)}, found {found!s:.200}")
    return value


def items(value: object, where: str, count_max: int) -> list[Any]:
    """Gives a list of at most `count_max` items."""
    if not isinstance(value, list) or len(value) > count_max:
        raise Malformed(f"{where}: must be a list of at most {count_max} items")
    return value


def integer(value: object, where: str, lowest: int, highest: int) -> int:
    """Gives an integer within [lowest, highest]."""
    if type(value) is not int or not lowest <= value <= highest:
        raise Malformed(f"{where}: must be an integer from {lowest} to {highest}, is {value!r:.40}")
    return value


def text(value: object, where: str, length_max: int) -> str:
    """Gives printable text of at most `length_max` characters."""
    if not isinstance(value, str) or len(value) > length_max or not value.isprintable():
        raise Malformed(f"{where}: must be printable text of at most {length_max} characters")
    return value


def digest(value: object, where: str) -> str:
    """Gives a SHA-256 digest as 64 lowercase hexadecimal digits."""
    if not isinstance(value, str) or not _SHA256.fullmatch(value):
        raise Malformed(f"{where}: must be a SHA-256 digest of 64 lowercase hexadecimal digits")
    return value


def one_of(value: object, where: str, allowed: tuple[Any, ...]) -> Any:
    """Gives a value that is one of those allowed, and of the same type."""
    # `True == 1`, and an unhashable value must not end a search with a TypeError.
    if not any(type(value) is type(choice) and value == choice for choice in allowed):
        raise Malformed(f"{where}: must be one of {allowed}, is {value!r:.40}")
    return value


def _object(pairs: list[tuple[str, object]]) -> dict[str, object]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a key stands twice in one object")
    return found


def _refuse_number(number: str) -> NoReturn:
    raise ValueError(f"{number:.20} is not an integer")
