"""Where the server is, who we are there, and where the keys lie.

Flags come before `FLEETDIFF_SERVER`, `FLEETDIFF_TOKEN` and `FLEETDIFF_KEYS`, and those before the
file that `fleetdiff login` writes: `$XDG_CONFIG_HOME/fleetdiff/config.toml`, readable by its owner
only. A token becomes a `Secret` here, so that no message can show it.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

from release_manager.errors import Refused, Usage

PUBLIC = 0o644  # mode of a file that is for everybody, as a root is
_FIELDS = ("server", "token", "keys")


@dataclass(frozen=True, repr=False)
class Secret:
    """A text that shows itself as `***`."""

    revealed: str

    def __repr__(self) -> str:
        return "***"


@dataclass(frozen=True)
class Settings:
    """What a command needs to know about its surroundings."""

    server: str | None
    token: Secret | None
    keys: Path


def read_settings(flags: Mapping[str, Any], environment: Mapping[str, str]) -> Settings:
    """Return the settings in force.

    Raises:
        Usage: the configuration file or the server's address cannot be understood.
    """
    file = config_file(environment)
    stored = _read_file(file)
    server, token, keys = (
        flags.get(name) or environment.get(f"FLEETDIFF_{name.upper()}") or stored.get(name)
        for name in _FIELDS
    )
    return Settings(
        server=_checked_address(server) if server else None,
        token=Secret(token) if token else None,
        keys=Path(keys or file.with_name("keys")),
    )


def config_file(environment: Mapping[str, str]) -> Path:
    """Return the path of the configuration file, whether it exists or not."""
    folder = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "~")) / ".config"
    return Path(folder).expanduser() / "fleetdiff" / "config.toml"


def write_config(path: Path, values: Mapping[str, str]) -> None:
    """Write the configuration file, readable by its owner only, in one step."""
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    # A JSON string is a TOML basic string.
    lines = [f"{name} = {json.dumps(value)}\n" for name, value in values.items()]
    replace_file(path, "".join(lines).encode())


def replace_file(path: Path, content: bytes, mode: int = 0o600) -> None:
    """Put a file at `path`, readable by its owner only: whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    part.touch(mode=mode, exist_ok=False)
    try:
        with part.open("wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def recall(file: Path, advice: str) -> dict[str, tuple[int, str]]:
    """Return what this machine remembers of servers in a file: how far what went, and a digest.

    Raises:
        Refused: it is damaged.
    """
    try:
        found = json.loads(file.read_bytes()) if file.exists() else {}
        return {name: (int(number), str(digest)) for name, (number, digest) in found.items()}
    except (ValueError, TypeError, AttributeError):
        raise Refused(f"{file} is damaged", advice) from None


def _checked_address(address: str) -> str:
    parts = urlsplit(address)
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.username:
        raise Usage(
            "the server's address is not understood",
            "give it as https://HOST[:PORT], without a user or password",
        )
    return address.rstrip("/")


def _read_file(path: Path) -> dict[str, str]:
    try:
        stored = tomllib.loads(path.read_text())
        if all(name in _FIELDS and isinstance(value, str) for name, value in stored.items()):
            return stored
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        pass  # What they say may quote the line with the token.
    raise Usage(
        f"{path} is not TOML with the texts {', '.join(_FIELDS)}",
        "write it again with fleetdiff login",
    )
