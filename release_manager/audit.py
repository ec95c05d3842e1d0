"""The audit log: read it, and check that it is whole.

The server is not believed: `verify` computes the chain of digests again from the first entry to
the last. A tail that was cut off breaks no link, so this machine remembers how far each server's
log went (`audit.json`, beside the configuration file).
"""

import json
import os
from argparse import Namespace

from release_manager import metadata
from release_manager.client import connect
from release_manager.config import Settings, config_file, recall, replace_file
from release_manager.fleet import PAGE_MAX, read_list
from release_manager.keys import KeyFolder
from release_manager.show import Reply
from trust.audit import SIGN, Head, follow, signed_head
from trust.errors import require


def show_log(args: Namespace, settings: Settings) -> Reply:
    """List what was done and what was refused, the newest first.

    Example:
      fleetdiff audit list --limit 20
    """
    columns = "seq at actor action object result details"
    return read_list(settings, "/v1/audit", columns, args.limit, newest_first="true")


def verify(args: Namespace, settings: Settings) -> Reply:
    """Check that no entry of the audit log was changed, removed or cut off.

    With a root in the folder of keys, it says up to which entry the publisher vouches for it.

    Example:
      fleetdiff audit verify
    """
    client, head = connect(settings), Head()
    file = config_file(os.environ).with_name("audit.json")
    remembered = recall(file, "remove it, then the log is checked afresh")
    known = Head(*remembered.get(client.server, Head()))
    end, signed = Head(1), Head()
    trusted = KeyFolder(settings.keys).root_file.exists()
    targets = metadata.fetch(metadata.desk_of(settings)).targets if trusted else None
    while head.seq < end.seq:
        page = client.get("/v1/audit", cursor=head.seq, limit=PAGE_MAX)
        end = Head(**page["head"])
        for entry in page["items"]:
            if targets and entry["action"] == SIGN:
                then = signed_head(entry["details"].get("envelope"), targets.signed)
                says = f"the publisher signed another entry {head.seq} of the audit log"
                require(then in (None, head), "E_AUDIT", says)
                signed = then or signed
            head = follow(head, [entry])
            for other, who in ((known, "this machine saw before"), (end, "its end names")):
                same = head.seq != other.seq or head == other
                require(same, "E_AUDIT", f"entry {head.seq} of the audit log is not the one {who}")
        gone = f"the audit log ends after entry {head.seq}, but its end names entry {end.seq}"
        require(bool(page["items"]) or head.seq >= end.seq, "E_AUDIT", gone)
    gone = f"the audit log ends after entry {head.seq}, but this machine saw entry {known.seq}"
    require(head.seq >= known.seq, "E_AUDIT", gone)
    file.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    replace_file(file, json.dumps(remembered | {client.server: head}).encode())
    found = {"entries": head.seq, "whole": True, "sha256": head.sha256}
    return Reply(found | {"signed_to": signed.seq})
