"""The command line of the device agent.

One command a job; `run` is for a service manager, `once` for a timer. Logs are JSON lines on
stderr, what a command answers is on stdout.
"""

import argparse
import json
import logging
import signal
import sys
import threading
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agent import agent
from device_agent.agent import NothingToDo
from device_agent.config import Config, load_config
from device_agent.errors import Busy, Misconfigured, Rejected

OK, REFUSED = 0, 1
ENDS = {Rejected: REFUSED, Misconfigured: 2, NothingToDo: 3, Busy: 75, OSError: 75}
EXIT_CODES = (
    "exit codes: 0 done or nothing to do; 1 refused or failed; 2 usage, configuration or damaged "
    "state; 3 nothing to roll back to; 75 transient: no answer, no space, another agent; try later"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    _log_to_stderr(options.verbose)
    try:
        config = load_config(options.config)
        return int(options.command(config, options))
    except (Rejected, Misconfigured, NothingToDo, Busy, OSError) as error:
        print(f"fleetdiff-agent: {error}", file=sys.stderr)
        return next(code for kind, code in ENDS.items() if isinstance(error, kind))


def _run(config: Config, options: argparse.Namespace) -> int:
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with agent.open_device(config) as device:
        agent.run(device, stop)
    return OK


def _once(config: Config, options: argparse.Namespace) -> int:
    with agent.open_device(config) as device:
        outcome = agent.run_once(device)
        running = device.slots.active_sha256(fresh=True)
    answer = {
        "outcome": outcome.kind if outcome else "nothing to do",
        "reason": outcome.reason if outcome else "",
        "detail": outcome.detail if outcome else "",
        "running_sha256": running,
    }
    _answer(answer, options.json)
    return REFUSED if outcome and outcome.kind in ("refused", "failed") else OK


def _enroll(config: Config, options: argparse.Namespace) -> int:
    if options.model_file is not None and not options.model_file.exists():
        raise Misconfigured(f"--model-file {options.model_file} does not exist")
    answer = agent.enroll(config, options.token, options.model_file)
    _answer(answer, options.json)
    if not answer["root_is_the_servers"]:
        print("the server's root is not the pinned one: updates may be refused", file=sys.stderr)
    return OK


def _status(config: Config, options: argparse.Namespace) -> int:
    _answer(agent.status(config), options.json)
    return OK


def _rollback(config: Config, options: argparse.Namespace) -> int:
    with agent.open_device(config) as device:
        answer = agent.roll_back(device)
    _answer(answer, options.json)
    return OK


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetdiff-agent",
        description="keeps a device's speech model up to date, safely",
        epilog=EXIT_CODES,
    )
    common = argparse.ArgumentParser(add_help=False)
    common.add_argument("--config", type=Path, default=Path("/etc/fleetdiff/agent.toml"))
    common.add_argument("--json", action="store_true", help="answer with one JSON object")
    common.add_argument("--verbose", action="store_true", help="log details, too")
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    for name, function, says in [
        ("enroll", _enroll, "make this device known to its server"),
        ("run", _run, "keep the model up to date until SIGTERM"),
        ("once", _once, "check in once and do what follows"),
        ("status", _status, "show what runs and what is under way"),
        ("rollback", _rollback, "go back to the earlier release, if the family signs that"),
    ]:
        command = commands.add_parser(name, help=says, parents=[common], epilog=EXIT_CODES)
        command.set_defaults(command=function)
        if name == "enroll":
            command.add_argument("--token", required=True, help="an enrollment token")
            command.add_argument("--model-file", type=Path, help="the model it was born with")
    return parser


def _answer(answer: dict[str, Any], as_json: bool) -> None:
    if as_json:
        print(json.dumps(answer))
        return
    for name, value in answer.items():
        print(f"{name.replace('_', ' ')}: {value}")


class _JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        at = datetime.fromtimestamp(record.created, UTC).isoformat(timespec="milliseconds")
        line = {"at": at, "level": record.levelname, "by": record.name, "says": record.getMessage()}
        if record.exc_info:
            line["trace"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _log_to_stderr(verbose: bool) -> None:
    handler = logging.StreamHandler()
    handler.setFormatter(_JsonLines())
    logging.basicConfig(level=logging.DEBUG if verbose else logging.INFO, handlers=[handler])


if __name__ == "__main__":
    sys.exit(main())
