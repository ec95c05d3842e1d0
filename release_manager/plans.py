"""How devices get from release to release: patches in the field, floors, and plans explained."""

from argparse import Namespace
from typing import Any

from release_manager import show
from release_manager.client import connect
from release_manager.config import Settings
from release_manager.errors import Usage
from release_manager.fleet import read_list
from release_manager.show import Reply


def list_patches(args: Namespace, settings: Settings) -> Reply:
    """List a model's patches: what each takes, and how it does in the field.

    Example:
      fleetdiff patch list asr-en-edge
    """
    columns = "from to kind bytes memory_bytes goes_back ok_count fail_count withdrawn"
    return read_list(settings, f"/v1/models/{args.model}/patches", columns)


def withdraw(args: Namespace, settings: Settings) -> Reply:
    """Send no device along a patch any more; its devices take another way, or the full file.

    Example:
      fleetdiff patch withdraw asr-en-edge r1 r2 --reason "fails on chips of 2019"
    """
    return Reply(connect(settings).post(_edge(args, "withdraw"), {"reason": args.reason}))


def restore(args: Namespace, settings: Settings) -> Reply:
    """Use a withdrawn patch again.

    Example:
      fleetdiff patch restore asr-en-edge r1 r2
    """
    return Reply(connect(settings).post(_edge(args, "restore"), {}))


def floor(args: Namespace, settings: Settings) -> Reply:
    """Let no device get a later release before it ran this one; or list or lift such floors.

    Example:
      fleetdiff model floor asr-en-edge r5 --reason "moves the cache to its new form"
      fleetdiff model floor asr-en-edge r5 --lift
      fleetdiff model floor asr-en-edge
    """
    path = f"/v1/models/{args.model}/floors"
    if args.release is None:
        if args.reason or args.lift:
            raise Usage("which release is the floor?", "see fleetdiff model floor --help")
    elif args.lift:
        connect(settings).delete(f"{path}/{args.release}")
    else:
        because = {"reason": args.reason}
        return Reply(connect(settings).put(f"{path}/{args.release}", because))
    return read_list(settings, path, "release reason created_at")


def bases(args: Namespace, settings: Settings) -> Reply:
    """Propose from which releases the next one should have patches, by what devices run.

    Example:
      fleetdiff diff bases --model asr-en-edge
    """
    columns = "release devices share_bp base by_way_of"
    return read_list(settings, f"/v1/models/{args.model}/bases", columns)


def plan(args: Namespace, settings: Settings) -> Reply:
    """Explain how devices get to a release: the ways in order, and which were excluded by what.

    Example:
      fleetdiff release plan asr-en-edge r7 --from r3
      fleetdiff release plan asr-en-edge r7 --on dev_1
    """
    if (args.source is None) == (args.on is None):
        raise Usage("release plan takes --from or --on", "say from where: a release or a device")
    where = {"to": args.release, "from": args.source, "device": args.on}
    found = connect(settings).get(f"/v1/models/{args.model}/plan", **where)
    told = {name: [_row(way) for way in found[name]] for name in ("pipelines", "excluded")}
    return Reply(found, show.as_text(found | told))


def _row(way: dict[str, Any]) -> dict[str, Any]:
    steps = " > ".join(f"{step['op']} {step['to']}" for step in way["steps"])
    because = "; ".join(f"{name}: {why}" for name, why in way.get("excluded", {}).items())
    return {"way": steps, "bytes": way["bytes"], "cost_ms": way["cost_ms"], "because": because}


def _edge(args: Namespace, verb: str) -> str:
    return f"/v1/models/{args.model}/patches/{args.source}/{args.release}/{verb}"
