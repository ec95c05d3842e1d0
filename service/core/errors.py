"""Every refusal of the service; the docstring is the title that people read.

No HTTP here: a refusal names its kind, and the edge maps the kind to a status.
"""

from typing import ClassVar, TypeVar

Row = TypeVar("Row")


class Refusal(Exception):
    """The request was refused."""

    kind: ClassVar[str] = "INVALID"
    audited: ClassVar[bool] = False  # who tries the doors is written down

    def __init__(self, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members
        self.noted: dict[str, str] = {}  # for the audit log, not for whom is refused


class Conflict(Refusal):
    """It does not fit what is there; refusals of this kind say more."""

    kind = "CONFLICT"


class NotFound(Refusal):
    """There is no such thing."""

    kind = "NOT_FOUND"


class AlreadyExists(Conflict):
    """The name is taken by something else."""


class WrongState(Conflict):
    """This cannot be done in the present state."""


class StillHeld(Conflict):
    """Something that no person's word ends holds the rollout."""


class BeyondLimits(Conflict):
    """The rollout goes further or faster than the limits of this installation allow."""


class NotAsSeen(Refusal):
    """It changed since the caller looked."""

    kind = "CHANGED"


class KeyReused(Refusal):
    """The idempotency key belongs to another request."""


class AnswerShownOnce(Conflict):
    """This was done before, and its answer held a secret that is shown once."""


class LostRace(Conflict):
    """Another request was faster."""


class NotTheNextVersion(Conflict):
    """The document does not follow the version that is current."""


class SerialTaken(Conflict):
    """A device with this serial number is already enrolled."""

    audited = True


class CannotVerify(Conflict):
    """This device could not verify what this fleet publishes."""


class PatchesMissing(Conflict):
    """Devices would have to fetch the full file."""


class NoEdge(Conflict):
    """The family signs no such way back."""


class ReportClosed(Conflict):
    """The rollout takes no more reports."""


class NotAcceptable(Refusal):
    """The signed document breaks a rule."""


class NotApproved(Refusal):
    """This is no approval by somebody who may give one."""


class MissingArtifact(Refusal):
    """A signed file was not uploaded, or has another size."""


class BadPatch(Refusal):
    """A patch, applied to its base, does not make the release that it is signed for."""


class InvalidRequest(Refusal):
    """The request makes no sense."""


class CountsMismatch(Refusal):
    """The report does not fit the signed canary set or the deployment."""


class ImpossibleCounts(Refusal):
    """The counts of the report cannot be true of any model."""


class DigestMismatch(Refusal):
    """The body is not what its name says."""


class Unauthorized(Refusal):
    """A valid credential is required."""

    kind, audited = "UNAUTHORIZED", True


class Forbidden(Refusal):
    """The credential does not allow this."""

    kind, audited = "FORBIDDEN", True


class IdentityUnavailable(Refusal):
    """The identity provider does not answer."""

    kind = "UNAVAILABLE"


class TooManyRequests(Refusal):
    """There were too many requests in a short time."""

    kind = "TOO_MANY"


class Overloaded(Refusal):
    """The server has more to do than it can at once."""

    kind = "UNAVAILABLE"


class TooLarge(Refusal):
    """The body is larger than allowed."""

    kind = "TOO_LARGE"


class TooMuchUnused(TooLarge):
    """Too much of what this caller uploaded is in no release yet."""


class DayUsedUp(TooManyRequests):
    """This caller has uploaded all that it may within a day."""


class TooSlow(Refusal):
    """The body did not arrive in time."""

    kind = "TOO_SLOW"


class LengthRequired(Refusal):
    """The length of the body must be declared."""

    kind = "LENGTH_REQUIRED"


def found(row: Row | None, what: str) -> Row:
    """Return what was looked for, or refuse."""
    if row is None:
        raise NotFound(f"there is no {what}")
    return row
