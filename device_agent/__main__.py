"""The command line of the device agent.

One command a job; `run` is for a service manager, `once` for a timer. Logs are JSON lines on
stderr, what a command answers is on stdout.
"""

import argparse
import json
import logging
import os
import signal
import sys
import threading
from dataclasses import replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from device_agent import agent
from device_agent.config import Config, load_config
from device_agent.disk import FULL, tell_if_full
from device_agent.errors import Misconfigured, NothingToDo, Rejected
from device_agent.states import Reporting
from device_agent.status import status
from trust.roles import NAME

ENDS: dict[type[Exception], int] = {Rejected: 1, Misconfigured: 2, NothingToDo: 3, OSError: 75}
EXIT_CODES = (
    "exit codes: 0 done or nothing to do; 1 refused or failed; 2 usage, configuration or damaged "
    "state; 3 nothing to roll back to; 75 transient: no answer, no space, another agent: later; "
    "with --json an error is one JSON object, the last line of stderr: detail and exit"
)


def main(arguments: list[str] | None = None) -> int:
    """Run one command and return its exit code."""
    options = _parser().parse_args(arguments)
    _log_to_stderr(options.verbose)
    try:
        config = load_config(options.config)
        answer = options.command(config, options)
    except tuple(ENDS) as error:
        if isinstance(error, OSError) and error.errno in FULL:
            tell_if_full(error, config.state_dir)
        code = next(code for kind, code in ENDS.items() if isinstance(error, kind))
        told = json.dumps({"detail": str(error), "exit": code})
        print(told if options.json else f"fleetdiff-agent: {error}", file=sys.stderr)
        return code
    texts = {name.replace("_", " "): _text(value) for name, value in answer.items()}
    lines = [f"{name}: {value}" for name, value in texts.items() if value]
    if options.json and answer:
        lines = [json.dumps(answer)]
    try:
        print("".join(f"{line}\n" for line in lines), end="", flush=True)
    except BrokenPipeError:
        # Who reads the first lines only, as head does, has left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    return 1 if answer.get("outcome") in ("refused", "failed") else 0


def _run(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    stop = threading.Event()
    for name in (signal.SIGTERM, signal.SIGINT):
        signal.signal(name, lambda *_: stop.set())
    with agent.open_device(config) as device:
        agent.run(device, stop)
    return {}


def _once(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    with agent.open_device(config) as device:
        none = Reporting("", "", "nothing to do", "", "")
        done = agent.run_once(device) or replace(none, reason=device.journal.memory.hold)
        running = device.slots.active_sha256(fresh=True)
    said = {"outcome": done.kind, "reason": done.reason, "detail": done.detail}
    return {**said, "running_sha256": running}


def _enroll(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    for name, file in (("--model-file", options.model_file), *options.component):
        if file is not None and not file.exists():
            raise Misconfigured(f"{name} {file} does not exist")
    names = dict(options.component)
    if len(names) < len(options.component) or (names and options.model_file is None):
        raise Misconfigured("each --component has a name of its own, and goes with a --model-file")
    born = options.model_file, options.component
    answer = agent.enroll(config, options.token, *born, signature=options.signature)
    if not answer["root_is_the_servers"]:
        print("the server's root is not the pinned one: updates may be refused", file=sys.stderr)
    return answer


def _status(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    return status(config)


def _rollback(config: Config, options: argparse.Namespace) -> dict[str, Any]:
    with agent.open_device(config) as device:
        return agent.roll_back(device)


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
    for function, says in [
        (_enroll, "make this device known to its server"),
        (_run, "keep the model up to date until SIGTERM"),
        (_once, "check in once and do what follows"),
        (_status, "show what runs and what is under way"),
        (_rollback, "go back to the earlier release, if the family signs that"),
    ]:
        name = function.__name__[1:]
        command = commands.add_parser(name, help=says, parents=[common], epilog=EXIT_CODES)
        command.set_defaults(command=function)
        if function is _enroll:
            command.add_argument("--token", required=True, help="an enrollment token")
            command.add_argument("--model-file", type=Path, help="the model it was born with")
            says = "sign each request with a key of its own (takes fleetdiff[signature])"
            command.add_argument("--signature", action="store_true", help=says)
            says = "what goes with that model, as NAME=FILE; may be repeated"
            many: dict[str, Any] = {"type": _component, "action": "append", "default": []}
            command.add_argument("--component", help=says, **many)
    return parser


def _component(text: str) -> tuple[str, Path]:
    name, _, file = text.partition("=")
    if not NAME.match(name) or not file:
        raise argparse.ArgumentTypeError(f"{text!r} is not NAME=FILE, as lm.bin=./lm.bin")
    return name, Path(file)


def _text(value: Any) -> str:
    """Return a value as people read it; what is empty says nothing."""
    if isinstance(value, bool):
        return "yes" if value else "no"
    if isinstance(value, dict):
        return " ".join(f"{k}={text}" for k, v in value.items() if (text := _text(v)))
    if isinstance(value, list):
        return ", ".join(map(_text, value))
    return "" if value is None else str(value)


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
