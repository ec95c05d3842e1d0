"""Every refusal of the service; the docstring is the title that people read.

No HTTP here: a refusal names its kind, and the edge maps the kind to a status.
"""

from typing import ClassVar


class Refusal(Exception):
    """The request was refused."""

    kind: ClassVar[str] = "INVALID"

    def __init__(self, detail: str, **members: object) -> None:
        super().__init__(detail)
        self.detail = detail
        self.members = members


class NotFound(Refusal):
    """There is no such thing."""

    kind = "NOT_FOUND"


class AlreadyExists(Refusal):
    """The name is taken by something else."""

    kind = "CONFLICT"


class WrongState(Refusal):
    """This cannot be done in the present state."""

    kind = "CONFLICT"


class LostRace(Refusal):
    """Another request was faster."""

    kind = "CONFLICT"


class NotTheNextVersion(Refusal):
    """The document does not follow the version that is current."""

    kind = "CONFLICT"


class NotAcceptable(Refusal):
    """The signed document breaks a rule."""

    kind = "INVALID"


class MissingArtifact(Refusal):
    """A signed file was not uploaded, or has another size."""

    kind = "INVALID"


class InvalidRequest(Refusal):
    """The request makes no sense."""

    kind = "INVALID"


class CountsMismatch(Refusal):
    """The report does not fit the signed canary set or the deployment."""

    kind = "INVALID"


class ReportClosed(Refusal):
    """The rollout takes no more reports."""

    kind = "CONFLICT"


class Unauthorized(Refusal):
    """A valid credential is required."""

    kind = "UNAUTHORIZED"


class Forbidden(Refusal):
    """The credential does not allow this."""

    kind = "FORBIDDEN"


class SerialTaken(Refusal):
    """A device with this serial number is already enrolled."""

    kind = "CONFLICT"


class TooLarge(Refusal):
    """The body is larger than allowed."""

    kind = "TOO_LARGE"


class LengthRequired(Refusal):
    """The length of the body must be declared."""

    kind = "LENGTH_REQUIRED"


class DigestMismatch(Refusal):
    """The body is not what its name says."""

    kind = "INVALID"
