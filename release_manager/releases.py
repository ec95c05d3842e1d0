"""Publishing a release: check on this machine, upload, sign, upload the signature.

The checks come first, against the family that this machine verified itself: every patch must lead
from the bytes of a published release to the new file, by the digests in its manifest and by
applying it. Running the same command again finishes what an interruption left, and says so when
there is nothing left to do.
"""

import tempfile
from argparse import Namespace
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from neural_diff.apply import apply, open_regular
from neural_diff.errors import Malformed, NeuralDiffError
from neural_diff.patch import Patch, read_patch
from release_manager import arguments, artifacts, show
from release_manager.artifacts import Artifact
from release_manager.client import Client, connect
from release_manager.command import MODEL, RELEASE, arg, command, many
from release_manager.config import Settings
from release_manager.errors import Refused
from release_manager.metadata import Desk, Entries, desk_of, update_family
from release_manager.show import Reply
from trust.roles import Family, PatchTarget, Release, patch_path
from trust.sign import patch_target, release_target


@dataclass(frozen=True)
class Publication:
    """What a release manager wants to publish.

    Attributes:
        model: the line of models.
        release: the name of the new release.
        file: the full model file.
        patches: files that lead to it from earlier releases.
        hardware: what it is made for; empty for everything.
        format: of the model file.
        way_back: "patched": the releases that the patches start from may be returned to;
            "newest": the newest active release too; "none".
    """

    model: str
    release: str
    file: Path
    patches: tuple[Path, ...]
    hardware: tuple[str, ...]
    format: str
    way_back: str


@dataclass(frozen=True)
class _LocalPatch:
    artifact: Artifact
    content: Patch


@command(
    "release publish",
    "asr-en-edge r2 r2.safetensors --patch r1_r2.ndiff",
    MODEL,
    RELEASE,
    arg("file", type=Path, help="the full model file"),
    many("--patch", "FILE", Path, "a patch that leads to FILE"),
    many("--hardware", "NAME", arguments.name, "only for this hardware"),
    arg("--format", type=arguments.name, default="safetensors", help="default: %(default)s"),
    arg(
        "--rollback-from-here",
        action="store_const",
        dest="way_back",
        const="newest",
        help="allow the way back to the newest release too, even without a patch",
    ),
    arg(
        "--no-rollback",
        action="store_const",
        dest="way_back",
        const="none",
        default="patched",
        help="allow no way back (default: to the releases that the patches start from)",
    ),
)
def release_publish(args: Namespace, settings: Settings) -> Reply:
    """Check, upload and sign a release and the patches that lead to it."""
    wanted = Publication(
        model=args.model,
        release=args.release,
        file=args.file,
        patches=tuple(args.patch),
        hardware=tuple(args.hardware),
        format=args.format,
        way_back=args.way_back,
    )
    return show.published(publish(desk_of(settings), wanted))


@command("release list", "asr-en-edge", MODEL)
def release_list(args: Namespace, settings: Settings) -> Reply:
    """List a model's releases."""
    answer = connect(settings).get(f"/v1/models/{args.model}/releases")
    return show.listed(answer, "name seq status bytes devices published_at rollback_from sha256")


def publish(desk: Desk, wanted: Publication) -> dict[str, Any]:
    """Publish a release and its patches.

    Raises:
        Refused: a check failed, here or on the server; nothing was signed.
        Untrusted: what the server shows is not what was signed.
        NeuralDiffError: a patch is damaged or does not lead to the file.
    """
    model_file = artifacts.hash_file(wanted.file)
    patches = [_LocalPatch(artifacts.hash_file(p), _open_patch(p)) for p in wanted.patches]
    for patch in patches:
        if patch.content.to_sha256 != model_file.sha256:
            raise Refused(
                f"{patch.artifact.path} does not lead to {wanted.file}",
                "make it again: fleetdiff diff make BASE FILE -o PATCH",
            )
    signed = 0

    def change(family: Family | None) -> Entries:
        nonlocal signed
        known = family.releases if family else {}
        release = _release(wanted, model_file, known)
        edges = [_edge(wanted, patch, known) for patch in patches]
        before = [*known.values(), *(family.patches if family else ())]
        new: list[Release | PatchTarget] = [
            release,
            *edges,
            *_ways_back(wanted, release, known, edges),
        ]
        new = [entry for entry in new if entry not in before]
        fresh = {entry.sha256 for entry in new}
        unchecked = [patch for patch in patches if patch.artifact.sha256 in fresh]
        _check_by_applying(desk.client, unchecked, wanted.file)
        if new:
            for artifact in [model_file, *(patch.artifact for patch in patches)]:
                artifacts.upload(desk.client, artifact)
        signed += len(new)
        return [
            release_target(wanted.model, e) if isinstance(e, Release) else patch_target(e)
            for e in new
        ]

    family = update_family(desk, wanted.model, change)
    release = family.releases[wanted.release]
    return {
        "model": wanted.model,
        "release": release.name,
        "seq": release.seq,
        "sha256": release.sha256,
        "bytes": release.bytes,
        "patches": [p.path for p in family.patches if p.to_sha256 == release.sha256],
        "back_to": [r.name for r in family.releases.values() if release.name in r.rollback_from],
        "published": bool(signed),
        "version": family.version,
    }


