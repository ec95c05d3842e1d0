"""The one error of the trust layer.

Trust never says "maybe": a document is either verified or it is `Untrusted`, for a reason
that has a code. The codes are those of the agent's order of checks and are reported upstream,
so that an attack has the same name on the device, in the event log and in the tests:

    E_SIG            a signature, a threshold, or a key that counts twice
    E_ROLLBACK_META  metadata older than what was seen before
    E_FREEZE         metadata or order past its expiry
    E_MIX            documents that do not belong together
    E_SIZE           over a limit
    E_HASH           bytes that are not the signed ones
    E_CLOCK          dates that no honest publisher writes
    E_AUD            an order for somebody else
    E_REPLAY         an order that was superseded, or two orders with one number
    E_NOT_RELEASED   nothing signed offline says this may be installed
    E_WITHDRAWN      signed as withdrawn or retired
    E_DOWNGRADE      back, without a signed edge
    E_INCOMPAT       other hardware or format, or a newer agent is asked for
    E_EQUIVOCATION   one release id, two contents
    E_AUDIT          the audit log is not what was written
"""

CODES = frozenset(
    "E_SIG E_ROLLBACK_META E_FREEZE E_MIX E_SIZE E_HASH E_CLOCK E_AUD E_REPLAY E_NOT_RELEASED "
    "E_WITHDRAWN E_DOWNGRADE E_INCOMPAT E_EQUIVOCATION E_AUDIT".split()
)


class Untrusted(Exception):
    """A document or transition that must not be acted on.

    Attributes:
        code: one of `CODES`.
    """

    def __init__(self, code: str, message: str) -> None:
        if code not in CODES:
            raise ValueError(f"unknown trust code {code}")
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message


def require(holds: bool, code: str, message: str) -> None:
    """Raise `Untrusted` unless a rule holds."""
    if not holds:
        raise Untrusted(code, message)
