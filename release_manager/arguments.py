"""What users write on the command line: every argument once, and how its text becomes a value.

A reader takes the text and returns the value, or raises `argparse.ArgumentTypeError` with a
sentence that says what is expected.
"""

import re
from argparse import ArgumentTypeError
from collections.abc import Callable, Sequence
from decimal import Decimal
from operator import itemgetter
from pathlib import Path
from typing import Any

from release_manager.rollouts import STATES, WAITABLE
from trust.fields import NAME, NAME_FORM, VERSION

_SECONDS = {"": 1, "s": 1, "m": 60, "h": 3600, "d": 86400}


def _reader(
    pattern: str, expected: str, value: Callable[[re.Match[str]], Any] = itemgetter(0)
) -> Callable[[str], Any]:
    """Return the reader of texts that match a pattern and whose value is not zero."""

    def read(text: str) -> Any:
        match = re.fullmatch(pattern, text)
        found = value(match) if match else None
        if not found:
            raise ArgumentTypeError(f"{text!r} is not {expected}")
        return found

    return read


def _number(text: str) -> float:
    return float(text) if "." in text else int(text)


NAMES = "a name: small letters, digits, dot, dash, underscore, at most 64"
ROLES = "a role: root, targets, snapshot, timestamp, director or family-MODEL"
FILTERS = "a filter: hardware=NAME, running=RELEASE, attributes.KEY=VALUE or tags.KEY=VALUE"
name = _reader(NAME.pattern, NAMES)
identity = _reader(r"(?!\.+$)[A-Za-z0-9._-]{1,64}", "an id: copy it from a list command")
role = _reader(rf"root|targets|snapshot|timestamp|director|family-{NAME_FORM}|.+\.json", ROLES)
component = _reader(
    rf"({NAME_FORM})=(.+)",
    "a component: what devices call it and its file, as tokenizer.json=./tokenizer.json",
    lambda match: (match[1], Path(match[2])),
)
version = _reader(VERSION.pattern, "a version: three numbers, as 1.20.0")
count = _reader(r"[0-9]{1,9}", "a number from 1", lambda match: int(match[0]))
share_bp = _reader(
    r"(100(?:\.00?)?|[0-9]{1,2}(?:\.[0-9]{1,2})?)%",
    "a share: write 5%, 0.25% or 100%",
    lambda match: int(Decimal(match[1]) * 100),
)
duration_s = _reader(
    r"([0-9]{1,9})([smhd]?)",
    "a duration: write 90s, 15m, 24h or 7d",
    lambda match: int(match[1]) * _SECONDS[match[2]],
)
_UNITS = {"": 1, "kB": 10**3, "MB": 10**6, "GB": 10**9, "TB": 10**12}
size = _reader(
    r"([0-9]{1,9})([kMGT]B)?",
    "a size: write 500MB, 20GB or a number of bytes",
    lambda match: int(match[1]) * _UNITS[match[2] or ""],
)
moment = _reader(
    r"[0-9]{4}-[0-9]{2}-[0-9]{2}T([01][0-9]|2[0-3]):[0-5][0-9](:[0-5][0-9])?(Z|[+-][0-9]{2}:[0-9]{2})",
    "a time with its zone: write 2026-12-01T03:00Z or 2026-12-01T03:00+01:00",
)
window = _reader(
    r"([01][0-9]|2[0-3]):([0-5][0-9])-([01][0-9]|2[0-3]):([0-5][0-9])",
    "a window of the day: write 01:00-05:00",
    lambda match: {
        "start_min": int(match[1]) * 60 + int(match[2]),
        "end_min": int(match[3]) * 60 + int(match[4]),
    },
)
gate_entry = _reader(
    r"([^=]+)=(-?[0-9]{1,12}(?:\.[0-9]{1,12})?)",
    "a field of the gate and its number, as margin_rel=0.02",
    lambda match: (match[1], _number(match[2])),
)
filter_entry = _reader(
    r"(hardware|running|(?:attributes|tags)\.[^=]+)=(.+)", FILTERS, itemgetter(1, 2)
)


def stages(text: str) -> list[dict[str, Any]]:
    """Return a rollout's stages, as the server takes them."""
    found: list[dict[str, Any]] = []
    for stage in text.split(","):
        share, _, soak = stage.strip().partition(":")
        soak_s = duration_s(soak) if soak else 0
        found.append({"share_bp": share_bp(share), "soak_s": soak_s, "in_flight_max": None})
    shares = [stage["share_bp"] for stage in found]
    if shares != sorted(set(shares)) or shares[-1] != 10_000:
        raise ArgumentTypeError(f"{text!r}: shares must grow from stage to stage, and end at 100%")
    return found


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


def _arg(text: str, read: Callable[[str], Any] | None = None, **options: Any) -> dict[str, Any]:
    """Return an argument in the words of `add_argument`; without a reader it is a switch."""
    default = " (default: %(default)s)" if options.get("default") else ""
    kind = {"type": read} if read else {"action": "store_true"}
    return {"help": text + default, **kind, **options}


def _many(text: str, read: Callable[[str], Any], **options: Any) -> dict[str, Any]:
    return _arg(f"{text}; may be repeated", read, action="append", default=[], **options)


