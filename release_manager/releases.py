"""Publishing a release: check on this machine, upload, sign, upload the signature.

The checks come first, against the family that this machine verified itself: every patch must lead
from the bytes of a published release to the new file, by the digests in its manifest and by
applying it. Running the same command again finishes what an interruption left, and says so when
there is nothing left to do.
"""

import tempfile
from argparse import Namespace
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from time import time
from typing import Any

from neural_diff.apply import apply
from release_manager import show
from release_manager.client import Client, hash_file
from release_manager.config import Settings
from release_manager.diffs import described
from release_manager.documents import Entries, update_family
from release_manager.errors import Refused, Usage
from release_manager.evaluate import read_evaluation
from release_manager.metadata import desk_of
from release_manager.show import Reply
from trust.roles import (
    COMPONENTS_MAX,
    Component,
    ComponentTarget,
    Entry,
    Evaluation,
    Family,
    PatchTarget,
    Release,
    patch_path,
)
from trust.sign import target_of

Releases = dict[str, Release]
_Change = Callable[[Family | None], list[Release]]
DAY_S = 86_400
EVALUATIONS_MAX = 8  # up to 10 kB each, of the megabyte of a family


def publish(args: Namespace, settings: Settings) -> Reply:
    """Check, upload and sign a release, the files that go with it and the patches that lead to it.

    With --evaluation, how it compares with its base on the whole canary set is signed, too, and
    a release that is worse than the margin is refused.

    Example:
      fleetdiff release publish asr-en-edge r2 r2.safetensors --patch r1_r2.ndiff
      fleetdiff release publish asr-en-edge r3 r3.gguf --format gguf --component lm.bin=./lm3.bin
    """
    desk = desk_of(settings)
    digest, size = hash_file(args.file)
    edges: dict[Path, PatchTarget] = {}
    beside = _components(args)

    def change(family: Family | None) -> Entries:
        known = family.releases if family else {}
        release = _release(args, digest, size, tuple(beside), known)
        edges.update({path: _edge(args, path, digest, known) for path in args.patch})
        returns = _ways_back(args, release, known, {edge.from_sha256 for edge in edges.values()})
        if args.evaluation:
            release = replace(release, evaluation=_evaluation(args, digest, family))
        before = [*known.values(), *((*family.patches, *family.components) if family else ())]
        files = {ComponentTarget(part.sha256, part.bytes): beside[part] for part in beside}
        files = {file: path for file, path in files.items() if file not in before}
        latest = {r.name: r for r in (*known.values(), *returns, release)}
        releases = [found for found in _forgetting(latest) if found not in before]
        patches = {path: edge for path, edge in edges.items() if edge not in before}
        _check_by_applying(desk.client, patches)
        if releases or patches:
            desk.client.upload(args.file, digest)
        for path, edge in patches.items():
            desk.client.upload(path, edge.sha256)
        for file, path in files.items():
            desk.client.upload(path, file.sha256)
        entries: list[Entry] = [*releases, *patches.values(), *files]
        return [target_of(args.model, entry) for entry in entries]

    family, update = update_family(desk, args.model, change)
    release = family.releases[args.release]
    patches = [patch for patch in family.patches if patch.to_sha256 == digest]
    done = {
        "model": args.model,
        "release": release.name,
        "seq": release.seq,
        "sha256": digest,
        "bytes": size,
        "components": [vars(component) for component in release.components],
        "patches": [patch.path for patch in patches],
        "back_to": [r.name for r in family.releases.values() if release.name in r.rollback_from],
        **update.told(),
        "downloads": [
            *(_download(family.release_of(p.from_sha256), p.kind, p.bytes, size) for p in patches),
            _download(None, "full", size, size),
        ],
    }
    return Reply(done, show.outcome(done))


def withdraw(args: Namespace, settings: Settings) -> Reply:
    """Take a release back for good: no device installs it, and none needs to stay on it.

    With --fallback, devices may go back from it to that release; a rollout or a halt sends them.

    Example:
      fleetdiff release withdraw asr-en-edge r7 --fallback r6
    """

    def change(family: Family | None) -> list[Release]:
        release = _named(args, args.release, family)
        changed = [replace(release, status="withdrawn")]
        if args.fallback:
            back = _named(args, args.fallback, family)
            if back.status != "active" or back.seq >= release.seq:
                wrong = f"not older than {release.name}" if back.status == "active" else back.status
                raise Refused(f"{back.name} is {wrong}", "give an older release that is active")
            edges = dict.fromkeys((*back.rollback_from, release.name))
            changed.append(replace(back, rollback_from=tuple(edges), rollback_until=0))
        return changed

    return _change(args, settings, change)


def retire(args: Namespace, settings: Settings) -> Reply:
    """Let no further device install a release; those that run it may stay on it.

    Example:
      fleetdiff release retire asr-en-edge r5
    """

    def change(family: Family | None) -> list[Release]:
        release = _named(args, args.release, family)
        if release.status == "withdrawn":
            raise Refused(f"{release.name} is withdrawn", "a withdrawn release stays withdrawn")
        return [replace(release, status="retired")]

    return _change(args, settings, change)


def refresh(args: Namespace, settings: Settings) -> Reply:
    """Sign a model's family again as it is, before it expires: devices install nothing then.

    Example:
      fleetdiff release refresh asr-en-edge
    """
    return _change(args, settings, lambda family: [], renew=True)


