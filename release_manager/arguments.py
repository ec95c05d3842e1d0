"""What users write on the command line, as values: shares, durations, pairs, names.

Each function takes the text and returns the value, or raises `argparse.ArgumentTypeError` with a
sentence that says what is expected.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Sequence
from decimal import Decimal
from typing import Any

from trust.roles import NAME

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}
FILTERS = "hardware=NAME, running=RELEASE, attributes.KEY=VALUE or tags.KEY=VALUE"


def name(text: str) -> str:
    """Return the name of a model, release or cohort."""
    if not NAME.match(text):
        raise ArgumentTypeError(
            f"{text!r} is not a name: small letters, digits, dot, dash, underscore, at most 64"
        )
    return text


def identity(text: str) -> str:
    """Return the id of a rollout or a device, as the server gave it."""
    if not re.fullmatch(r"[A-Za-z0-9._-]{1,64}", text) or text.strip(".") == "":
        raise ArgumentTypeError(f"{text!r} is not an id: copy it from a list command")
    return text


def share_bp(text: str) -> int:
    """Return a percentage in basis points."""
    match = re.fullmatch(r"([0-9]{1,3}(?:\.[0-9]{1,2})?)%", text)
    share = int(Decimal(match[1]) * 100) if match else 0
    if not 0 < share <= 10_000:
        raise ArgumentTypeError(f"{text!r} is not a share: write 5%, 0.25% or 100%")
    return share


def duration_s(text: str) -> int:
    """Return a duration in seconds."""
    match = re.fullmatch(r"([0-9]{1,9})([smhd]?)", text)
    if not match or not int(match[1]):
        raise ArgumentTypeError(f"{text!r} is not a duration: write 90s, 15m, 24h or 7d")
    return int(match[1]) * _SECONDS[match[2]]


def count(text: str) -> int:
    """Return a number of things, at least one."""
    if not re.fullmatch(r"[0-9]{1,9}", text) or not int(text):
        raise ArgumentTypeError(f"{text!r} is not a number from 1")
    return int(text)


def stages(text: str) -> list[dict[str, Any]]:
    """Return a rollout's stages, as the server takes them."""
    found: list[dict[str, Any]] = []
    for stage in text.split(","):
        share, _, soak = stage.strip().partition(":")
        found.append(
            {
                "share_bp": share_bp(share),
                "soak_s": duration_s(soak) if soak else 0,
                "in_flight_max": None,
            }
        )
    shares = [stage["share_bp"] for stage in found]
    if shares != sorted(set(shares)) or shares[-1] != 10_000:
        raise ArgumentTypeError(f"{text!r}: shares must grow from stage to stage, and end at 100%")
    return found


def pair(text: str) -> tuple[str, str]:
    """Return the two sides of `key=value`."""
    key, equals, value = text.partition("=")
    if not (key and equals and value):
        raise ArgumentTypeError(f"{text!r} is not of the form key=value")
    return key, value


def gate_entry(text: str) -> tuple[str, float]:
    """Return a field of the gate and its number."""
    key, value = pair(text)
    if not re.fullmatch(r"-?[0-9]{1,12}(\.[0-9]{1,12})?", value):
        raise ArgumentTypeError(f"{text!r}: a field of the gate is a number")
    return key, float(value) if "." in value else int(value)


def filter_entry(text: str) -> tuple[str, str]:
    """Return one condition on a cohort's devices."""
    key, value = pair(text)
    first, dot, rest = key.partition(".")
    fitting = bool(dot and rest) if first in ("attributes", "tags") else not dot
    if first not in ("hardware", "running", "attributes", "tags") or not fitting:
        raise ArgumentTypeError(f"{text!r} is not a filter: write {FILTERS}")
    return key, value


def cohort_filter(entries: Sequence[tuple[str, str]]) -> dict[str, Any]:
    """Return the filter document that these conditions mean together."""
    document: dict[str, Any] = {}
    for key, value in entries:
        kind, dot, rest = key.partition(".")
        if dot:
            document.setdefault(kind, {})[rest] = value
        else:
            document.setdefault(kind, []).extend(value.split(","))
    return document
