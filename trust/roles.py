"""The signed objects: what a family's metadata says, as values.

One TUF role per model, `family-<model>`, lists the model's live files: releases (full model
files), patches (edges between two file digests) and the canary set. Each target carries
`custom`, whose form is checked here, strictly: what is not understood is not trusted.
"""

import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from tuf.api.metadata import Root, TargetFile, Targets

from trust.errors import Untrusted

NAME = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}\Z")
SHA256 = re.compile(r"[0-9a-f]{64}\Z")
_PATCH_FILE = re.compile(r"[a-z0-9][a-z0-9._-]{0,63}_[a-z0-9][a-z0-9._-]{0,63}\.ndiff\Z")
TARGETS_PER_FAMILY_MAX = 300
BYTES_MAX = 1 << 40
STATUSES = ("active", "retired", "withdrawn")
PATCH_KINDS = ("sparse", "hashed", "exact")
DIRECTOR = "director"
OFFLINE_ROLES = ("root", "targets")
ONLINE_ROLES = ("snapshot", "timestamp", DIRECTOR)


@dataclass(frozen=True)
class Release:
    """One version of a model, as its family signs it."""

    name: str
    seq: int
    status: str
    sha256: str
    bytes: int
    format: str
    hardware: tuple[str, ...]
    rollback_from: tuple[str, ...]


@dataclass(frozen=True)
class PatchTarget:
    """A signed patch file: the edge from one model file's digest to another's."""

    path: str
    sha256: str
    bytes: int
    from_sha256: str
    to_sha256: str
    kind: str


@dataclass(frozen=True)
class CanaryTarget:
    """The signed manifest of the canary set."""

    id: str
    sha256: str
    bytes: int


@dataclass(frozen=True)
class Family:
    """Everything that is signed about one model, at one version of its metadata."""

    model: str
    version: int
    releases: dict[str, Release]
    patches: tuple[PatchTarget, ...]
    canary: CanaryTarget | None

    def release_of(self, sha256: str) -> Release | None:
        """Return the release whose model file has this digest."""
        return next((r for r in self.releases.values() if r.sha256 == sha256), None)

    def blob_bytes(self, sha256: str) -> int | None:
        """Return the signed size of a file that a plan may name, or None if it is unsigned."""
        files: list[Release | PatchTarget] = [*self.releases.values(), *self.patches]
        return next((f.bytes for f in files if f.sha256 == sha256), None)


def family_role(model: str) -> str:
    """Return the TUF role that signs a model's files."""
    return f"family-{model}"


def release_path(model: str, release: str) -> str:
    """Return the target path of a release."""
    return f"{model}/{release}.model"


def patch_path(model: str, source: str, target: str) -> str:
    """Return the target path of the patch between two releases."""
    return f"{model}/{source}_{target}.ndiff"


def canary_path(model: str, canary: str) -> str:
    """Return the target path of a canary set's manifest."""
    return f"{model}/{canary}.canary"


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
    if len(material) != len(keys):
        raise Untrusted("E_SIG", f"a key of {name} is listed twice")
    return material


def read_family(model: str, signed: Targets) -> Family:
    """Return the family that a verified `Targets` document describes.

    Raises:
        Untrusted: E_NOT_RELEASED for an entry that is not understood, E_EQUIVOCATION for two
            entries that claim one identity, E_SIZE for more entries than a family may have.
    """
    if len(signed.targets) > TARGETS_PER_FAMILY_MAX:
        raise Untrusted("E_SIZE", f"family {model} lists {len(signed.targets)} files")
    releases: dict[str, Release] = {}
    patches: list[PatchTarget] = []
    canary: CanaryTarget | None = None
    for path, target in signed.targets.items():
        entry = _read_entry(model, path, target)
        if isinstance(entry, Release):
            releases[entry.name] = entry
        elif isinstance(entry, PatchTarget):
            patches.append(entry)
        elif canary is None:
            canary = entry
        else:
            raise Untrusted("E_EQUIVOCATION", f"family {model} names two canary sets")
    for attribute in ("seq", "sha256"):
        values = [getattr(r, attribute) for r in releases.values()]
        if len(set(values)) != len(values):
            raise Untrusted("E_EQUIVOCATION", f"two releases of {model} share a {attribute}")
    return Family(model, signed.version, releases, tuple(patches), canary)


