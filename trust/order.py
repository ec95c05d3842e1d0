"""Orders: what one device is told, signed online by the director.

A DSSE envelope (https://github.com/secure-systems-lab/dsse) around a small JSON payload. An
order alone installs nothing: it can only name a release that the model's family signed offline.
"""

import json
import re
from dataclasses import dataclass, field
from datetime import UTC, datetime

from securesystemslib.dsse import Envelope

from trust import fields
from trust.errors import Untrusted, require
from trust.fields import signed
from trust.roles import release_path

PAYLOAD_TYPE = "application/vnd.fleetdiff.order+json"
ORDER_BYTES_MAX = 8 * 1024
_TIME = re.compile(r"\d{4}-\d\d-\d\dT\d\d:\d\d:\d\dZ\Z")


def write_time(moment: datetime) -> str:
    """Return a UTC time as signed documents write it, to the second."""
    return moment.astimezone(UTC).strftime("%Y-%m-%dT%H:%M:%SZ")


def read_time(text: str) -> datetime:
    """Return the UTC time that `write_time` wrote; ValueError for any other form."""
    return datetime.strptime(fields.text(text, _TIME, "a UTC time"), "%Y-%m-%dT%H:%M:%S%z")


@dataclass(frozen=True)
class Order:
    """What a device is told to run.

    Attributes:
        seq: strictly increasing per device; an older one is a replay.
        root, timestamp: the versions it was signed beside; whoever is sent older ones is cut off.
        hold: stop here: nothing may be installed on the strength of this order.
        deployment: the server's name for this attempt, echoed in reports.
    """

    device: str = field(metadata=signed(lambda aud: fields.text(aud["device"]), "aud"))
    seq: int = field(metadata=signed(fields.count))
    issued: datetime = field(metadata=signed(read_time))
    expires: datetime = field(metadata=signed(read_time))
    model: str = field(metadata=signed(fields.name))
    release: str = field(metadata=signed(fields.name))
    sha256: str = field(metadata=signed(fields.digest))
    root: int = field(metadata=signed(fields.count))
    timestamp: int = field(metadata=signed(fields.count))
    hold: bool = field(metadata=signed(fields.switch))
    deployment: str = field(metadata=signed(fields.text))

    @property
    def target(self) -> str:
        """The TUF target path that the order points at."""
        return release_path(self.model, self.release)


def order_payload(order: Order) -> bytes:
    """Return the canonical payload bytes of an order."""
    document = vars(order) | {
        "v": 1,
        "aud": {"device": order.device},
        "issued": write_time(order.issued),
        "expires": write_time(order.expires),
        "target": order.target,
    }
    del document["device"]
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
    kind = envelope.payload_type
    require(kind == PAYLOAD_TYPE, "E_SIG", f"payload type {kind!r} is not an order's")
    return envelope


def read_order(payload: bytes) -> Order:
    """Return the order in a verified payload; strict, so that two readers never differ.

    Raises:
        Untrusted: E_SIG if the payload is not exactly an order.
    """
    try:
        order = Order(**fields.read(Order, json.loads(payload)))
    except (ValueError, KeyError, TypeError, RecursionError) as error:
        raise Untrusted("E_SIG", f"the signed payload is no order: {error}") from error
    if order_payload(order) != payload:
        raise Untrusted("E_SIG", "the signed payload has unknown fields or is not canonical")
    return order
