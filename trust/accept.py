"""What the service accepts: is this upload the next version of that document?

The server holds no offline key, so all it can do is refuse: bytes that are not canonical, a
version that is not the next one, a signature that its delegator did not ask for, a release that
changes what was said before. Devices check again; this keeps the fleet from ever seeing it.
"""

from datetime import datetime, timedelta
from typing import Any

from tuf.api.exceptions import RepositoryError
from tuf.api.metadata import Metadata, Root, Targets
from tuf.api.serialization.json import JSONSerializer

from trust.errors import Untrusted, require
from trust.order import write_time
from trust.roles import DIRECTOR, NAME, Family, family_role, key_material, read_family

METADATA_BYTES_MAX = 1024 * 1024
LIFETIME_LEAST = timedelta(hours=1)
LIFETIME_MOST = {"root": timedelta(days=400), "targets": timedelta(days=400)}
FAMILY_LIFETIME_MOST = timedelta(days=90)


def accept_root(body: bytes, current: bytes | None, now: datetime) -> Metadata[Root]:
    """Return the uploaded root if it may follow the current one (none: version 1).

    Raises:
        Untrusted: with the rule it breaks.
    """
    uploaded = read_metadata("root", body)
    _check_follows("root", uploaded.signed, current, now)
    before = Metadata[Root].from_bytes(current) if current else uploaded
    check_signed("root", before.signed, uploaded)
    check_signed("root", uploaded.signed, uploaded)
    _check_roles(uploaded.signed, list(uploaded.signed.roles), set())
    return uploaded


def accept_targets(
    role: str, body: bytes, delegator: Metadata[Any], current: bytes | None, now: datetime
) -> Metadata[Targets]:
    """Return the uploaded targets or family document if it may follow the current one.

    Raises:
        Untrusted: with the rule it breaks.
    """
    uploaded = read_metadata(role, body)
    _check_follows(role, uploaded.signed, current, now)
    check_signed(role, delegator.signed, uploaded)
    if role == "targets":
        _check_delegations(uploaded.signed, delegator.signed)
    elif uploaded.signed.delegations is not None:
        raise Untrusted("E_NOT_RELEASED", f"{role} may not delegate further")
    return uploaded


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
        if new is None or (new.sha256, new.bytes, new.seq) != (old.sha256, old.bytes, old.seq):
            raise Untrusted("E_EQUIVOCATION", f"release {name} changed or vanished")
        back = old.status == "withdrawn" and new.status != "withdrawn"
        require(not back, "E_WITHDRAWN", f"release {name} was withdrawn and cannot return")
    return family


def read_metadata(role: str, body: bytes) -> Metadata[Any]:
    """Return a role's document, which has one form only; who signed it is another question.

    Raises:
        Untrusted: E_SIZE or E_SIG.
    """
    if len(body) > METADATA_BYTES_MAX:
        raise Untrusted("E_SIZE", f"{len(body)} bytes; the limit is {METADATA_BYTES_MAX}")
    try:
        document: Metadata[Any] = Metadata.from_bytes(body)
        canonical = document.to_bytes(JSONSerializer(compact=True))
    except (RepositoryError, ValueError, RecursionError) as error:
        raise Untrusted("E_SIG", f"{role} is not a metadata document: {error}") from error
    kind = "root" if role == "root" else "targets"
    found = document.signed.type
    require(found == kind, "E_SIG", f"{role} is a {found} document, not {kind}")
    whole = not document.unrecognized_fields and type(document.signed.version) is int
    require(whole, "E_SIG", "members outside the signature, or a version that is no number")
    require(canonical == body, "E_SIG", "the bytes are not the canonical form of what they say")
    return document


def _check_follows(
    role: str, uploaded: Root | Targets, current: bytes | None, now: datetime
) -> None:
    before = Metadata[Any].from_bytes(current).signed.version if current else 0
    version, expires = uploaded.version, uploaded.expires
    follows = version == before + 1
    require(follows, "E_ROLLBACK_META", f"{role} version {version} does not follow {before}")
    most = LIFETIME_MOST.get(role, FAMILY_LIFETIME_MOST)
    lives = now + LIFETIME_LEAST < expires <= now + most
    require(lives, "E_CLOCK", f"{role} may not expire at {write_time(expires)} (at most {most})")


def check_signed(role: str, delegator: Root | Targets, uploaded: Metadata[Any]) -> None:
    """Check that as many of the role's keys signed a document as its delegator asks for.

    Raises:
        Untrusted: E_SIG.
    """
    try:
        result = delegator.get_verification_result(role, uploaded.signed_bytes, uploaded.signatures)
        key_material(delegator, role)
    except (RepositoryError, ValueError, TypeError) as error:
        raise Untrusted("E_SIG", f"{role} is not delegated or not signed: {error}") from error
    found = f"{len(result.signed)} of {result.threshold}"
    require(result.verified, "E_SIG", f"{role} has {found} signatures")


def _check_delegations(targets: Targets, root: Root) -> None:
    """Each family signs its own folder and nothing else; the director signs no file at all."""
    require(not targets.targets, "E_NOT_RELEASED", "top-level targets signs no files itself")
    roles = (targets.delegations.roles if targets.delegations else None) or {}
    for name, role in roles.items():
        folder = DIRECTOR if name == DIRECTOR else name.removeprefix("family-")
        known = name == DIRECTOR or (name == family_role(folder) and NAME.match(folder))
        if not known or role.paths != [f"{folder}/*"] or role.terminating is not True:
            raise Untrusted("E_NOT_RELEASED", f"{name} may not sign {role.paths}")
    complete = DIRECTOR in roles and family_role(DIRECTOR) not in roles
    require(complete, "E_NOT_RELEASED", f"{DIRECTOR} must be a role, and no model's name")
    taken = {key for name in root.roles for key in key_material(root, name)}
    _check_roles(targets, list(roles), taken)


def _check_roles(delegator: Root | Targets, names: list[str], taken: set[str]) -> None:
    """Refuse a threshold that cannot be met and a key that serves in two roles."""
    for name in names:
        threshold = delegator.get_delegated_role(name).threshold
        material = key_material(delegator, name)
        fits = type(threshold) is int and 1 <= threshold <= len(material)
        require(fits, "E_SIG", f"{name} asks for {threshold!r} of {len(material)} keys")
        require(not taken & material, "E_SIG", f"a key of {name} serves in another role too")
        taken |= material