ARGUMENTS: dict[str, dict[str, Any]] = {
    "MODEL": _arg("name of the model", name),
    "RELEASE": _arg("name of the release, for example r2", name),
    "ROLE": _arg("root, targets, family-MODEL; or as the help says", role),
    "URI": _arg("where the key is: a file, or SCHEME:NAME", str),
    "URL": _arg("the address to call", str),
    "NAME": _arg("what it is called", name),
    "ID": _arg("as the list command shows it", identity),
    "FILE": _arg("the full model file", Path),
    "FOLDER": _arg("holds canary.json and its shards", Path),
    "BASE": _arg("the file that devices have", Path),
    "TARGET": _arg("the new file", Path),
    "SOURCE": _arg("the release that the patch starts from", name),
    "--from": _arg("the release it comes from", name, metavar="RELEASE", dest="source"),
    "--on": _arg("a device, by id: from what it runs, within what it has", identity, metavar="ID"),
    "--lift": _arg("it is a floor no more"),
    "--accept-full-downloads": _arg("start even if patches are missing"),
    "PATCH": _arg("the patch file; several in order", Path),
    "--key": _arg("where the key is; sign looks in the folder of keys", str, metavar="URI"),
    "--yes": _arg("sign without asking"),
    "--passphrase": _arg("protect the file with a passphrase, which is asked for"),
    "--add": _many("a public key of somebody who may sign", Path, metavar="FILE"),
    "--remove": _many("a key that signs no more, by its id", identity, metavar="KEYID"),
    "--threshold": _arg("how many must sign", count),
    "--fallback": _arg("the release that devices may go back to", name, metavar="RELEASE"),
    "--ceremony": _arg("who holds the keys", Path, metavar="FILE"),
    "--dev": _arg("all keys in one folder, held by one person"),
    "--publish": _arg("only give a folder's root to the server"),
    "--out": _arg("the file to write", Path),
    "--buckets": _arg("trained buckets, instead of TARGET", Path, metavar="FILE"),
    "--result": _arg("with --buckets: the new file to write", Path, metavar="FILE"),
    "--patch": _many("a patch that leads to FILE", Path, metavar="FILE"),
    "--hardware": _many("only for this hardware", name, metavar="NAME"),
    "--format": _arg("of the model file", name, default="safetensors"),
    "--component": _many("a file that goes with FILE", component, metavar="NAME=FILE"),
    "--recogniser": _arg("run as CMD --model FILE --canary DIR", str, metavar="CMD"),
    "--margin": _arg("harmless rise, as a share of the old rate", share_bp, default="2%"),
    "--evaluation": _arg("what release evaluate wrote for FILE", Path, metavar="FILE"),
    "--accept-worse": _arg("publish though it is worse than the margin; this is signed with it"),
    "--min-agent": _arg("only for agents of this version or later", version),
    "--rollback-from-here": _arg("allow the way back to the newest release, even without a patch"),
    "--rollback-days": _arg("end the way back after so many days", count, metavar="N"),
    "--rollback": _arg("also from later releases, along the ways back that the family signs"),
    "--no-rollback": _arg("allow no way back (default: to the releases that patches start from)"),
    "--model": _arg("whose devices or rollouts", name),
    "--cohort": _arg("the cohort", name),
    "--device": _many("a device, by id", identity, metavar="ID"),
    "--filter": _many("what its devices are, as hardware=h1", filter_entry, metavar="KEY=VALUE"),
    "--exact": _arg("count each device, which takes seconds where there are millions"),
    "--limit": _arg("at most so many", count, default=100),
    "--uses": _arg("how many devices", count, default=1),
    "--ttl": _arg("how long it is good", duration_s, default="24h"),
    "--stages": _arg("shares, each at least so long", stages, default="5%:24h,25%:24h,100%"),
    "--gate": _many("a field of the gate", gate_entry, metavar="KEY=VALUE"),
    "--on-halt": _arg("what devices do then", str, choices=("revert", "keep"), default="revert"),
    "--on-network": _many("only there", str, choices=("fast", "slow", "metered")),
    "--idle": _arg("only while a device is idle"),
    "--charging": _arg("only while a device is charging"),
    "--window": _arg("only then, by a device's own clock", window, metavar="HH:MM-HH:MM"),
    "--priority": _arg("1 to 9: it goes before rollouts with less", count, default=0, metavar="N"),
    "--no-new": _arg("not to devices that enroll after the start"),
    "--per-minute": _arg("so many devices may begin in a minute", count, metavar="N"),
    "--bytes": _arg("so much may be sent in all, as 500GB", size, metavar="SIZE"),
    "--at": _arg("not before, as 2026-12-01T03:00Z", moment, metavar="TIME"),
    "--reason": _arg("why; kept with the rollout", str, default=""),
    "--scope": _many("what it opens, as releases:read", str, metavar="SCOPE"),
    "--lifetime": _arg("how long it is good", duration_s, default="90d"),
    "--network": _many("the only network it may come from, as 10.0.0.0/8", str, metavar="CIDR"),
    "--event": _many("what it is told (default: rollout.*)", str, metavar="NAME"),
    "--rollout": _arg("only by the rules of this rollout", identity, metavar="ID"),
    "--state": _arg("only in this state", str, choices=STATES),
    "--until": _arg("the state to wait for", str, choices=WAITABLE, default="completed"),
    "--timeout": _arg("as 90s or 2h (default: wait for ever)", duration_s),
    "--watch": _arg("show every change until it ends"),
}
COMMON = {
    "--server": _arg("address of the server", str, metavar="URL"),
    "--token": _arg("API token", str),
    "--keys": _arg("folder of keys", Path, metavar="DIR"),
    "--json": _arg("print one JSON document"),
}
