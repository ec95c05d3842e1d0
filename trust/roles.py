"""The signed objects: what a family's metadata says, as values.

One TUF role per model, `family-<model>`, lists the model's live files: releases (full model
files), patches (edges between two file digests) and the canary set. Each target carries
`custom`, which its class describes field by field, for those who sign and for those who read. What
is not understood is not trusted.
"""

import re
from dataclasses import dataclass, field
from datetime import datetime
from typing import Any

from tuf.api.metadata import Root, TargetFile, Targets

from trust import fields
from trust.errors import Untrusted, require
from trust.fields import NAME_FORM, is_at_least, signed, signed_names

NAME, SHA256 = fields.NAME, fields.SHA256
_PATCH_PATH = re.compile(rf"{NAME_FORM}/{NAME_FORM}_{NAME_FORM}\.ndiff\Z")
TARGETS_PER_FAMILY_MAX = 300
COMPONENTS_MAX = 16  # of a release
SHARDS_MAX = 1000  # of an evaluation
BYTES_MAX = 1 << 40
STATUSES = ("active", "retired", "withdrawn")
PATCH_KINDS = ("sparse", "hashed", "exact")
NORMALISERS = ("nfkc-casefold/1",)  # by which a device may write what it heard
UNITS = ("word", "char")  # in which it may count
DIRECTOR = "director"
TOP_LEVEL_ROLES = ("root", "timestamp", "snapshot", "targets")
OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp", DIRECTOR)
DEV_PROFILE = "x-fleetdiff-profile"  # a member of root: "dev" if one person holds all keys


@dataclass(frozen=True)
class Component:
    """A file that must match the model of a release, and lies beside it under this name."""

    name: str = field(metadata=signed(fields.name))
    sha256: str = field(metadata=signed(fields.digest))
    bytes: int = field(metadata=signed(fields.count, "length"))


def _components(values: Any) -> tuple[Component, ...]:
    found = tuple(Component(**fields.read(Component, value)) for value in values)
    names = [component.name for component in found]
    if len(names) > COMPONENTS_MAX or names != sorted(set(names)):
        raise ValueError(f"{names} are not up to {COMPONENTS_MAX} names, each once and in order")
    return found


def _errors(values: Any) -> tuple[int, ...]:
    return fields.counts(values, SHARDS_MAX)


@dataclass(frozen=True)
class Evaluation:
    """What a release manager measured on the whole canary set before a release was signed.

    Attributes:
        canary_set: SHA-256 of the manifest of that set.
        base: of the model that the release was compared with.
        old, new: word errors of both on each shard, in the order of the manifest.
        change_ppm, lower_ppm, upper_ppm: change of the word error rate, and its interval of 95 %.
        resolution_ppm: the smallest change that such a set shows four times out of five.
        worse_accepted: it is worse than the margin, and was published on purpose.
    """

    canary_set: str = field(metadata=signed(fields.digest))
    base: str = field(metadata=signed(fields.digest))
    old: tuple[int, ...] = field(metadata=signed(_errors))
    new: tuple[int, ...] = field(metadata=signed(_errors))
    change_ppm: int = field(metadata=signed(fields.change))
    lower_ppm: int = field(metadata=signed(fields.change))
    upper_ppm: int = field(metadata=signed(fields.change))
    resolution_ppm: int = field(metadata=signed(fields.second))
    worse_accepted: bool = field(default=False, metadata=signed(fields.switch, optional=True))

    @classmethod
    def read(cls, value: Any) -> "Evaluation":
        """Return the evaluation in a signed document, or raise ValueError, KeyError, TypeError."""
        found = cls(**fields.read(cls, value))
        if len(found.old) != len(found.new):
            raise ValueError(f"{len(found.old)} and {len(found.new)} shards are not the same ones")
        return found


