"""The TUF client of the command line: fetch and verify what is signed.

The server is not believed. Root is followed from the pinned one, link by link; targets and the
family are verified under it; and nothing older than, or different from, what this folder of keys
has seen is taken (`seen.json`). What is made or signed on this machine stands on that only. The
family is fetched directly, since it may be newer than the snapshot that the publisher signs.
"""

from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from tuf.api.metadata import Metadata, Root, Targets

from release_manager.client import Client, connect
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.keys import KeyFolder, read_signed
from trust.accept import METADATA_BYTES_MAX, ROOT_ROTATIONS_MAX, Delegator
from trust.errors import require
from trust.order import write_time
from trust.sign import Holders, holders_of


@dataclass(frozen=True)
class Desk:
    """What signing takes: a server, a folder of keys, and the time."""

    client: Client
    folder: KeyFolder
    now: datetime


@dataclass(frozen=True)
class Repository:
    """What the server holds, verified from the pinned root."""

    root: Metadata[Root]
    targets: Metadata[Targets] | None
    newest: dict[str, int]

    def beside(self, role: str) -> Delegator | None:
        """Return the document that a role's keys are judged by, if there is one."""
        found = self.root if role == "targets" else self.targets
        return found.signed if found else None

    def holders(self, role: str) -> Holders | None:
        """Return who signs for a role now; None if no document names it."""
        for document in (self.root, self.targets):
            try:
                return holders_of(document.signed, role) if document else None
            except ValueError:
                continue
        return None

    def targets_in_force(self, now: datetime) -> Targets:
        """Return targets, of which there must be some that did not expire."""
        if self.targets is None:
            raise Refused("the server has no signed targets yet", "run fleetdiff init --publish")
        _check_in_force("targets", self.targets.signed, now)
        return self.targets.signed


def utc_now() -> datetime:
    """Return the moment that signing happens at."""
    return datetime.now(UTC)


def desk_of(settings: Settings) -> Desk:
    """Return the desk that the configuration describes.

    Raises:
        Usage: no server or no token is configured.
    """
    return Desk(connect(settings), KeyFolder(settings.keys), utc_now())


def fetch(desk: Desk) -> Repository:
    """Fetch and verify root and targets.

    Raises:
        Untrusted: with the code that names what is wrong.
        Refused: there is no pinned root.
    """
    answer = desk.client.get("/v1/metadata")
    known = isinstance(answer, dict) and all(type(v) is int for v in answer.values())
    require(known, "E_MIX", "the server's list of metadata is not understood")
    root = _follow_roots(desk)
    return Repository(root, _fetch_newest(desk, "targets", answer, root.signed), answer)


def newest(desk: Desk, repository: Repository, role: str) -> Metadata[Any] | None:
    """Return the newest version of an offline document, verified; None if there is none.

    Raises:
        Untrusted: with the code that names what is wrong.
        Refused: nobody may sign for the role.
    """
    if role in ("root", "targets"):
        return repository.root if role == "root" else repository.targets
    if repository.holders(role) is None:
        model = role.removeprefix("family-")
        raise Refused(f"there is no model {model}", f"make it: fleetdiff model create {model}")
    targets = repository.targets_in_force(desk.now)
    return _fetch_newest(desk, role, repository.newest, targets)


def download(client: Client, name: str) -> bytes | None:
    """Return a signed document of the server, not yet verified; None if there is none."""
    return client.find(f"/v1/metadata/{name}", METADATA_BYTES_MAX)


def _follow_roots(desk: Desk) -> Metadata[Root]:
    body = desk.folder.pinned_root()
    root: Metadata[Root] = read_signed("root", body)
    while (following := download(desk.client, f"{root.signed.version + 1}.root.json")) is not None:
        reached = root.signed.version <= ROOT_ROTATIONS_MAX
        require(reached, "E_SIZE", f"more than {ROOT_ROTATIONS_MAX} roots")
        # Signed by the keys that the root before names, and by those that it names itself.
        read_signed("root", following)
        body, before = following, root.signed
        root = read_signed("root", body, before)
        follows = root.signed.version == before.version + 1
        require(follows, "E_ROLLBACK_META", "a root's number is not that of its file")
    _check_in_force("root", root.signed, desk.now)
    desk.folder.check_seen("root", root.signed.version, body)
    return root


def _fetch_newest(
    desk: Desk, role: str, newest: dict[str, int], delegator: Delegator
) -> Metadata[Targets] | None:
    version = newest.get(role, 0)
    body = download(desk.client, f"{version}.{role}.json") if version else None
    if body is None:
        desk.folder.check_seen(role, 0, b"")
        return None
    found = read_signed(role, body, delegator)
    named = found.signed.version
    require(named == version, "E_MIX", f"{role} {version} says that it is {named}")
    desk.folder.check_seen(role, version, body)
    return found


def _check_in_force(role: str, signed: Delegator, now: datetime) -> None:
    expired = f"{role} expired at {write_time(signed.expires)}"
    require(signed.expires > now, "E_FREEZE", expired)
