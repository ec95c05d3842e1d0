"""What people approve: the whole plan of one rollout, signed with a key of their own.

Who can write to the server's database can write that somebody approved; nobody but that person
can sign it. A signature is on the plan as it was shown, so it is none on any other.
"""

import json
from collections.abc import Mapping
from hashlib import sha256
from typing import Any

from securesystemslib.dsse import Envelope

PAYLOAD_TYPE = "application/vnd.fleetdiff.approval+json"


def approval(plan: Mapping[str, Any]) -> Envelope:
    """Return the DSSE envelope of a plan, for its approvers to sign."""
    payload = json.dumps(plan, sort_keys=True, separators=(",", ":")).encode()
    return Envelope(payload, PAYLOAD_TYPE, {})


def plan_digest(plan: Mapping[str, Any]) -> str:
    """Return the digest by which people say which plan they saw."""
    return sha256(approval(plan).payload).hexdigest()
