"""The two trunks of trouble on a device, and what a person at it must mend.

`Rejected` is permanent: the same bytes give the same answer, so it is reported with its code and
the running model stays. `OSError`, with `Unavailable` for the network, is transient: the same
state is tried again after a delay. Nothing else is caught; a bug ends the process and the journal
resumes it.

Codes are those of `trust.errors` and: E_PLAN (a plan that contradicts itself), E_NO_PIPELINE (every
way was tried), E_BASE (the model file is not what was promised), E_PATCH, E_RESULT, E_SPACE,
E_HTTP, E_REDIRECT, E_CANARY, E_ENGINE, E_SLOW (a drip, an engine), E_GATE, E_STATE_LOOP.
"""

from dataclasses import dataclass


class Rejected(Exception):
    """Something that must not be acted on, however often it is tried.

    Attributes:
        code: what was wrong, for machines.
        message: what was wrong, where, for people.
        deployment: the attempt it belongs to, if that is known.
        about: the answer it was found in, so that one answer is reported once.
    """

    def __init__(self, code: str, message: str, deployment: str = "", about: str = "") -> None:
        super().__init__(f"{code}: {message}")
        self.code = code
        self.message = message
        self.deployment = deployment
        self.about = about


@dataclass(eq=False)
class Unavailable(OSError):
    """A server that cannot be reached or does not answer as promised; try later.

    Attributes:
        status: the HTTP status, or 0 if there was none.
        code: what was wrong, if it looks like an attack and the server should hear of it.
        poll_after_s: when the server wants to be asked again, if it said so.
        refused: the server itself says that it does not know this credential.
        later_s: how long it wants to be left alone at least.
    """

    message: str
    status: int = 0
    poll_after_s: float | None = None
    code: str = ""
    refused: bool = False
    later_s: float = 0.0

    def __post_init__(self) -> None:
        super().__init__(self.message)


class Misconfigured(ValueError):
    """A device that a person must set up first: configuration, enrollment, damaged state."""


class NothingToDo(Exception):
    """There is no earlier release to go back to."""


class Busy(OSError):
    """Another agent works in this state folder, or the device has other things to do; try later."""


def one_line(text: str) -> str:
    """Return a stranger's words without anything that a terminal or a log would obey."""
    return "".join(letter if letter.isprintable() else " " for letter in text)
