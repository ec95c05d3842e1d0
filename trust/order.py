"""Orders: what one device is told, signed online by the director.

A DSSE envelope (https://github.com/secure-systems-lab/dsse) around a small JSON payload. An
order alone installs nothing: it can only name a release that the model's family signed offline.
"""

import json
import re
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

from securesystemslib.dsse import Envelope

from trust.errors import Untrusted
from trust.roles import NAME, SHA256, release_path

PAYLOAD_TYPE = "application/vnd.fleetdiff.order+json"
ORDER_BYTES_MAX = 8 * 1024
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")
_FIELDS = frozenset("v aud seq issued expires model release target sha256 hold deployment".split())


@dataclass(frozen=True)
class Order:
    """What a device is told to run.

    Attributes:
        seq: strictly increasing per device; an older one is a replay.
        hold: stop here: nothing may be installed on the strength of this order.
        deployment: the server's name for this attempt, echoed in reports.
    """

    device: str
    seq: int
    issued: datetime
    expires: datetime
    model: str
    release: str
    sha256: str
    hold: bool
    deployment: str

    @property
    def target(self) -> str:
        """The TUF target path that the order points at."""
        return release_path(self.model, self.release)


def order_payload(order: Order) -> bytes:
    """Return the canonical payload bytes of an order."""
    document = {
        "v": 1,
        "aud": {"device": order.device},
        "seq": order.seq,
        "issued": write_time(order.issued),
        "expires": write_time(order.expires),
        "model": order.model,
        "release": order.release,
        "target": order.target,
        "sha256": order.sha256,
        "hold": order.hold,
        "deployment": order.deployment,
    }
    return json.dumps(document, sort_keys=True, separators=(",", ":")).encode()


def read_envelope(raw: bytes) -> Envelope:
    """Return the DSSE envelope in these bytes, not yet verified.

    Raises:
        Untrusted: E_SIZE over the limit, E_SIG if it is no envelope of an order.
    """
    if len(raw) > ORDER_BYTES_MAX:
        raise Untrusted("E_SIZE", f"an order of {len(raw)} bytes; the limit is {ORDER_BYTES_MAX}")
    try:
        envelope: Envelope = Envelope.from_dict(json.loads(raw))
    except (ValueError, KeyError, TypeError, AttributeError, RecursionError) as error:
        raise Untrusted("E_SIG", f"the order is no DSSE envelope: {error}") from error
    if envelope.payload_type != PAYLOAD_TYPE:
        raise Untrusted("E_SIG", f"payload type {envelope.payload_type!r} is not an order's")
    return envelope


def read_order(payload: bytes) -> Order:
    """Return the order in a verified payload; strict, so that two readers never differ.

    Raises:
        Untrusted: E_SIG if the payload is not exactly an order.
    """
    try:
        order = _order_from(json.loads(payload))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Untrusted("E_SIG", f"the signed payload is no order: {error}") from error
    if order_payload(order) != payload:
        raise Untrusted("E_SIG", "the signed payload is not in canonical form")
    return order


def _order_from(document: Any) -> Order:
    if not isinstance(document, dict) or set(document) != _FIELDS:
        raise ValueError("missing or unknown fields")
    texts = [document[name] for name in ("model", "release", "sha256", "deployment")]
    if not all(isinstance(text, str) for text in texts) or not isinstance(document["hold"], bool):
        raise ValueError("a field has the wrong type")
    if not (NAME.match(texts[0]) and NAME.match(texts[1]) and SHA256.match(texts[2])):
        raise ValueError("a name or digest is malformed")
    seq = document["seq"]
    if not isinstance(seq, int) or isinstance(seq, bool) or not 1 <= seq < 1 << 53:
        raise ValueError("seq is not a positive integer")
    return Order(
        device=str(document["aud"]["device"]),
        seq=seq,
        issued=read_time(document["issued"]),
        expires=read_time(document["expires"]),
        model=texts[0],
        release=texts[1],
        sha256=texts[2],
        hold=document["hold"],
        deployment=texts[3],
    )


def write_time(moment: datetime) -> str:
    """Return a UTC time as signed documents write it, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str) -> datetime:
    """Return the UTC time that `write_time` wrote; ValueError for any other form."""
    if not _TIME.match(text):
        raise ValueError(f"{text!r} is not a UTC time")
    return datetime.strptime(text, "%Y-%m-%dT%H:%M:%S%z")
