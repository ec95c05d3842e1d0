"""Diffs on this machine: make, apply and look at patch files; no server takes part."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from neural_diff.errors import NeuralDiffError
from release_manager import show
from release_manager.config import Settings
from release_manager.errors import Usage
from release_manager.show import Reply


def make(args: Namespace, settings: Settings) -> Reply:
    """Make the patch from one model file to another, or a hashed one from trained buckets.

    Example:
      fleetdiff diff make r1.safetensors r2.safetensors -o r1_r2.ndiff
      fleetdiff diff make --buckets b.bin r1.safetensors -o r1_r2.ndiff --result r2.safetensors
    """
    # Here and not above: numpy would slow down every command.
    from neural_diff.make import make_hashed, make_patch

    hashed = args.buckets is not None
    if hashed == (args.target is not None) or hashed != (args.result is not None):
        raise Usage(
            "diff make takes BASE TARGET, or --buckets FILE BASE with --result FILE",
            "see fleetdiff diff make --help",
        )
    _keep_inputs([args.out, args.result], [args.base, args.target, args.buckets])
    with show.progress(f"comparing with {args.base.name}") as report:
        if hashed:
            make_hashed(args.base, args.buckets, args.out, args.result, progress=report)
        else:
            make_patch(args.base, args.target, args.out, progress=report)
    return inspect(Namespace(patch=args.out), settings)


def apply(args: Namespace, settings: Settings) -> Reply:
    """Apply patches in order, as a device does.

    Example:
      fleetdiff diff apply r1.safetensors r1_r2.ndiff r2_r3.ndiff -o r3.safetensors
    """
    from neural_diff.apply import apply as apply_patches

    _keep_inputs([args.out], [args.base, *args.patch])
    with show.progress(f"applying to {args.base.name}") as report:
        applied = apply_patches(args.base, args.patch, args.out, progress=report)
    return Reply({"file": str(args.out), "sha256": applied.sha256, "bytes": applied.size})


def squash(args: Namespace, settings: Settings) -> Reply:
    """Make one patch that does what a chain of patches does to BASE.

    Example:
      fleetdiff diff squash r1.safetensors r1_r2.ndiff r2_r3.ndiff -o r1_r3.ndiff
    """
    from neural_diff import compose

    _keep_inputs([args.out], [args.base, *args.patch])
    with show.progress(f"comparing with {args.base.name}") as report:
        compose.squash(args.base, args.patch, args.out, progress=report)
    return inspect(Namespace(patch=args.out), settings)


def invert(args: Namespace, settings: Settings) -> Reply:
    """Make the patch back, from the file that PATCH leads to; its base is not needed.

    Example:
      fleetdiff diff invert r2.safetensors r1_r2.ndiff -o r2_r1.ndiff
    """
    from neural_diff import compose

    _keep_inputs([args.out], [args.file, args.patch])
    with show.progress(f"undoing {args.patch.name}") as report:
        compose.invert(args.file, args.patch, args.out, progress=report)
    return inspect(Namespace(patch=args.out), settings)


def inspect(args: Namespace, settings: Settings) -> Reply:
    """Show what a patch does, tensor by tensor.

    Example:
      fleetdiff diff inspect r1_r2.ndiff
    """
    return Reply({"file": str(args.patch), **described(args.patch)})


def described(patch: Path) -> dict[str, Any]:
    """Return what a patch does; an error names the file.

    Raises:
        NeuralDiffError: it is no patch, or damaged.
    """
    from neural_diff.describe import describe

    try:
        return describe(patch)
    except NeuralDiffError as error:
        raise type(error)(f"{patch}: {error}") from None


def _keep_inputs(outputs: list[Path | None], inputs: list[Path | None]) -> None:
    taken = {path.resolve() for path in inputs if path}
    for out in filter(None, outputs):
        if out.resolve() in taken:
            raise Usage(f"{out} is also another file of this command", "write to another file")
        taken.add(out.resolve())
