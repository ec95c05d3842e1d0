"""Where the server is, who we are there, and where the keys lie.

Flags come before `FLEETDIFF_SERVER`, `FLEETDIFF_TOKEN` and `FLEETDIFF_KEYS`, and those before the
file that `fleetdiff login` writes: `$XDG_CONFIG_HOME/fleetdiff/config.toml`, readable by its owner
only. A token is a `Secret` from the moment it is read, so that no message can show it.
"""

import json
import os
import tomllib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from urllib.parse import urlsplit

from release_manager.errors import Usage

_FIELDS = ("server", "token", "keys")


class Secret:
    """A text that shows itself as `***`."""

    __slots__ = ("_text",)

    def __init__(self, text: str) -> None:
        self._text = text

    def __repr__(self) -> str:
        return "***"

    def reveal(self) -> str:
        """Return the text itself, for the one place that needs it."""
        return self._text


@dataclass(frozen=True)
class Settings:
    """What a command needs to know about its surroundings."""

    server: str | None
    token: Secret | None
    keys: Path


def read_settings(flags: Mapping[str, object], environment: Mapping[str, str]) -> Settings:
    """Return the settings in force.

    Raises:
        Usage: the configuration file or the server's address cannot be understood.
    """
    stored = _read_file(config_file(environment))
    chosen = {
        name: flags.get(name) or environment.get(f"FLEETDIFF_{name.upper()}") or stored.get(name)
        for name in _FIELDS
    }
    token, keys = chosen["token"], chosen["keys"]
    if isinstance(token, str):
        token = Secret(token)
    return Settings(
        server=checked_server(str(chosen["server"])) if chosen["server"] else None,
        token=token if isinstance(token, Secret) else None,
        keys=Path(str(keys)) if keys else config_file(environment).with_name("keys"),
    )


def config_file(environment: Mapping[str, str]) -> Path:
    """Return the path of the configuration file, whether it exists or not."""
    folder = environment.get("XDG_CONFIG_HOME") or Path(environment.get("HOME", "~")) / ".config"
    return Path(folder).expanduser() / "fleetdiff" / "config.toml"


def write_config(path: Path, server: str, token: Secret, keys: Path | None) -> None:
    """Write the configuration file, readable by its owner only, in one step."""
    values = {"server": server, "token": token.reveal()}
    if keys is not None:
        values["keys"] = str(keys.absolute())
    # A JSON string is a TOML basic string.
    text = "".join(f"{name} = {json.dumps(value)}\n" for name, value in values.items())
    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(path, text.encode())


def replace_file(path: Path, content: bytes) -> None:
    """Put a file readable by its owner only at `path`: whole, or not at all."""
    part = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        descriptor = os.open(part, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        part.replace(path)
    finally:
        part.unlink(missing_ok=True)


def checked_server(address: str) -> str:
    """Return a server's address without its last slash.

    Raises:
        Usage: it is no http or https address, or it carries a password.
    """
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
    except FileNotFoundError:
        return {}
    except (tomllib.TOMLDecodeError, UnicodeDecodeError):
        # Not `from error`: its message may quote the line with the token.
        raise Usage(f"{path} is not TOML", "write it again with fleetdiff login") from None
    if not all(name in _FIELDS and isinstance(value, str) for name, value in stored.items()):
        raise Usage(
            f"{path} holds something else than the texts {', '.join(_FIELDS)}",
            "write it again with fleetdiff login",
        )
    return stored
