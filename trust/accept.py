"""What the service accepts: is this upload the next version of that document?

The server holds no offline key, so all it can do is refuse: bytes that are not canonical, a
version that is not the next one, a signature that its delegator did not ask for, a release that
changes what was said before. Devices check again; this keeps the fleet from ever seeing it.

A document is reviewed before the first person signs it, and again when enough have.
"""

from collections.abc import Sequence
from dataclasses import dataclass
from datetime import datetime, timedelta
from operator import attrgetter
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from trust.errors import Untrusted, require
from trust.keys import check_key
from trust.order import write_time
from trust.roles import (
    DEV_PROFILE,
    DIRECTOR,
    NAME,
    ONLINE_ROLES,
    Family,
    family_role,
    key_material,
    read_family,
)

METADATA_BYTES_MAX = 1024 * 1024
ROOT_BYTES_MAX = 64 * 1024
ROOT_ROTATIONS_MAX = 64  # so many a device follows from the root it was born with
FAMILIES_MAX = 50
LIFETIME_LEAST = timedelta(days=3)
LIFETIME_MOST = {"root": timedelta(days=400), "targets": timedelta(days=400)}
FAMILY_LIFETIME_MOST = timedelta(days=90)
THRESHOLD_LEAST = 2  # where people sign, except under a development root
Delegator = Root | Targets
_never_changes = attrgetter("sha256", "bytes", "seq", "components")  # of a release


@dataclass(frozen=True)
class Signatures:
    """Who signed a document, by key id; who may still; and how many people must at least."""

    given: tuple[str, ...]
    open: tuple[str, ...]
    missing: int


def accept(
    role: str, body: bytes, beside: Delegator | None, current: bytes | None, now: datetime
) -> Metadata[Any]:
    """Return a document that may follow the current one, and that enough people signed.

    The arguments are those of `review`.

    Raises:
        Untrusted: with the rule it breaks.
    """
    uploaded = review(role, body, beside, current, now)
    check_complete(role, delegators(uploaded, current, beside), uploaded)
    return uploaded


def review(
    role: str, body: bytes, beside: Delegator | None, current: bytes | None, now: datetime
) -> Metadata[Any]:
    """Return a document that may follow the current one as soon as enough people signed it.

    Args:
        role: whose document.
        body: the document; its signatures are not looked at.
        beside: what its keys are judged by: root for targets, targets for a family, and targets,
            if there are any yet, for root.
        current: the newest version; none: it is the first.
        now: the time.

    Raises:
        Untrusted: with the rule it breaks.
    """
    uploaded = read_metadata(role, body)
    before = Metadata[Any].from_bytes(current).signed if current else None
    _check_follows(role, uploaded.signed, before, now)
    if role == "root":
        assert not isinstance(beside, Root)
        _check_root(uploaded.signed, before, beside)
        return uploaded
    if beside is None:
        raise Untrusted("E_SIG", f"nobody may sign {role}: the document above it is missing")
    if role == "targets":
        assert isinstance(beside, Root)
        _check_delegations(uploaded.signed, beside)
    elif uploaded.signed.delegations is not None:
        raise Untrusted("E_NOT_RELEASED", f"{role} may not delegate further")
    signatures_of(role, uploaded, [beside])
    return uploaded


def delegators(
    document: Metadata[Any], current: bytes | None, beside: Delegator | None
) -> list[Delegator]:
    """Return whose thresholds a reviewed document must meet: for a root, the old one's and its own.

    The arguments are those of `review`.
    """
    if not isinstance(document.signed, Root):
        return [beside] if beside else []
    before = [Metadata[Root].from_bytes(current).signed] if current else []
    return [*before, document.signed]


def signatures_of(
    role: str, document: Metadata[Any], delegators: Sequence[Delegator]
) -> Signatures:
    """Return how far the signing of a document is; a key counts once, however it is spelled.

    Raises:
        Untrusted: E_SIG if a delegator does not know the role or names a key twice.
    """
    try:
        found = [
            delegator.get_verification_result(role, document.signed_bytes, document.signatures)
            for delegator in delegators
        ]
        for delegator in delegators:
            key_material(delegator, role)
    except (RepositoryError, ValueError, TypeError) as error:
        raise Untrusted("E_SIG", f"{role} is not delegated or not signed: {error}") from error
    may = [set(result.unsigned) if result.missing else set() for result in found]
    missing = [result.missing for result in found]
    # Somebody who is named by the old root and by the new one signs for both at once.
    both = min(*missing, len(set.intersection(*may))) if len(found) == 2 else 0
    given = {keyid for result in found for keyid in result.signed}
    return Signatures(
        tuple(sorted(given)), tuple(sorted(set().union(*may) - given)), sum(missing) - both
    )


def check_signed(role: str, delegator: Delegator, uploaded: Metadata[Any]) -> None:
    """Check that as many of the role's keys signed a document as its delegator asks for.

    Raises:
        Untrusted: E_SIG.
    """
    signed = signatures_of(role, uploaded, [delegator])
    threshold = delegator.get_delegated_role(role).threshold
    found = f"{len(signed.given)} of {threshold}"
    require(not signed.missing, "E_SIG", f"{role} has {found} signatures")


def check_complete(role: str, delegators: Sequence[Delegator], uploaded: Metadata[Any]) -> None:
    """Check that a document has all the signatures that it needs, and none that counts nothing.

    Padding would be published with the rest, and fetched by every device.

    Raises:
        Untrusted: E_SIG.
    """
    for delegator in delegators:
        check_signed(role, delegator, uploaded)
    void = set(uploaded.signatures) - set(signatures_of(role, uploaded, delegators).given)
    require(not void, "E_SIG", f"{len(void)} signatures are not of {role}, or of no key of it")


