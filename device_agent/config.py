"""What a device is told once, in a TOML file: who it is, whom it trusts, and every limit.

Strict: an unknown key, a missing one or a wrong type is an error that names the key, because a
misspelt limit must not become a default one.
"""

import json
import re
import tomllib
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Annotated
from urllib.parse import urlsplit

from device_agent.errors import Misconfigured
from device_agent.strict import read
from trust.roles import DEV_PROFILE, NAME

SERIAL = re.compile(r"(?s).{1,128}\Z")
ON_WITHDRAWN = re.compile(r"(report|previous_slot)\Z")  # when the running release is withdrawn
AGENT_VERSION = "0.1.0"
LOOPBACK = ("127.0.0.1", "::1", "localhost")


@dataclass(frozen=True)
class Limits:
    """Every limit of the agent, with its unit last in the name (table `[limits]`)."""

    poll_s: float = 900.0  # between polls, unless the server says Poll-After
    poll_s_min: float = 1.0
    poll_s_max: float = 86_400.0
    start_spread_s: float = 10.0  # the first poll of a process waits up to this long
    retry_s: float = 5.0  # the first delay after trouble; doubles
    retry_s_max: float = 3_600.0
    quick_retries_max: int = 2  # of a question; then it is asked at the next poll
    retries_max: int = 20  # then an attempt is given back and the server asked afresh
    request_s_max: float = 30.0  # for a whole request that is not a download
    silence_s_max: float = 20.0  # for one read or one connect
    rate_bytes_s_min: int = 256  # of a download, over any window
    rate_window_s: float = 30.0
    spare_bytes: int = 1024 * 1024  # kept free beside what an update needs
    recogniser_s_max: float = 600.0  # for a whole trial


@dataclass(frozen=True)
class Config:
    """One device, as its owner set it up."""

    server: str  # https://updates.example
    model: Annotated[str, NAME]
    serial: Annotated[str, SERIAL]
    hardware: Annotated[str, NAME]
    state_dir: Path
    root: Path  # the pinned root.json
    formats: tuple[str, ...] = ()  # of model files that its engine reads; none: any
    on_withdrawn: Annotated[str, ON_WITHDRAWN] = "report"
    recogniser: tuple[str, ...] = ()  # CMD; run as CMD --model FILE --canary DIR
    may_try: tuple[str, ...] = ()  # CMD; a trial waits until it exits with 0: idle, charging
    probe: tuple[str, ...] = ()  # CMD; prints what is so: idle, charging, fast, slow, metered
    blob_hosts: tuple[str, ...] = ()  # host[:port] that artifacts may be redirected to
    ca_file: str = ""  # trust this authority instead of the system's
    client_cert: str = ""  # a PEM file with a certificate and its key, shown to the server
    plain_http: bool = False  # http beyond the loopback interface
    dev_root: bool = False  # accept a root made for development
    attributes: dict[str, str] = field(default_factory=dict)
    limits: Limits = field(default_factory=Limits)

    def __post_init__(self) -> None:
        address = urlsplit(self.server)
        if address.scheme not in ("https", "http") or not address.hostname:
            raise Misconfigured(f"server = {self.server!r} is not an http(s) address")
        if address.scheme == "http" and address.hostname not in LOOPBACK and not self.plain_http:
            raise Misconfigured("server must be https, or set plain_http = true")


def load_config(path: Path) -> Config:
    """Return the configuration in a file; relative paths in it are relative to it.

    Raises:
        Misconfigured: it is missing, not understood, or contradicts itself.
    """
    try:
        config = read(Config, tomllib.loads(path.read_text(encoding="utf-8")), exact=True)
    except (OSError, ValueError) as error:
        raise Misconfigured(f"{path}: {error}") from error
    folder = path.parent
    return replace(config, state_dir=folder / config.state_dir, root=folder / config.root)


def read_root(config: Config) -> tuple[bytes, int]:
    """Return the pinned root of a configuration, and its version.

    Raises:
        Misconfigured: it is missing, no root, or made for development.
    """
    try:
        body = config.root.read_bytes()
        signed = json.loads(body)["signed"]
        version, profile = int(signed["version"]), signed.get(DEV_PROFILE)
    except (OSError, ValueError, KeyError, TypeError, AttributeError) as error:
        raise Misconfigured(f"root = '{config.root}' is no root metadata: {error}") from error
    if profile == "dev" and not config.dev_root:
        raise Misconfigured(f"{config.root} is a development root; dev_root = true accepts it")
    return body, version
