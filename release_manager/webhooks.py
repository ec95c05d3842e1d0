"""Webhooks: addresses of pipelines that the server tells what happens."""

from argparse import Namespace

from release_manager.client import connect
from release_manager.config import Settings
from release_manager.fleet import read_list
from release_manager.show import Reply


def create(args: Namespace, settings: Settings) -> Reply:
    """Tell an address what happens from now on; its secret is shown once.

    The server's settings say which addresses may be told (FLEETDIFF_WEBHOOKS_TO). Messages are
    those of Standard Webhooks, so any library of theirs can check the signature.

    Example:
      fleetdiff webhook create https://hooks.example/ci --event 'release.*'
    """
    events = {"events": args.event} if args.event else {}
    return Reply(connect(settings).post("/v1/webhooks", {"url": args.url, **events}))


def list_all(args: Namespace, settings: Settings) -> Reply:
    """List the webhooks, and how the last call of each went.

    Example:
      fleetdiff webhook list
    """
    return read_list(settings, "/v1/webhooks", "id url events state attempts next_at last_error")


def delete(args: Namespace, settings: Settings) -> Reply:
    """Tell an address nothing more.

    Example:
      fleetdiff webhook delete 0123456789abcdef
    """
    connect(settings).delete(f"/v1/webhooks/{args.id}")
    return Reply({"deleted": args.id})


def enable(args: Namespace, settings: Settings) -> Reply:
    """Try an address at once, from where it stopped: nothing is left out.

    Example:
      fleetdiff webhook enable 0123456789abcdef
    """
    return Reply(connect(settings).post(f"/v1/webhooks/{args.id}/enable", {}))


def test(args: Namespace, settings: Settings) -> Reply:
    """Let an address be told `webhook.test`.

    Example:
      fleetdiff webhook test 0123456789abcdef
    """
    return Reply(connect(settings).post(f"/v1/webhooks/{args.id}/test", {}))