def accept_family(model: str, uploaded: Targets, before: Family | None) -> Family:
    """Return the family that an accepted document describes; what was released never changes.

    Raises:
        Untrusted: E_NOT_RELEASED for a foreign or dangling name, E_EQUIVOCATION for a release
            that changed or vanished, E_WITHDRAWN for one that came back.
    """
    family = read_family(model, uploaded)
    releases = family.releases
    digests = {release.sha256 for release in releases.values()}
    for patch in family.patches:
        joins = {patch.from_sha256, patch.to_sha256} <= digests
        require(joins, "E_NOT_RELEASED", f"{patch.path} does not join two releases")
    for name, release in releases.items():
        unknown = sorted(set(release.rollback_from) - (set(releases) - {name}))
        require(not unknown, "E_NOT_RELEASED", f"{name} names {unknown}")
    for name, old in (before.releases if before else {}).items():
        new = releases.get(name)
        if new is None or _never_changes(new) != _never_changes(old):
            raise Untrusted("E_EQUIVOCATION", f"release {name} changed or vanished")
        back = old.status == "withdrawn" and new.status != "withdrawn"
        require(not back, "E_WITHDRAWN", f"release {name} was withdrawn and cannot return")
    return family


def read_metadata(role: str, body: bytes) -> Metadata[Any]:
    """Return a role's document, which has one form only; who signed it is another question.

    Raises:
        Untrusted: E_SIZE or E_SIG.
    """
    limit = ROOT_BYTES_MAX if role == "root" else METADATA_BYTES_MAX
    if len(body) > limit:
        raise Untrusted("E_SIZE", f"{role} has {len(body)} bytes; the limit is {limit}")
    try:
        document: Metadata[Any] = Metadata.from_bytes(body)
        found = canonical(document)
    except (RepositoryError, ValueError, RecursionError) as error:
        raise Untrusted("E_SIG", f"{role} is not a metadata document: {error}") from error
    kind, named = "root" if role == "root" else "targets", document.signed.type
    require(named == kind, "E_SIG", f"{role} is a {named} document, not {kind}")
    whole = not document.unrecognized_fields and type(document.signed.version) is int
    require(whole, "E_SIG", "members outside the signature, or a version that is no number")
    require(found == body, "E_SIG", "the bytes are not the canonical form of what they say")
    return document


def canonical(document: Metadata[Any]) -> bytes:
    """Return the one form of a document with the signatures that it has."""
    return document.to_bytes(JSONSerializer(compact=True))


def _check_follows(role: str, uploaded: Delegator, before: Delegator | None, now: datetime) -> None:
    known = before.version if before else 0
    version, expires = uploaded.version, uploaded.expires
    follows = version == known + 1
    require(follows, "E_ROLLBACK_META", f"{role} version {version} does not follow {known}")
    most = LIFETIME_MOST.get(role, FAMILY_LIFETIME_MOST)
    lives = now + LIFETIME_LEAST < expires <= now + most
    require(lives, "E_CLOCK", f"{role} may not expire at {write_time(expires)} (at most {most})")


def _check_root(root: Root, before: Root | None, targets: Targets | None) -> None:
    reached = root.version <= ROOT_ROTATIONS_MAX + 1
    require(reached, "E_SIZE", f"no device follows {root.version - 1} roots from its first one")
    profiles = [r.unrecognized_fields.get(DEV_PROFILE) for r in (root, before or root)]
    same = profiles[0] == profiles[1] and profiles[0] in (None, "dev")
    require(same, "E_SIG", "a root for development stays one, and no other becomes one")
    require(root.consistent_snapshot is True, "E_SIG", "files are named by their versions")
    delegated = (targets.delegations.roles if targets and targets.delegations else None) or {}
    taken = {key for name in delegated for key in key_material(targets, name)} if targets else set()
    _check_roles(root, list(root.roles), taken, root)


def _check_delegations(targets: Targets, root: Root) -> None:
    """Each family signs its own folder and nothing else; the director signs no file at all."""
    require(not targets.targets, "E_NOT_RELEASED", "top-level targets signs no files itself")
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    require(len(roles) <= FAMILIES_MAX + 1, "E_SIZE", f"more than {FAMILIES_MAX} families")
    for name, role in roles.items():
        folder = DIRECTOR if name == DIRECTOR else name.removeprefix("family-")
        known = name == DIRECTOR or (name == family_role(folder) and NAME.match(folder))
        if not known or role.paths != [f"{folder}/*"] or role.terminating is not True:
            raise Untrusted("E_NOT_RELEASED", f"{name} may not sign {role.paths}")
    complete = DIRECTOR in roles and family_role(DIRECTOR) not in roles
    require(complete, "E_NOT_RELEASED", f"{DIRECTOR} must be a role, and no model's name")
    taken = {key for name in root.roles for key in key_material(root, name)}
    _check_roles(targets, list(roles), taken, root)


def _check_roles(delegator: Delegator, names: list[str], taken: set[str], root: Root) -> None:
    """Refuse a threshold too low or never met, a weak key, and a key that serves in two roles."""
    people = 1 if root.unrecognized_fields.get(DEV_PROFILE) == "dev" else THRESHOLD_LEAST
    for name in names:
        role = delegator.get_delegated_role(name)
        material = key_material(delegator, name)
        threshold, least = role.threshold, 1 if name in ONLINE_ROLES else people
        fits = type(threshold) is int and least <= threshold <= len(material)
        asked = f"{name} asks for {threshold!r} of {len(material)} keys"
        require(fits, "E_SIG", f"{asked}; at least {least}")
        require(not taken & material, "E_SIG", f"a key of {name} serves in another role too")
        taken |= material
        for keyid in role.keyids:
            check_key(delegator.get_key(keyid))
