"""What takes a server and no key: who we are, the lists, cohorts, and letting devices in."""

import getpass
import os
import sys
from argparse import Namespace
from typing import Any

from release_manager import show
from release_manager.arguments import cohort_filter
from release_manager.client import Client, connect
from release_manager.config import Secret, Settings, config_file, write_config
from release_manager.errors import Usage
from release_manager.show import Reply

PAGE_MAX = 500


def login(args: Namespace, settings: Settings) -> Reply:
    """Remember the server and the token, after trying them (--token - asks for the token).

    Example:
      fleetdiff login --server https://fleet.example --token -
    """
    if settings.server is None or args.token is None or args.server is None:
        raise Usage("login takes --server and --token", "give both; --token - asks for the token")
    token = args.token
    if token == "-":
        token = getpass.getpass("token: ") if sys.stdin.isatty() else sys.stdin.readline()
    token = token.strip()
    me = Client(settings.server, Secret(token)).get("/v1/whoami")
    keys = {"keys": str(args.keys.absolute())} if args.keys else {}
    file = config_file(os.environ)
    write_config(file, {"server": settings.server, "token": token, **keys})
    return Reply({"server": settings.server, "config": str(file), **me})


def status(args: Namespace, settings: Settings) -> Reply:
    """Show who you are and how the fleet is.

    Example:
      fleetdiff status
    """
    client = connect(settings)
    document = {"whoami": client.get("/v1/whoami"), "health": client.get("/v1/health")}
    models = [
        {**release, "model": model["name"], "release": release["name"]}
        for model in document["health"].get("models", [])
        for release in reversed(model["releases"])
    ]
    told = {"server": client.server, **document, "health": document["health"] | {"models": models}}
    return Reply(document, show.as_text(told))


def list_models(args: Namespace, settings: Settings) -> Reply:
    """List the models.

    Example:
      fleetdiff model list
    """
    return read_list(settings, "/v1/models", "name created_at releases devices canary_set")


def list_releases(args: Namespace, settings: Settings) -> Reply:
    """List a model's releases.

    Example:
      fleetdiff release list asr-en-edge
    """
    columns = "name seq status bytes devices published_at rollback_from sha256"
    return read_list(settings, f"/v1/models/{args.model}/releases", columns)


def list_rollouts(args: Namespace, settings: Settings) -> Reply:
    """List rollouts, the newest first.

    Example:
      fleetdiff rollout list --state running
    """
    columns = "id model release cohort state stage created_at halt_reason"
    return read_list(settings, "/v1/rollouts", columns, model=args.model, state=args.state)


def list_devices(args: Namespace, settings: Settings) -> Reply:
    """List devices.

    Example:
      fleetdiff device list --cohort kitchen
    """
    columns = "id model serial hardware agent_version status running_release last_seen_at tags"
    query = {"model": args.model, "cohort": args.cohort}
    return read_list(settings, "/v1/devices", columns, args.limit, **query)


def show_device(args: Namespace, settings: Settings) -> Reply:
    """Show a device and what happened to it.

    Example:
      fleetdiff device show dev_1
    """
    return Reply(connect(settings).get(f"/v1/devices/{args.id}"))


def explain_device(args: Namespace, settings: Settings) -> Reply:
    """Show why a device gets no order: every rule in turn, and the first that stops it.

    Example:
      fleetdiff device explain dev_1
      fleetdiff device explain dev_1 --rollout ro_1
    """
    path = f"/v1/devices/{args.id}/explain"
    found = connect(settings).get(path, rollout=args.rollout)
    stop = found["stopped_by"]
    told = {**found, "stopped_by": stop and f"{stop['rule']}: {stop['compared']}"}
    if way := found["under_way"]:
        said = "".join(f", {t['reason']}: {t['detail']}" for t in [way["trouble"]] if t)
        told["under_way"] = f"{way['state']} since {way['updated_at']}{said}"
    return Reply(found, show.as_text(told))


def list_cohorts(args: Namespace, settings: Settings) -> Reply:
    """List the cohorts.

    Example:
      fleetdiff cohort list
    """
    return read_list(settings, "/v1/cohorts", "name model kind count counted filter")


def show_cohort(args: Namespace, settings: Settings) -> Reply:
    """Show who is in a cohort. Where it is large and `counted` is no, a sample tells the numbers.

    Example:
      fleetdiff cohort show kitchen
      fleetdiff cohort show kitchen --exact
    """
    exact = "true" if args.exact else None
    return Reply(connect(settings).get(f"/v1/cohorts/{args.name}", exact=exact))