@dataclass(frozen=True)
class Release:
    """One version of a model, as its family signs it.

    Attributes:
        rollback_from: releases that a device may leave for this one, though it is older.
        rollback_until: when that ends, in seconds since 1970; 0: with the family.
        components: the files that a device switches to together with the model, or not at all.
        min_agent: the oldest agent that can install it; empty: any.
        evaluation: how it compares on the whole canary set; None: nobody says.
    """

    name: str = field(metadata=signed(fields.name, "id"))
    seq: int = field(metadata=signed(fields.count))
    status: str = field(metadata=signed(fields.one_of(STATUSES)))
    sha256: str
    bytes: int
    format: str = field(metadata=signed(fields.name))
    hardware: tuple[str, ...] = field(metadata=signed(fields.names))
    rollback_from: tuple[str, ...] = field(metadata=signed(fields.names))
    rollback_until: int = field(default=0, metadata=signed(fields.second))
    components: tuple[Component, ...] = field(
        default=(), metadata=signed(_components, optional=True)
    )
    min_agent: str = field(default="", metadata=signed(fields.version, optional=True))
    evaluation: Evaluation | None = field(
        default=None, metadata=signed(Evaluation.read, optional=True)
    )

    def misfit(self, hardware: str, agent: str) -> str:
        """Return why a device of this hardware, with this agent, cannot run it; empty if it can."""
        if self.hardware and hardware not in self.hardware:
            return f"is not made for {hardware}"
        return "" if is_at_least(agent, self.min_agent) else f"asks for agent {self.min_agent}"

    def takes_back(self, release: "Release", now: datetime) -> bool:
        """Whether a device may go from a release to this one: forward, or along a signed edge."""
        open_still = not self.rollback_until or now.timestamp() < self.rollback_until
        return self.seq >= release.seq or (release.name in self.rollback_from and open_still)


@dataclass(frozen=True)
class PatchTarget:
    """A signed patch file: the edge from one model file's digest to another's."""

    path: str
    sha256: str
    bytes: int
    from_sha256: str = field(metadata=signed(fields.digest, "from"))
    to_sha256: str = field(metadata=signed(fields.digest, "to"))
    kind: str = field(metadata=signed(fields.one_of(PATCH_KINDS), "codec"))


@dataclass(frozen=True)
class CanaryTarget:
    """The signed manifest of the canary set."""

    id: str = field(metadata=signed(fields.name))
    sha256: str
    bytes: int


@dataclass(frozen=True)
class ComponentTarget:
    """A file that releases name as a component; one file serves as many as have it."""

    sha256: str
    bytes: int


Entry = Release | PatchTarget | CanaryTarget | ComponentTarget
KINDS: dict[str, type[Entry]] = {
    "release": Release,
    "patch": PatchTarget,
    "canary": CanaryTarget,
    "component": ComponentTarget,
}


@dataclass(frozen=True)
class Family:
    """Everything that is signed about one model, at one version of its metadata."""

    model: str
    version: int
    releases: dict[str, Release]
    patches: tuple[PatchTarget, ...]
    canary: CanaryTarget | None
    components: tuple[ComponentTarget, ...] = ()

    def release_of(self, sha256: str) -> Release | None:
        """Return the release whose model file has this digest."""
        return next((r for r in self.releases.values() if r.sha256 == sha256), None)


def family_role(model: str) -> str:
    """Return the TUF role that signs a model's files."""
    return f"family-{model}"


def release_path(model: str, release: str) -> str:
    """Return the target path of a release."""
    return f"{model}/{release}.model"


def patch_path(model: str, source: str, target: str) -> str:
    """Return the target path of the patch between two releases."""
    return f"{model}/{source}_{target}.ndiff"


def custom_of(entry: Entry) -> dict[str, Any]:
    """Return what a family says of an entry beside its digest and length."""
    kind = next(name for name, of in KINDS.items() if isinstance(entry, of))
    return {"v": 1, "kind": kind, **fields.write(entry)}


