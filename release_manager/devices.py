"""Devices and cohorts: who may enter, who is there, who belongs together."""

from argparse import Namespace
from typing import Any

from release_manager import arguments, show
from release_manager.client import connect
from release_manager.command import OF_MODEL, ONLY_MODEL, arg, command, many
from release_manager.config import Settings
from release_manager.errors import Usage
from release_manager.show import Reply

PAGE_MAX = 500
_COHORT = arg("name", type=arguments.name, help="name of the cohort")


@command(
    "device token",
    "--model asr-en-edge --uses 10 --ttl 24h",
    OF_MODEL,
    arg("--uses", type=arguments.count, default=1, help="how many devices (default: 1)"),
    arg("--ttl", type=arguments.duration_s, default="24h", help="default: 24h"),
    arg("--cohort", type=arguments.name, help="which they join"),
)
def token(args: Namespace, settings: Settings) -> Reply:
    """Make an enrollment token, with which devices introduce themselves."""
    document = {"model": args.model, "uses": args.uses, "ttl_s": args.ttl, "cohort": args.cohort}
    made = connect(settings).post("/v1/enrollment-tokens", document)
    return Reply(made, [*show.fields(made), "", "The token is not shown again."])


@command(
    "device list",
    "--cohort kitchen",
    ONLY_MODEL,
    arg("--cohort", type=arguments.name, help="only in this cohort"),
    arg("--limit", type=arguments.count, default=100, help="at most so many (default: 100)"),
)
def device_list(args: Namespace, settings: Settings) -> Reply:
    """List devices."""
    client, query = connect(settings), {"model": args.model, "cohort": args.cohort}
    found: list[Any] = []
    page: dict[str, Any] = {"next": None}
    while len(found) < args.limit:
        most = min(PAGE_MAX, args.limit - len(found))
        page = client.get("/v1/devices", **query, limit=most, cursor=page["next"])
        found += page["items"]
        if not page.get("next") or not page["items"]:
            break
    columns = "id model serial hardware status running_release last_seen_at tags"
    return show.listed({"items": found}, columns)


@command(
    "device show",
    "dev_1",
    arg("id", type=arguments.identity, help="id of the device (fleetdiff device list)"),
)
def device_show(args: Namespace, settings: Settings) -> Reply:
    """Show a device and what happened to it."""
    device = connect(settings).get(f"/v1/devices/{args.id}")
    lists = {name: device.get(name) or [] for name in ("deployments", "events")}
    lines = show.fields({name: value for name, value in device.items() if name not in lists})
    for name, items in lists.items():
        lines += ["", name, *show.table(" ".join(items[0]) if items else "", items)]
    return Reply(device, lines)


@command(
    "cohort create",
    "kitchen --model asr-en-edge --filter hardware=h1 --filter attributes.room=kitchen",
    _COHORT,
    OF_MODEL,
    many("--device", "ID", arguments.identity, "a device, by id"),
    many("--filter", "KEY=VALUE", arguments.filter_entry, arguments.FILTERS),
)
def cohort_create(args: Namespace, settings: Settings) -> Reply:
    """Name a set of devices, by their ids or by what they are."""
    if bool(args.device) == bool(args.filter):
        raise Usage("a cohort is made of --device or of --filter", "give one kind, at least once")
    document = {"name": args.name, "model": args.model}
    if args.device:
        members = {"devices": args.device}
    else:
        members = {"filter": arguments.cohort_filter(args.filter)}
    made = connect(settings).post("/v1/cohorts", document | members)
    return Reply(made, show.fields(made))


@command("cohort list", "")
def cohort_list(args: Namespace, settings: Settings) -> Reply:
    """List the cohorts."""
    return show.listed(connect(settings).get("/v1/cohorts"), "name model kind count filter")


@command("cohort show", "kitchen", _COHORT)
def cohort_show(args: Namespace, settings: Settings) -> Reply:
    """Show who is in a cohort."""
    found = connect(settings).get(f"/v1/cohorts/{args.name}")
    return Reply(found, show.fields(found))