def _change(args: Namespace, settings: Settings, change: _Change, *, renew: bool = False) -> Reply:
    """Sign releases with another status or other ways back."""

    def entries(family: Family | None) -> Entries:
        known = family.releases.values() if family else ()
        new = [release for release in change(family) if release not in known]
        return [target_of(args.model, release) for release in new]

    family, update = update_family(desk_of(settings), args.model, entries, renew=renew)
    releases = [
        {"name": r.name, "status": r.status, "back_from": list(r.rollback_from)}
        for r in family.releases.values()
    ]
    done = {"model": args.model, **update.told(), "releases": releases}
    return Reply(done, show.outcome(done))


def _named(args: Namespace, name: str, family: Family | None) -> Release:
    release = family.releases.get(name) if family else None
    if release is None:
        raise Refused(
            f"{args.model} has no release {name}", f"see fleetdiff release list {args.model}"
        )
    return release


def _components(args: Namespace) -> dict[Component, Path]:
    """Return the components of the new release in the order of their names, with their files."""
    given = sorted(args.component)
    if len(given) > COMPONENTS_MAX or len(dict(given)) < len(given):
        what = f"a release has up to {COMPONENTS_MAX} components, each with a name of its own"
        raise Usage(what, "give --component NAME=FILE once for each file")
    return {Component(name, *hash_file(path)): path for name, path in given}


def _release(
    args: Namespace, digest: str, size: int, components: tuple[Component, ...], known: Releases
) -> Release:
    twin = next((r for r in known.values() if r.sha256 == digest), None)
    if twin and twin.name != args.release:
        raise Refused(
            f"these bytes are already released as {twin.name}",
            "one file has one release name: use that one",
        )
    file: dict[str, Any] = {"sha256": digest, "bytes": size, "format": args.format}
    file |= {"hardware": tuple(args.hardware), "min_agent": args.min_agent or ""}
    file["components"] = components
    seq = max((r.seq for r in known.values()), default=0) + 1
    new = Release(name=args.release, seq=seq, status="active", rollback_from=(), **file)
    release = known.get(args.release, new)
    if replace(release, **file) != release:
        raise Refused(
            f"{args.release} of {args.model} is published with another file, format or needs",
            "a release never changes: publish under a new name",
        )
    return release


def _forgetting(releases: Releases) -> list[Release]:
    """Return releases without the oldest evaluations: a family has no room for all of them."""
    found = sorted(releases.values(), key=lambda release: release.seq)
    older = [replace(r, evaluation=None) for r in found[:-EVALUATIONS_MAX]]
    return older + found[-EVALUATIONS_MAX:]


def _evaluation(args: Namespace, digest: str, family: Family | None) -> Evaluation:
    canary = family.canary.sha256 if family and family.canary else ""
    found = read_evaluation(args, digest, canary)
    known = family.release_of(found.base) if family else None
    if known is None:
        raise Refused(f"{args.evaluation} compares with no published release", "give one as BASE")
    return found


def _edge(args: Namespace, path: Path, digest: str, known: Releases) -> PatchTarget:
    patch = described(path)
    source, result = patch["from"]["sha256"], patch["to"]["sha256"]
    if result != digest:
        raise Refused(
            f"{path} does not lead to {args.file}",
            "make it again: fleetdiff diff make BASE FILE -o PATCH",
        )
    base = next((r.name for r in known.values() if r.sha256 == source), args.release)
    if base == args.release:
        raise Refused(
            f"{path} does not start from a published release of {args.model}",
            f"make it from the exact file of one of: {', '.join(known) or 'none'}",
        )
    target = patch_path(args.model, base, args.release)
    return PatchTarget(target, *hash_file(path), source, result, patch["kind"])


def _ways_back(args: Namespace, new: Release, known: Releases, starts: set[str]) -> list[Release]:
    """Earlier releases with the right to return to them from the new one.

    To those that the patches start from, unless other options were given.
    """
    earlier = [r for r in known.values() if r.status == "active" and r.seq < new.seq]
    if args.rollback_from_here and earlier:
        starts = {*starts, max(earlier, key=lambda release: release.seq).sha256}
    days = args.rollback_days
    until = int(time() + days * DAY_S) if days else 0
    return [
        replace(base, rollback_from=(*base.rollback_from, new.name), rollback_until=until)
        for base in earlier
        if base.sha256 in starts and new.name not in base.rollback_from and not args.no_rollback
    ]


def _check_by_applying(client: Client, patches: dict[Path, PatchTarget]) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetdiff-") as folder:
        for path, patch in patches.items():
            base = Path(folder) / patch.from_sha256
            if not base.exists() and not client.download(base.name, base):
                show.note(
                    f"{path} was checked by its digests only: the server does not hold its base "
                    f"{base.name[:12]}"
                )
                continue
            with show.progress(f"checking {path.name}") as report:
                # Refuses everything that is not, byte for byte, what the manifest promises.
                apply(base, [path.resolve()], Path(folder) / "result", progress=report)


def _download(base: Release | None, kind: str, size: int, full: int) -> dict[str, object]:
    """What a device that runs `base` (None: anything) downloads to get the release."""
    source = base.name if base else "any other"
    return {"from": source, "kind": kind, "bytes": size, "share": size / full}
