"""The TUF client of the command line: fetch, verify, make the next version, upload it.

The server is not believed. Root is followed from the pinned one, link by link; targets and the
family are verified under it; and nothing older than, or different from, what this folder of keys
has seen is taken (`seen.json`). Only then is the next version made of it and signed, so a hostile
server cannot slip an entry into what a release manager signs. The family is fetched directly,
since it may be newer than the snapshot that the publisher signs.
"""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from datetime import UTC, datetime, timedelta
from typing import TypeVar

from securesystemslib.signer import Key, Signer
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from release_manager.client import Client, connect
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.keys import KeyFolder, family_signer, read_signed
from trust.accept import METADATA_BYTES_MAX, accept_family, accept_targets
from trust.errors import require
from trust.order import write_time
from trust.roles import DIRECTOR, Family, family_role, read_family
from trust.sign import next_family, next_targets, sign

ROOTS_MAX = 64
TRIES = 3
RENEW_BEFORE = timedelta(days=10)
Entries = Sequence[tuple[str, TargetFile]]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Desk:
    """What signing takes: a server, a folder of keys, and the time."""

    client: Client
    folder: KeyFolder
    now: datetime


@dataclass(frozen=True)
class Repository:
    """What the server holds, verified from the pinned root."""

    root: Root
    targets: Metadata[Targets] | None
    newest: dict[str, int]

    def keys(self, role: str) -> list[Key]:
        """Return the keys that targets names for a role; none if it does not name the role."""
        delegations = self.targets.signed.delegations if self.targets else None
        found = (delegations.roles or {}).get(role) if delegations else None
        return [delegations.keys[keyid] for keyid in found.keyids] if delegations and found else []

    def targets_in_force(self, now: datetime) -> Targets:
        """Return targets, of which there must be some that did not expire."""
        if self.targets is None:
            raise Refused("the server has no signed targets yet", "run fleetdiff init --publish")
        _check_in_force("targets", self.targets.signed, now)
        return self.targets.signed


def update_family(
    desk: Desk, model: str, change: Callable[[Family | None], Entries]
) -> tuple[Family, bool]:
    """Sign and upload the next version of a family, if `change` asks for one.

    It is also signed again, unchanged, when it would expire soon: devices install nothing then.

    Args:
        desk: where to sign.
        model: whose family.
        change: gets the verified family (None: it has none yet) and returns the entries to add
            or replace. It is asked again if somebody else published meanwhile.

    Returns:
        The family as it is now, and whether `change` asked for something.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: the model is not there, or the server does not take the document.
    """
    role, changed = family_role(model), False

    def attempt() -> Family:
        nonlocal changed
        repository = fetch(desk)
        targets, keys = repository.targets_in_force(desk.now), repository.keys(role)
        if not keys:
            raise Refused(f"there is no model {model}", f"make it: fleetdiff model create {model}")
        signer = family_signer(desk.folder, model, keys)
        held = _fetch_newest(desk, role, repository.newest, targets)
        previous = held.signed if held else None
        family = read_family(model, previous) if previous else None
        entries = change(family)
        changed |= bool(entries)
        if family and previous and not entries and previous.expires > desk.now + RENEW_BEFORE:
            return family
        following = next_family(_without_replaced(previous, entries), entries, desk.now)
        after = accept_family(model, following.signed, family)
        _upload(desk, role, following, signer, targets, held)
        return after

    return _unless_overtaken(attempt), changed


def update_targets(desk: Desk, model: str = "") -> bool:
    """Make targets delegate to a model's family (whose key is made if it is missing).

    Returns:
        Whether anything had to be signed.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: a key is missing, or the server does not take the document.
    """

    def attempt() -> bool:
        repository = fetch(desk)
        new = {}
        if model:
            keys = repository.keys(family_role(model))
            key = family_signer(desk.folder, model, keys).public_key
            new = {} if keys else {model: key}
        if repository.targets and not new:
            return False
        previous = repository.targets.signed if repository.targets else None
        director = repository.keys(DIRECTOR) or [desk.folder.signer(DIRECTOR).public_key]
        following = next_targets(previous, new, director[0], desk.now)
        signer = desk.folder.signer("targets")
        _upload(desk, "targets", following, signer, repository.root, repository.targets)
        return True

    return _unless_overtaken(attempt)


def publish_root(desk: Desk) -> bool:
    """Upload the pinned root to a server that has none; return whether that was needed.

    Raises:
        Untrusted: the server was set up with another root.
        Refused: the server does not take it.
    """
    pinned = desk.folder.pinned_root()
    there = _download(desk.client, "1.root.json")
    if there is None:
        desk.client.put("/v1/metadata/root", pinned)
    ours = there in (None, pinned)
    require(ours, "E_EQUIVOCATION", f"{desk.client.server} was set up with another root")
    return there is None


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
    return Repository(root, _fetch_newest(desk, "targets", answer, root), answer)


def _follow_roots(desk: Desk) -> Root:
    body = desk.folder.pinned_root()
    root: Root = read_signed("root", body).signed
    while (following := _download(desk.client, f"{root.version + 1}.root.json")) is not None:
        require(root.version < ROOTS_MAX, "E_SIZE", f"more than {ROOTS_MAX} roots")
        # Signed by the keys that the root before names, and by those that it names itself.
        read_signed("root", following)
        body, before = following, root
        root = read_signed("root", body, before).signed
        follows = root.version == before.version + 1
        require(follows, "E_ROLLBACK_META", "a root's number is not that of its file")
    _check_in_force("root", root, desk.now)
    desk.folder.check_seen("root", root.version, body)
    return root


def _fetch_newest(
    desk: Desk, role: str, newest: dict[str, int], delegator: Root | Targets
) -> Metadata[Targets] | None:
    version = newest.get(role, 0)
    body = _download(desk.client, f"{version}.{role}.json") if version else None
    if body is None:
        desk.folder.check_seen(role, 0, b"")
        return None
    found = read_signed(role, body, delegator)
    named = found.signed.version
    require(named == version, "E_MIX", f"{role} {version} says that it is {named}")
    desk.folder.check_seen(role, version, body)
    return found


def _upload(
    desk: Desk,
    role: str,
    following: Metadata[Targets],
    signer: Signer,
    delegator: Root | Targets,
    previous: Metadata[Targets] | None,
) -> None:
    """Sign a document, judge it as the server will, and upload it."""
    body = sign(following, [signer])
    before = previous.to_bytes() if previous else None
    accept_targets(role, body, Metadata(delegator), before, desk.now)
    desk.client.put(f"/v1/metadata/{role}", body)
    desk.folder.check_seen(role, following.signed.version, body)


def _unless_overtaken(attempt: Callable[[], _Result]) -> _Result:
    """Return what an attempt returns; it is made again if another document came first."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except Refused as error:
            if error.status != 409:
                raise
    return attempt()


def _check_in_force(role: str, signed: Root | Targets, now: datetime) -> None:
    expired = f"{role} expired at {write_time(signed.expires)}"
    require(signed.expires > now, "E_FREEZE", expired)


def _without_replaced(previous: Targets | None, entries: Entries) -> Targets | None:
    """A family names one canary set: a new one takes the place of the old one."""
    if previous is None or not any(path.endswith(".canary") for path, _ in entries):
        return previous
    kept = {path: t for path, t in previous.targets.items() if not path.endswith(".canary")}
    return Targets(version=previous.version, expires=previous.expires, targets=kept)


def _download(client: Client, name: str) -> bytes | None:
    return client.find(f"/v1/metadata/{name}", METADATA_BYTES_MAX)
