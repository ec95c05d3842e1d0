"""How a command ends when it does not succeed: what was wrong, what to do, which exit code.

A script can tell the ends apart (the list is in the help). Everything else that is raised is a bug
and shows itself as one.
"""

from typing import Any


class Refused(Exception):
    """The server said no, or a check on this side failed.

    Attributes:
        advice: one line: what the user can do about it.
        status: the HTTP status, or 0 for a check on this side.
        exit_code: of the process.
        problem: the problem document (RFC 9457) of the server that refused, if it sent one.
    """

    exit_code = 1

    def __init__(self, message: str, advice: str, status: int = 0, problem: Any = None) -> None:
        super().__init__(message)
        self.problem = problem
        self.advice = advice
        self.status = status


class Usage(Refused):
    """The command or the configuration is wrong."""

    exit_code = 2


class Unreachable(Refused):
    """The server did not answer, or not in time; transient."""

    exit_code = 75
