"""The first steps: keys, the root on the server, who we are."""

import getpass
import os
import sys
from argparse import Namespace

from release_manager import show
from release_manager.client import Client, connect
from release_manager.command import arg, command
from release_manager.config import Secret, Settings, config_file, write_config
from release_manager.errors import Stop, Usage
from release_manager.keys import KeyFolder, make_keys
from release_manager.metadata import Desk, publish_root, update_targets, utc_now
from release_manager.show import Reply


@command(
    "init",
    "--dev --keys keys",
    arg("--dev", action="store_true", help="all keys in one folder, held by one person"),
    arg("--publish", action="store_true", help="only give a folder's root to the server"),
)
def init(args: Namespace, settings: Settings) -> Reply:
    """Make the keys, and give their root to the server if one is configured."""
    if not (args.dev or args.publish):
        raise Usage(
            "the key ceremony with several people is not there yet",
            "use fleetdiff init --dev for development; do not trust production devices to it",
        )
    folder = KeyFolder(settings.keys)
    made = make_keys(folder, utc_now()) if args.dev else []
    later = f"fleetdiff init --publish --keys {folder.path}"
    lines = [f"made {name}" for name in made] or [f"{folder.path}: all there, nothing changed"]
    if made:
        lines.append(f"give {folder.path / 'online'} to the server, root.json to every device")
    document = {"keys": str(folder.path), "made": made, "published": False, "on_server": False}
    if not args.publish and (settings.server is None or settings.token is None):
        return Reply(document, [*lines, f"no server is configured; after login run {later}"])
    try:
        desk = Desk(connect(settings), folder, utc_now())
        root = publish_root(desk)
        document |= {"published": update_targets(desk, []) or root, "on_server": True}
    except Stop as error:
        if made:
            error.advice = f"the keys are made; later run {later}"
        raise
    return Reply(document, [*lines, "root and targets are on the server"])


@command("login", "--server https://fleet.example --token -")
def login(args: Namespace, settings: Settings) -> Reply:
    """Remember the server and the token, after trying them (--token - asks for the token)."""
    if settings.server is None or args.token is None or args.server is None:
        raise Usage("login takes --server and --token", "give both; --token - asks for the token")
    token = args.token
    if token.reveal() == "-":
        asked = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline()
        token = Secret(asked.strip())
    me = Client(settings.server, token).get("/v1/whoami")
    file = config_file(os.environ)
    write_config(file, settings.server, token, args.keys)
    document = {"server": settings.server, "config": str(file), **me}
    return Reply(document, show.fields(document))


@command("status", "")
def status(args: Namespace, settings: Settings) -> Reply:
    """Show who you are and how the fleet is."""
    client = connect(settings)
    me, health = client.get("/v1/whoami"), client.get("/v1/health")
    lines = [*show.fields({"server": client.server, **me}), "", *show.fields(health)]
    return Reply({"whoami": me, "health": health}, lines)
