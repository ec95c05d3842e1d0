"""The chain of the audit log: each entry carries the digest of the one before it.

So nobody who can write to the database changes or removes an entry unseen: whoever reads the log
computes the digests again, and remembers how far it went, for a tail that is cut off breaks no
link. The server makes the links with the same function that its readers check them with.
"""

import json
from collections.abc import Iterable, Mapping
from copy import deepcopy
from hashlib import sha256
from typing import Any, NamedTuple

from securesystemslib.dsse import Envelope
from tuf.api.exceptions import UnsignedMetadataError
from tuf.api.metadata import Targets

from trust.errors import require
from trust.roles import DIRECTOR

SIGN = "audit.sign"  # the action of an entry that holds the publisher's signature on its head
PAYLOAD_TYPE = "application/vnd.fleetdiff.audit-head+json"
FIRST = "0" * 64  # what the first entry names as the digest before it


class Head(NamedTuple):
    """The last entry of a log: its number and its digest."""

    seq: int = 0
    sha256: str = FIRST


def entry_digest(entry: Mapping[str, Any]) -> str:
    """Return the digest of an entry: of all its fields but the digest, as canonical JSON."""
    body = {name: value for name, value in entry.items() if name != "sha256"}
    return sha256(json.dumps(body, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


def follow(head: Head, entries: Iterable[Mapping[str, Any]]) -> Head:
    """Follow the chain from a head over the entries after it, and return the new head.

    Raises:
        Untrusted: E_AUDIT, naming the first entry that is missing or is not what was written.
    """
    for entry in entries:
        seq = head.seq + 1
        require(entry.get("seq") == seq, "E_AUDIT", f"entry {seq} of the audit log is missing")
        linked = entry.get("previous_sha256") == head.sha256
        require(linked, "E_AUDIT", f"entry {seq} of the audit log does not follow entry {head.seq}")
        whole = entry.get("sha256") == entry_digest(entry)
        require(whole, "E_AUDIT", f"entry {seq} of the audit log was changed")
        head = Head(seq, str(entry["sha256"]))
    return head


def head_envelope(head: Head) -> Envelope:
    """Return the DSSE envelope that says how far a log goes, for the director to sign."""
    return Envelope(json.dumps(head._asdict(), sort_keys=True).encode(), PAYLOAD_TYPE, {})


def signed_head(envelope: Any, targets: Targets) -> Head | None:
    """Return how far a log went when the director, as targets names it now, signed that.

    None if it is no such signature: it may be of a director's key that was in force before.
    """
    try:
        signed = Envelope.from_dict(deepcopy(envelope))  # it takes its signatures apart
        targets.verify_delegate(DIRECTOR, signed.pae(), signed.signatures)
        if signed.payload_type != PAYLOAD_TYPE:
            return None
        return Head(**json.loads(signed.payload))
    except (UnsignedMetadataError, ValueError, KeyError, TypeError, AttributeError):
        return None
