"""Who a device is to its server: the credential in force, and those it may have to go back to.

The server renews a credential now and then, and takes both until the new one is first used. The
device keeps in one file, replaced at once, the newest, the one before, and the last one with which
an order came that was new: a false server can make up the first two, and withhold the third, but
not make it up. So no power cut loses them, a server that was set back still knows the device, and
whoever was in the network for a while leaves behind no device that must enroll again.

A credential is a secret that is sent (`fc_...`), or a private key that signs (`fs_...`).
"""

import importlib
import json
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from dataclasses import asdict, dataclass, replace
from datetime import UTC, datetime
from email.utils import parsedate_to_datetime
from functools import partial
from http.client import HTTPResponse
from pathlib import Path
from typing import Any, cast

from device_agent.disk import write_durably
from device_agent.errors import Misconfigured, Unavailable
from device_agent.strict import read

CREDENTIAL = "credential.json"
AFRESH = "revoke the device, remove its state folder and enroll again"
REFUSALS_MAX = 3  # in a row, then another credential is tried: one alone is no news
CLOCK_S_MAX = 2.0  # that a clock may be wrong before it matters; a Date has whole seconds
UTC_NOW = partial(datetime.now, UTC)


@dataclass(frozen=True)
class Credential:
    """Who this device is to its server, as enrollment or the last renewal said.

    Attributes:
        credential: the newest.
        before: the one that was in force before it.
        proven: the last one with which a new order came.
        refused: how often in a row the server refused.
    """

    device_id: str
    credential: str
    before: str = ""
    proven: str = ""
    refused: int = 0

    @property
    def in_use(self) -> str:
        """The one to use now: the newest, unless it was refused too often."""
        known = dict.fromkeys(filter(None, (self.credential, self.before, self.proven)))
        return [*known, ""][self.refused // REFUSALS_MAX % max(len(known), 1)]


class Identity:
    """A device's credential on its disk, and how a request says whose it is.

    Args:
        known: what the disk holds; nothing before enrollment.
        folder: where it is kept.
        clock: what is signed has a time: by this clock, put right by the server's.
    """

    def __init__(
        self, known: Credential, folder: Path, clock: Callable[[], datetime] = UTC_NOW
    ) -> None:
        self.known, self._folder, self._clock = known, folder, clock
        self._ahead_s, self._number = 0.0, 0

    @property
    def signs(self) -> bool:
        """Whether requests are signed, rather than sent with a secret."""
        return self.known.in_use.startswith("fs_")

    @property
    def is_nobody(self) -> bool:
        """Whether nobody gave this device a name yet."""
        return not (self.known.device_id if self.signs else self.known.in_use)

    def headers(self, method: str, url: str, body: bytes) -> dict[str, str]:
        """Return the headers that say who calls."""
        mine, device_id = self.known.in_use, self.known.device_id
        if not self.signs:
            return {"Authorization": f"Bearer {mine}"} if mine else {}
        now_s = self._clock().timestamp() + self._ahead_s
        self._number = max(self._number + 1, int(now_s * 1_000_000))
        made = signing().sign(mine, device_id, method, url, body, self._number)
        return cast(dict[str, str], made)

    def read_date(self, found: HTTPResponse) -> bool:
        """Put our clock right by the server's; whether it refused us because it was wrong."""
        with suppress(ValueError, TypeError, OverflowError):
            told = parsedate_to_datetime(found.getheader("Date", ""))
            ahead_s = (told - self._clock()).total_seconds()
            if self.signs and abs(ahead_s - self._ahead_s) > CLOCK_S_MAX:
                self._ahead_s = ahead_s
                self._number = 0 if found.status == 401 else self._number
                return found.status == 401
        return False

    @contextmanager
    def judged(self) -> Iterator[None]:
        """Count refusals, which may be wrong for a moment; go on with what is accepted after them.

        Raises:
            Unavailable: as it is asked.
        """
        try:
            yield
        except Unavailable as error:
            if error.refused:
                self._keep(refused=self.known.refused + 1)
            raise
        if self.known.refused:
            used, newest = self.known.in_use, self.known.credential
            before = newest if used != newest else self.known.before
            self._keep(credential=used, before=before, refused=0)

    def was_proven(self) -> None:
        """Note that an order came that only the true service can give, and that is new."""
        if self.known.proven != self.known.in_use:
            self._keep(proven=self.known.in_use)

    def renew(self, fresh: str) -> None:
        """Be this from now on."""
        used = self.known.in_use
        self._keep(credential=fresh, before=used, proven=self.known.proven or used)

    def _keep(self, **changes: Any) -> None:
        known = replace(self.known, **changes)
        keep(self._folder, known)
        self.known = known  # only now: what is used is on the disk


def read_credential(folder: Path) -> Credential:
    """Return who the device with this state folder is.

    Raises:
        Misconfigured: it is not enrolled, or the file is damaged.
    """
    path = folder / CREDENTIAL
    try:
        return read(Credential, json.loads(path.read_bytes()))
    except FileNotFoundError as error:
        how = "run fleetdiff-agent enroll --token TOKEN"
        raise Misconfigured(f"{folder} is not enrolled: {how}") from error
    except ValueError as error:
        raise Misconfigured(f"{path} is damaged; {AFRESH}") from error


def keep(folder: Path, credential: Credential) -> None:
    """Write a credential to its file, readable by its owner only, in one step."""
    write_durably(folder / CREDENTIAL, json.dumps(asdict(credential)).encode(), mode=0o600)


def signing() -> Any:
    """Return the module that signs.

    Raises:
        Misconfigured: what it needs is not installed.
    """
    try:
        return importlib.import_module("device_agent.signature")
    except ImportError as error:
        raise Misconfigured(f"to sign requests, install fleetdiff[signature]: {error}") from error
