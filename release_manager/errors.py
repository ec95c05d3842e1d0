"""How a command ends when it does not succeed: what was wrong, what to do, which exit code.

A script can tell the five ends apart. Everything else that is raised is a bug and shows itself
as one.
"""

from collections.abc import Mapping
from typing import Any

EXIT_CODES = """exit codes:
  0   done
  1   refused by the server, or a check failed
  2   wrong usage or configuration
  3   the rollout ended otherwise (for example halted)
  4   the time was over first
  75  the server could not be reached; try again"""


class Stop(Exception):
    """A command cannot go on.

    Attributes:
        advice: one line: what the user can do about it.
        exit_code: of the process.
    """

    exit_code = 1

    def __init__(self, message: str, advice: str) -> None:
        super().__init__(message)
        self.advice = advice


class Refused(Stop):
    """The server said no, or a check on this side failed.

    Attributes:
        status: the HTTP status, or 0 for a check on this side.
    """

    def __init__(self, message: str, advice: str, status: int = 0) -> None:
        super().__init__(message, advice)
        self.status = status


class Usage(Stop):
    """The command or the configuration is wrong."""

    exit_code = 2


class Unreachable(Stop):
    """The server did not answer, or not in time; transient."""

    exit_code = 75


_ADVICE = {
    401: "log in again: fleetdiff login --server URL --token TOKEN",
    403: "use a token with the scope that the message names",
    404: "check the name; the list commands show what is there",
    409: "look at the present state first, then run the command again if it still makes sense",
    413: "publish a smaller file, or raise the server's limit",
}


def refusal(status: int, problem: Mapping[str, Any]) -> Refused:
    """Return the refusal that a problem document (RFC 9457) describes."""
    title = str(problem.get("title") or f"the server answered {status}")
    detail = problem.get("detail")
    known = {"type", "title", "status", "detail", "instance"}
    plain = {k: v for k, v in problem.items() if k not in known and not isinstance(v, list | dict)}
    fields = ", ".join(f"{name}={value}" for name, value in plain.items())
    message = f"{title}: {detail}" if detail else title
    advice = _ADVICE.get(status, "correct what the message names, then run the command again")
    return Refused(f"{message} ({fields})" if fields else message, advice, status)