def _read_entry(model: str, path: str, target: TargetFile) -> Release | PatchTarget | CanaryTarget:
    sha256 = target.hashes.get("sha256", "")
    try:
        if not SHA256.match(sha256) or _integer(target.length, 1) > BYTES_MAX:
            raise ValueError("no SHA-256 or an impossible size")
        entry = _READERS[target.custom["kind"]](path, target, sha256, target.custom)
    except (KeyError, TypeError, ValueError) as error:
        raise Untrusted("E_NOT_RELEASED", f"{path} is not understood: {error!r}") from error
    if not _names_what_it_holds(model, path, entry):
        raise Untrusted("E_NOT_RELEASED", f"{path} does not name what it holds")
    return entry


def _names_what_it_holds(
    model: str, path: str, entry: Release | PatchTarget | CanaryTarget
) -> bool:
    if isinstance(entry, Release):
        return path == release_path(model, entry.name)
    if isinstance(entry, CanaryTarget):
        return path == canary_path(model, entry.id)
    family, _, file = path.partition("/")
    return family == model and _PATCH_FILE.match(file) is not None


def _read_release(path: str, target: TargetFile, sha256: str, custom: Mapping[str, Any]) -> Release:
    _exactly(custom, "v kind id seq status format hardware rollback_from")
    return Release(
        name=_name(custom["id"]),
        seq=_integer(custom["seq"], 1),
        status=_one_of(custom["status"], STATUSES),
        sha256=sha256,
        bytes=target.length,
        format=_name(custom["format"]),
        hardware=_names(custom["hardware"]),
        rollback_from=_names(custom["rollback_from"]),
    )


def _read_patch(
    path: str, target: TargetFile, sha256: str, custom: Mapping[str, Any]
) -> PatchTarget:
    _exactly(custom, "v kind from to codec")
    source, result = str(custom["from"]), str(custom["to"])
    if not (SHA256.match(source) and SHA256.match(result)) or source == result:
        raise ValueError("from and to must be two SHA-256 digests")
    kind = _one_of(custom["codec"], PATCH_KINDS)
    return PatchTarget(path, sha256, target.length, source, result, kind)


def _read_canary(
    path: str, target: TargetFile, sha256: str, custom: Mapping[str, Any]
) -> CanaryTarget:
    _exactly(custom, "v kind id")
    return CanaryTarget(_name(custom["id"]), sha256, target.length)


_Reader = Callable[[str, TargetFile, str, Mapping[str, Any]], Release | PatchTarget | CanaryTarget]
_READERS: dict[str, _Reader] = {
    "release": _read_release,
    "patch": _read_patch,
    "canary": _read_canary,
}


def _exactly(custom: Mapping[str, Any], names: str) -> None:
    if set(custom) != set(names.split()) or _integer(custom["v"], 1) != 1:
        raise ValueError(f"custom must hold exactly {names}, with v = 1")


def _name(value: Any) -> str:
    if not isinstance(value, str) or not NAME.match(value):
        raise ValueError(f"{value!r} is not a name")
    return value


def _names(values: Any) -> tuple[str, ...]:
    if not isinstance(values, list):
        raise ValueError(f"{values!r} is not a list of names")
    return tuple(_name(value) for value in values)


def _integer(value: Any, least: int) -> int:
    if not isinstance(value, int) or isinstance(value, bool) or not least <= value < 1 << 53:
        raise ValueError(f"{value!r} is not an integer from {least}")
    return value


def _one_of(value: Any, choices: tuple[str, ...]) -> str:
    if value not in choices:
        raise ValueError(f"{value!r} is not one of {', '.join(choices)}")
    return str(value)