def _release(wanted: Publication, file: Artifact, known: dict[str, Release]) -> Release:
    twin = next((r for r in known.values() if r.sha256 == file.sha256), None)
    if twin and twin.name != wanted.release:
        raise Refused(
            f"these bytes are already released as {twin.name}",
            "one file has one release name: use that one",
        )
    old = known.get(wanted.release)
    new = Release(
        name=wanted.release,
        seq=old.seq if old else max((r.seq for r in known.values()), default=0) + 1,
        status=old.status if old else "active",
        sha256=file.sha256,
        bytes=file.bytes,
        format=wanted.format,
        hardware=wanted.hardware,
        rollback_from=old.rollback_from if old else (),
    )
    if old and new != old:
        raise Refused(
            f"{wanted.release} of {wanted.model} is published with another file, format or "
            "hardware",
            "a release never changes: publish under a new name",
        )
    return new


def _edge(wanted: Publication, patch: _LocalPatch, known: dict[str, Release]) -> PatchTarget:
    content = patch.content
    base = next((r for r in known.values() if r.sha256 == content.from_sha256), None)
    if base is None or base.name == wanted.release:
        names = ", ".join(known) or "none"
        raise Refused(
            f"{patch.artifact.path} does not start from a published release of {wanted.model}",
            f"make it from the exact file of one of: {names}",
        )
    return PatchTarget(
        path=patch_path(wanted.model, base.name, wanted.release),
        sha256=patch.artifact.sha256,
        bytes=patch.artifact.bytes,
        from_sha256=content.from_sha256,
        to_sha256=content.to_sha256,
        kind=content.kind,
    )


def _ways_back(
    wanted: Publication, new: Release, known: dict[str, Release], edges: list[PatchTarget]
) -> list[Release]:
    """Earlier releases with the right to return to them from the new one."""
    if wanted.way_back == "none":
        return []
    starts = {edge.from_sha256 for edge in edges}
    earlier = [r for r in known.values() if r.status == "active" and r.seq < new.seq]
    if wanted.way_back == "newest" and earlier:
        starts.add(max(earlier, key=lambda release: release.seq).sha256)
    return [
        replace(base, rollback_from=(*base.rollback_from, new.name))
        for base in earlier
        if base.sha256 in starts and new.name not in base.rollback_from
    ]


def _check_by_applying(client: Client, patches: list[_LocalPatch], file: Path) -> None:
    with tempfile.TemporaryDirectory(prefix="fleetdiff-") as folder:
        for patch in patches:
            base = Path(folder) / patch.content.from_sha256
            if not base.exists() and not artifacts.download(client, base.name, base):
                show.note(
                    f"{patch.artifact.path} was checked by its digests only: the server does not "
                    f"hold its base {base.name[:12]}"
                )
                continue
            with show.progress(f"checking {patch.artifact.path.name}") as report:
                # Refuses everything that is not, byte for byte, what the manifest promises.
                apply(
                    base, [patch.artifact.path.resolve()], Path(folder) / file.name, progress=report
                )


def _open_patch(path: Path) -> Patch:
    with open_regular(path.resolve(), Malformed) as file:
        try:
            return read_patch(file, path.stat().st_size)
        except NeuralDiffError as error:
            raise type(error)(f"{path}: {error}") from None