def create_cohort(args: Namespace, settings: Settings) -> Reply:
    """Name a set of devices, by their ids or by what they are.

    Example:
      fleetdiff cohort create kitchen --model asr-en-edge --filter hardware=h1
      fleetdiff cohort create mine --model asr-en-edge --device dev_1 --device dev_2
    """
    if bool(args.device) == bool(args.filter):
        raise Usage("a cohort is made of --device or of --filter", "give one kind, at least once")
    members = {"devices": args.device} if args.device else {"filter": cohort_filter(args.filter)}
    document = {"name": args.name, "model": args.model, **members}
    return Reply(connect(settings).post("/v1/cohorts", document))


def make_token(args: Namespace, settings: Settings) -> Reply:
    """Make an enrollment token, with which devices introduce themselves; it is shown once.

    Example:
      fleetdiff device token --model asr-en-edge --uses 10 --ttl 24h
    """
    document = {"model": args.model, "uses": args.uses, "ttl_s": args.ttl, "cohort": args.cohort}
    return Reply(connect(settings).post("/v1/enrollment-tokens", document))


def revoke_device(args: Namespace, settings: Settings) -> Reply:
    """Shut a device out for good: its credential is void, and its serial may enroll again.

    Example:
      fleetdiff device revoke dev_1
    """
    return _set_status(args, settings, "revoked")


def retry_device(args: Namespace, settings: Settings) -> Reply:
    """Let a device try again now what failed on it, before its pause is over or its attempts are.

    Example:
      fleetdiff device retry dev_1
    """
    return Reply(connect(settings).post(f"/v1/devices/{args.id}/retry", {}))


def quarantine_device(args: Namespace, settings: Settings) -> Reply:
    """Let a device get nothing new, and do not believe what it reports.

    Example:
      fleetdiff device quarantine dev_1
    """
    return _set_status(args, settings, "quarantined")


def readmit_device(args: Namespace, settings: Settings) -> Reply:
    """End the quarantine of a device.

    Example:
      fleetdiff device readmit dev_1
    """
    return _set_status(args, settings, "active")


def create_token(args: Namespace, settings: Settings) -> Reply:
    """Make an API token with scopes that you have, too; it is shown once.

    Example:
      fleetdiff token create on-call --scope rollouts:halt --scope rollouts:read --lifetime 30d
      fleetdiff token create ci --scope releases:write --network 10.1.0.0/16
    """
    document = {"name": args.name, "scopes": args.scope, "ttl_s": args.lifetime}
    document |= {"networks": args.network or None}
    return Reply(connect(settings).post("/v1/tokens", document))


def list_tokens(args: Namespace, settings: Settings) -> Reply:
    """List the API tokens, and when each was used.

    Example:
      fleetdiff token list
    """
    return read_list(settings, "/v1/tokens", "id name scopes last_used_at expires_at revoked_at")


def revoke_token(args: Namespace, settings: Settings) -> Reply:
    """End an API token now.

    Example:
      fleetdiff token revoke 0123456789abcdef
    """
    return Reply(connect(settings).post(f"/v1/tokens/{args.id}/revoke", {}))


def collectable(args: Namespace, settings: Settings) -> Reply:
    """List the artifacts that nothing needs any more, and when each may go; --json lists all.

    With --json each artifact carries every reason for which it is kept.

    Example:
      fleetdiff gc plan
    """
    found = read_list(settings, "/v1/artifacts", "")
    columns = "sha256 bytes state unneeded_since due_at"
    there = [row for row in found.document["items"] if row["state"] != "deleted"]
    loose = [row for row in there if not row["needed"]]
    return Reply(found.document, show.as_table(loose, columns))


def collect(args: Namespace, settings: Settings) -> Reply:
    """Delete what nothing has needed for the server's time of grace; an upload brings it back.

    What nothing needs from now on becomes a candidate, which goes after that time. What an earlier
    run chose and the store did not let go is `undeleted`: then this ends with exit code 1.

    Example:
      fleetdiff gc run
    """
    told = connect(settings).post("/v1/artifacts/collect", {})
    return Reply(told, exit_code=int(told["undeleted"]["artifacts"] > 0))


def _set_status(args: Namespace, settings: Settings, status: str) -> Reply:
    return Reply(connect(settings).patch(f"/v1/devices/{args.id}", {"status": status}))


def read_list(
    settings: Settings, path: str, columns: str, limit: int | None = None, **query: str | None
) -> Reply:
    """Read a list page by page, to its end or up to a limit."""
    client, cursor = connect(settings), None
    items: list[Any] = []
    while True:
        most = limit and min(PAGE_MAX, limit - len(items))
        page = client.get(path, **query, limit=most, cursor=cursor)
        items += page["items"]
        cursor = page.get("next")
        if not (cursor and page["items"]) or len(items) == limit:
            return Reply({"items": items}, show.as_table(items, columns))
