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
from hashlib import sha256
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, TargetFile, Targets

from release_manager.client import Client, connect
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.keys import KeyFolder, family_signer, read_seen, write_seen
from trust.accept import METADATA_BYTES_MAX, accept_family, accept_targets
from trust.errors import Untrusted
from trust.order import write_time
from trust.roles import DIRECTOR, Family, family_role, read_family
from trust.sign import next_family, next_targets, sign

ROOTS_MAX = 64
TRIES = 3
RENEW_BEFORE = timedelta(days=10)

Entries = Sequence[tuple[str, TargetFile]]


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
    targets_bytes: bytes | None
    newest: dict[str, int]

    def delegated(self, role: str) -> list[str] | None:
        """Return the ids of the keys that targets names for a role, or None."""
        delegations = self.targets.signed.delegations if self.targets else None
        found = (delegations.roles or {}).get(role) if delegations else None
        return list(found.keyids) if found else None


def update_family(desk: Desk, model: str, change: Callable[[Family | None], Entries]) -> Family:
    """Sign and upload the next version of a family, if `change` asks for one.

    It is also signed again, unchanged, when it would expire soon: devices install nothing then.

    Args:
        desk: where to sign.
        model: whose family.
        change: gets the verified family (None: it has none yet) and returns the entries to add
            or replace. It is asked again if somebody else published meanwhile.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: the model is not there, or the server does not take the document.
    """
    role = family_role(model)
    for attempt in range(TRIES):
        repository = fetch(desk)
        targets = _targets_in_force(desk, repository)
        delegated = repository.delegated(role)
        if delegated is None:
            raise Refused(f"there is no model {model}", f"make it: fleetdiff model create {model}")
        signer = family_signer(desk.folder, model, delegated)
        body = _fetch_newest(desk, role, repository.newest, targets)
        previous = Metadata[Targets].from_bytes(body).signed if body else None
        family = read_family(model, previous) if previous else None
        entries = change(family)
        if family and previous and not entries and previous.expires > desk.now + RENEW_BEFORE:
            return family
        following = next_family(_without_replaced(previous, entries), entries, desk.now)
        signed = sign(following, [signer])
        accept_targets(role, signed, targets, body, desk.now)
        after = accept_family(model, following.signed, family)
        if _upload(desk, role, signed, last=attempt == TRIES - 1):
            return after
    raise AssertionError("the last try raises")


def update_targets(desk: Desk, models: Sequence[str]) -> bool:
    """Make targets delegate to these models' families (their keys are made where missing).

    Returns:
        Whether anything had to be signed.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: a key is missing, or the server does not take the document.
    """
    for attempt in range(TRIES):
        repository = fetch(desk)
        named = {model: repository.delegated(family_role(model)) for model in models}
        keys = {m: family_signer(desk.folder, m, ids).public_key for m, ids in named.items()}
        new = {model: key for model, key in keys.items() if named[model] is None}
        if repository.targets and not new:
            return False
        previous = repository.targets.signed if repository.targets else None
        following = next_targets(previous, new, _director(desk, previous), desk.now)
        signed = sign(following, [desk.folder.signer("targets")])
        accept_targets("targets", signed, repository.root, repository.targets_bytes, desk.now)
        if _upload(desk, "targets", signed, last=attempt == TRIES - 1):
            return True
    raise AssertionError("the last try raises")


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
    elif there != pinned:
        raise Untrusted("E_EQUIVOCATION", f"{desk.client.server} was set up with another root")
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
    newest = _newest_versions(desk.client)
    root = _follow_roots(desk)
    body = _fetch_newest(desk, "targets", newest, root)
    targets = Metadata[Targets].from_bytes(body) if body else None
    return Repository(root, targets, body, newest)


def _follow_roots(desk: Desk) -> Metadata[Root]:
    body = desk.folder.pinned_root()
    root = _read("root", body, None)
    while (following := _download(desk.client, f"{root.signed.version + 1}.root.json")) is not None:
        if root.signed.version >= ROOTS_MAX:
            raise Untrusted("E_SIZE", f"more than {ROOTS_MAX} roots")
        body, before = following, root
        root = _read("root", body, before)
        _check_signed("root", root, root)
        if root.signed.version != before.signed.version + 1:
            raise Untrusted("E_ROLLBACK_META", "a root's number is not that of its file")
    if root.signed.expires <= desk.now:
        raise Untrusted("E_FREEZE", f"root expired at {write_time(root.signed.expires)}")
    _check_seen(desk, "root", root.signed.version, body)
    return root


