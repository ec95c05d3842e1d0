"""The next version of a signed document: made of the verified one, published or staged.

Where one person signs and the key is in the folder, it is signed and published at once. Otherwise
it is staged: the server keeps it unsigned until enough people signed it with `fleetdiff sign`,
each on a machine that verified it like this one.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import timedelta
from typing import Any, TypeVar

from tuf.api.metadata import Metadata, TargetFile, Targets

from release_manager.errors import Refused
from release_manager.metadata import Desk, Repository, download, fetch, newest
from trust.accept import (
    METADATA_BYTES_MAX,
    accept_family,
    canonical,
    delegators,
    read_metadata,
    review,
)
from trust.errors import Untrusted, require
from trust.roles import DIRECTOR, Family, family_role, read_family
from trust.sign import Holders, holders_of, next_family, next_root, next_targets, sign

TRIES = 3
RENEW_BEFORE = timedelta(days=10)
Entries = Sequence[tuple[str, TargetFile]]
_Result = TypeVar("_Result")


@dataclass(frozen=True)
class Update:
    """What became of the next version of a document.

    Attributes:
        version: of the document; of the one in force if nothing had to be signed.
        changed: whether something had to be signed.
        draft: what the server says of it while it waits for signatures, else None.
    """

    version: int
    changed: bool
    draft: Mapping[str, Any] | None = None

    def told(self) -> dict[str, Any]:
        """Return what a command says of it."""
        done: dict[str, Any] = {"published": self.changed and not self.draft}
        if self.draft:
            waits = ("role", "missing", "signed_by", "may_sign")
            done["staged"] = {name: self.draft.get(name) for name in waits}
        return done | {"version": self.version}


def update_family(
    desk: Desk, model: str, change: Callable[[Family | None], Entries], *, renew: bool = False
) -> tuple[Family, Update]:
    """Make the next version of a family, if `change` asks for one.

    It is also made again, unchanged, when it would expire soon: devices install nothing then.

    Args:
        desk: where to sign.
        model: whose family.
        change: gets the verified family (None: it has none yet) and returns the entries to add
            or replace. It is asked again if somebody else published meanwhile.
        renew: make it even if nothing changes.

    Returns:
        The family as it is or will be, and what became of it.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: the model is not there, or the server does not take the document.
    """
    role, changed = family_role(model), renew

    def attempt() -> tuple[Family, Update]:
        nonlocal changed
        repository = fetch(desk)
        repository.targets_in_force(desk.now)
        held = newest(desk, repository, role)
        previous = held.signed if held else None
        family = read_family(model, previous) if previous else None
        entries = change(family)
        changed |= bool(entries)
        lasting = previous and previous.expires > desk.now + RENEW_BEFORE
        if family and not entries and lasting and not renew:
            return family, Update(family.version, changed)
        following = next_family(_without_replaced(previous, entries), entries, desk.now)
        after = accept_family(model, following.signed, family)
        return after, _put(desk, repository, role, following, held)

    return _unless_overtaken(attempt)


def update_targets(desk: Desk, changes: Callable[[Repository], Mapping[str, Holders]]) -> Update:
    """Make the next targets, in which these families and the director have new holders.

    Args:
        desk: where to sign.
        changes: gets what is verified and returns role -> who signs for it. If there are none,
            and targets are there, nothing is signed.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: a key is missing, or the server does not take the document.
    """

    def attempt() -> Update:
        repository = fetch(desk)
        held = repository.targets
        given = dict(changes(repository))
        if held and not given:
            return Update(held.signed.version, False)
        if repository.holders(DIRECTOR) is None:
            given = {DIRECTOR: Holders((desk.folder.signer(DIRECTOR).public_key,)), **given}
        following = next_targets(held.signed if held else None, given, desk.now)
        return _put(desk, repository, "targets", following, held)

    return _unless_overtaken(attempt)


def update_root(desk: Desk, changes: Mapping[str, Holders]) -> Update:
    """Make the next root, in which these roles have new holders.

    Raises:
        Untrusted: what the server shows is not what was signed.
        Refused: the server does not take the document.
    """

    def attempt() -> Update:
        repository = fetch(desk)
        following = next_root(repository.root.signed, changes, desk.now)
        return _put(desk, repository, "root", following, repository.root)

    return _unless_overtaken(attempt)


def publish_root(desk: Desk) -> bool:
    """Upload the pinned root to a server that has none; return whether that was needed.

    Raises:
        Untrusted: the server was set up with another root.
        Refused: the server does not take it.
    """
    pinned = desk.folder.pinned_root()
    there = download(desk.client, "1.root.json")
    if there is None:
        desk.client.put("/v1/metadata/root", pinned)
    ours = there in (None, pinned)
    require(ours, "E_EQUIVOCATION", f"{desk.client.server} was set up with another root")
    return there is None


def find_draft(desk: Desk, role: str) -> bytes | None:
    """Return the draft of a role as the server has it, not verified; None if none waits."""
    return desk.client.find(f"/v1/drafts/{role}", METADATA_BYTES_MAX)


def _put(
    desk: Desk,
    repository: Repository,
    role: str,
    following: Metadata[Any],
    held: Metadata[Any] | None,
) -> Update:
    """Judge a document as the server will, then publish or stage it."""
    before, beside = canonical(held) if held else None, repository.beside(role)
    body, version = canonical(following), following.signed.version
    try:
        review(role, body, beside, before, desk.now)
    except Untrusted as error:
        why = f"the next {role} would not be accepted: {error.message}"
        raise Refused(why, "give what it asks for, and run the command again") from error
    asked = [holders_of(named, role) for named in delegators(following, before, beside)]
    alone = set.intersection(*({key.keyid for key in holders.keys} for holders in asked))
    several = not alone or any(holders.threshold > 1 for holders in asked)
    if several or not desk.folder.key_file(role).exists():
        return Update(version, True, _stage(desk, role, body))
    body = sign(following, [desk.folder.signer(role, alone)])
    desk.client.put(f"/v1/metadata/{role}", body)
    desk.folder.check_seen(role, version, body)
    return Update(version, True)


def _stage(desk: Desk, role: str, body: bytes) -> Mapping[str, Any]:
    """Stage an unsigned document, unless one that says the same waits already."""
    waiting = find_draft(desk, role)
    if waiting is None:
        staged: Mapping[str, Any] = desk.client.put(f"/v1/drafts/{role}", body)
        return staged
    if _content(role, waiting) != _content(role, body):
        raise Refused(
            f"another draft of {role} waits for signatures",
            f"sign it (fleetdiff sign {role}), or drop it (fleetdiff draft drop {role}); "
            "then run this again",
        )
    drafts = desk.client.get("/v1/drafts")["items"]
    return next(draft for draft in (*drafts, {"role": role}) if draft["role"] == role)


def _content(role: str, body: bytes) -> Any:
    """Return what a document says, apart from how long."""
    return read_metadata(role, body).signed.to_dict() | {"expires": ""}


def _unless_overtaken(attempt: Callable[[], _Result]) -> _Result:
    """Return what an attempt returns; it is made again if another document came first."""
    for _ in range(TRIES - 1):
        try:
            return attempt()
        except Refused as error:
            if error.status != 409:
                raise
    return attempt()


def _without_replaced(previous: Targets | None, entries: Entries) -> Targets | None:
    """A family names one canary set: a new one takes the place of the old one."""
    if previous is None or not any(path.endswith(".canary") for path, _ in entries):
        return previous
    kept = {path: t for path, t in previous.targets.items() if not path.endswith(".canary")}
    return Targets(version=previous.version, expires=previous.expires, targets=kept)
