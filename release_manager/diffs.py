"""Diffs on this machine: make, apply and look at patch files; no server takes part."""

from argparse import Namespace
from pathlib import Path
from typing import Any

from neural_diff.errors import NeuralDiffError
from release_manager import show
from release_manager.command import arg, command
from release_manager.config import Settings
from release_manager.errors import Usage
from release_manager.show import Reply

_BASE = arg("base", type=Path, help="the file that devices have")
_OUT = arg("-o", "--out", type=Path, required=True, help="the file to write")


@command(
    "diff make",
    "r1.safetensors r2.safetensors -o r1_r2.ndiff\n"
    "--buckets b.safetensors r1.safetensors -o r1_r2.ndiff --result r2.safetensors",
    _BASE,
    arg("target", type=Path, nargs="?", help="the new file"),
    _OUT,
    arg("--buckets", type=Path, metavar="FILE", help="trained buckets, instead of TARGET"),
    arg("--result", type=Path, metavar="FILE", help="with --buckets: the new file to write"),
)
def make(args: Namespace, settings: Settings) -> Reply:
    """Make the patch from one model file to another, or a hashed one from trained buckets."""
    # Here and not above: numpy would slow down every command.
    from neural_diff.make import make_hashed, make_patch

    hashed = args.buckets is not None
    if hashed == (args.target is not None) or hashed != (args.result is not None):
        raise Usage(
            "diff make takes BASE TARGET, or --buckets FILE BASE with --result FILE",
            "see fleetdiff diff make --help",
        )
    inputs = [path for path in (args.base, args.target, args.buckets) if path]
    _keep_inputs(args.out, *inputs, *([args.result] if hashed else []))
    with show.progress(f"comparing with {args.base.name}") as report:
        if hashed:
            _keep_inputs(args.result, *inputs)
            make_hashed(args.base, args.buckets, args.out, args.result, progress=report)
        else:
            make_patch(args.base, args.target, args.out, progress=report)
    return _described(args.out)


@command(
    "diff apply",
    "r1.safetensors r1_r2.ndiff r2_r3.ndiff -o r3.safetensors",
    _BASE,
    arg("patch", type=Path, nargs="+", help="in order"),
    _OUT,
)
def apply(args: Namespace, settings: Settings) -> Reply:
    """Apply patches in order, as a device does."""
    from neural_diff.apply import apply as apply_patches

    _keep_inputs(args.out, args.base, *args.patch)
    with show.progress(f"applying to {args.base.name}") as report:
        applied = apply_patches(args.base, args.patch, args.out, progress=report)
    document = {"file": str(args.out), "sha256": applied.sha256, "bytes": applied.size}
    return Reply(document, show.fields(document))


@command("diff inspect", "r1_r2.ndiff", arg("patch", type=Path, help="the patch file"))
def inspect(args: Namespace, settings: Settings) -> Reply:
    """Show what a patch does, region by region."""
    return _described(args.patch)


def _described(patch: Path) -> Reply:
    from neural_diff.describe import describe

    try:
        found: dict[str, Any] = {"file": str(patch), **describe(patch)}
    except NeuralDiffError as error:
        raise type(error)(f"{patch}: {error}") from None
    facts = {name: found[name] for name in ("file", "kind", "patch_bytes")}
    facts["of the target"] = f"{100 * found['share_of_target']:.2f} %"
    facts |= {"from": found["from"]["sha256"], "to": found["to"]["sha256"], **found["provenance"]}
    regions = show.table("name kind width elements ops changed bytes", found["regions"])
    return Reply(found, [*show.fields(facts), "", *regions])


def _keep_inputs(out: Path, *inputs: Path) -> None:
    if out.resolve() in {path.resolve() for path in inputs}:
        raise Usage(f"{out} is also another file of this command", "write to another file")