def _fetch_newest(
    desk: Desk, role: str, newest: dict[str, int], delegator: Metadata[Any]
) -> bytes | None:
    version = newest.get(role, 0)
    body = _download(desk.client, f"{version}.{role}.json") if version else None
    if body is None:
        _check_seen(desk, role, 0, b"")
        return None
    found = _read(role, body, delegator)
    if found.signed.version != version:
        raise Untrusted("E_MIX", f"{role} {version} says that it is {found.signed.version}")
    _check_seen(desk, role, version, body)
    return body


def _read(role: str, body: bytes, delegator: Metadata[Any] | None) -> Metadata[Any]:
    """Return a document verified by its delegator; the pinned root vouches for itself."""
    try:
        document: Metadata[Any] = Metadata.from_bytes(body)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise Untrusted("E_SIG", f"{role} is not a metadata document: {error}") from None
    if document.signed.type != ("root" if role == "root" else "targets"):
        raise Untrusted("E_SIG", f"{role} is a {document.signed.type} document")
    _check_signed(role, delegator or document, document)
    return document


def _check_signed(role: str, delegator: Metadata[Any], document: Metadata[Any]) -> None:
    try:
        delegator.verify_delegate(role, document)
        keys = [
            delegator.signed.get_key(k) for k in delegator.signed.get_delegated_role(role).keyids
        ]
    except (RepositoryError, ValueError) as error:
        raise Untrusted("E_SIG", f"{role} is not signed by its keys: {error}") from None
    if len({str(key.keyval) for key in keys}) != len(keys):
        raise Untrusted("E_SIG", f"a key of {role} is listed twice")


def _check_seen(desk: Desk, role: str, version: int, body: bytes) -> None:
    seen = read_seen(desk.folder)
    known, digest = seen.get(role, (0, ""))
    found = sha256(body).hexdigest() if version else ""
    if version < known:
        raise Untrusted("E_ROLLBACK_META", f"{role} is at {version}, but {known} was seen before")
    if version == known and found != digest:
        raise Untrusted("E_EQUIVOCATION", f"two different documents are {role} {version}")
    if version > known:
        write_seen(desk.folder, seen | {role: (version, found)})


def _upload(desk: Desk, role: str, body: bytes, *, last: bool) -> bool:
    """Upload a document; False if another one came first, so that a try is left."""
    try:
        desk.client.put(f"/v1/metadata/{role}", body)
    except Refused as error:
        if error.status == 409 and not last:
            return False
        raise
    version = Metadata[Targets].from_bytes(body).signed.version
    _check_seen(desk, role, version, body)
    return True


def _targets_in_force(desk: Desk, repository: Repository) -> Metadata[Targets]:
    if repository.targets is None:
        raise Refused("the server has no signed targets yet", "run fleetdiff init --publish")
    if repository.targets.signed.expires <= desk.now:
        expired = write_time(repository.targets.signed.expires)
        raise Untrusted("E_FREEZE", f"targets expired at {expired}")
    return repository.targets


def _director(desk: Desk, previous: Targets | None) -> Any:
    """The director that targets already names; a new targets takes it from the folder."""
    delegations = previous.delegations if previous else None
    role = (delegations.roles or {}).get(DIRECTOR) if delegations else None
    if delegations and role:
        return delegations.keys[role.keyids[0]]
    return desk.folder.signer(DIRECTOR).public_key


def _without_replaced(previous: Targets | None, entries: Entries) -> Targets | None:
    """A family names one canary set: a new one takes the place of the old one."""
    if previous is None or not any(path.endswith(".canary") for path, _ in entries):
        return previous
    kept = {path: t for path, t in previous.targets.items() if not path.endswith(".canary")}
    return Targets(version=previous.version, expires=previous.expires, targets=kept)


def _newest_versions(client: Client) -> dict[str, int]:
    answer = client.get("/v1/metadata")
    if not isinstance(answer, dict):
        raise Untrusted("E_MIX", "the server's list of metadata is not understood")
    return {str(role): version for role, version in answer.items() if isinstance(version, int)}


def _download(client: Client, name: str) -> bytes | None:
    return client.get_bytes(f"/v1/metadata/{name}", METADATA_BYTES_MAX)