def target_path(model: str, entry: Entry) -> str:
    """Return the path under which a family lists an entry."""
    if isinstance(entry, PatchTarget):
        return entry.path
    if isinstance(entry, CanaryTarget):
        return f"{model}/{entry.id}.canary"
    if isinstance(entry, ComponentTarget):
        return f"{model}/{entry.sha256}.component"
    return release_path(model, entry.name)


def key_material(delegator: Root | Targets, name: str) -> set[str]:
    """Return the public keys of a role, however they are spelled.

    Raises:
        Untrusted: E_SIG if a key is missing, or if one has two ids: python-tuf counts it twice.
        ValueError: the delegator knows no such role.
    """
    keyids = delegator.get_delegated_role(name).keyids
    try:
        keys = [delegator.get_key(keyid) for keyid in keyids]
    except ValueError as error:
        raise Untrusted("E_SIG", f"{name} names a key that is not there: {error}") from error
    material = {"".join(str(key.keyval.get("public")).split()).lower() for key in keys}
    require(len(material) == len(keys), "E_SIG", f"a key of {name} is listed twice")
    return material


def read_family(model: str, document: Targets) -> Family:
    """Return the family that a verified `Targets` document describes.

    Raises:
        Untrusted: E_NOT_RELEASED for an entry that is not understood or a component that is not
            listed, E_EQUIVOCATION for two entries that claim one identity, E_SIZE for more
            entries than a family may have.
    """
    files = len(document.targets)
    require(files <= TARGETS_PER_FAMILY_MAX, "E_SIZE", f"family {model} lists {files} files")
    entries = [_read_entry(model, path, target) for path, target in document.targets.items()]
    releases = [entry for entry in entries if isinstance(entry, Release)]
    patches = [entry for entry in entries if isinstance(entry, PatchTarget)]
    canaries = [entry for entry in entries if isinstance(entry, CanaryTarget)]
    components = [entry for entry in entries if isinstance(entry, ComponentTarget)]
    require(len(canaries) <= 1, "E_EQUIVOCATION", f"family {model} names two canary sets")
    for attribute in ("seq", "sha256"):
        differ = len({getattr(release, attribute) for release in releases}) == len(releases)
        require(differ, "E_EQUIVOCATION", f"two releases of {model} share a {attribute}")
    listed = {(file.sha256, file.bytes) for file in components}
    for release in releases:
        lost = [c.name for c in release.components if (c.sha256, c.bytes) not in listed]
        require(not lost, "E_NOT_RELEASED", f"{release.name} names {lost}, which are not listed so")
    by_name, canary = {release.name: release for release in releases}, next(iter(canaries), None)
    return Family(model, document.version, by_name, tuple(patches), canary, tuple(components))


def _read_entry(model: str, path: str, target: TargetFile) -> Entry:
    try:
        custom = target.custom
        kind = KINDS[custom["kind"]]
        fields.count(custom["v"])  # which true and 1.0 equal
        values = fields.read(kind, custom)
        if kind is PatchTarget:
            values["path"] = fields.text(path, _PATCH_PATH, "the path of a patch")
        digest, size = fields.digest(target.hashes.get("sha256")), fields.count(target.length)
        entry = kind(sha256=digest, bytes=size, **values)
        if custom != custom_of(entry):
            names = " ".join(["v", "kind", *signed_names(kind)])
            raise ValueError(f"custom must hold exactly {names}, with v = 1")
        if size > BYTES_MAX:
            raise ValueError("an impossible size")
        if isinstance(entry, PatchTarget) and entry.from_sha256 == entry.to_sha256:
            raise ValueError("from and to must be two SHA-256 digests")
    except (KeyError, TypeError, ValueError) as error:
        raise Untrusted("E_NOT_RELEASED", f"{path} is not understood: {error!r}") from error
    named = path.startswith(f"{model}/") and path == target_path(model, entry)
    require(named, "E_NOT_RELEASED", f"{path} does not name what it holds in {model}/")
    return entry
