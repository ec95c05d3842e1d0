"""What a command is, and the command line that a list of them makes.

A command is a function marked with `@command`: its words, an example and its arguments stand
above it, its docstring is its help. Every command shows its example and the exit codes.
"""

import argparse
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

from release_manager import show
from release_manager.arguments import name
from release_manager.config import Secret, Settings
from release_manager.errors import EXIT_CODES
from release_manager.show import Reply

Run = Callable[[argparse.Namespace, Settings], Reply]
Argument = tuple[tuple[str, ...], dict[str, Any]]

GROUPS = {
    "model": "lines of speech models",
    "canary": "the recordings that a release is judged by",
    "diff": "make, apply and look at diffs on this machine",
    "release": "publish versions of a model",
    "cohort": "sets of devices",
    "rollout": "bring a release to a cohort in stages",
    "device": "let devices in, and look at them",
}


@dataclass(frozen=True)
class Command:
    """A function of the program, and how it is called."""

    words: str
    example: str
    arguments: tuple[Argument, ...]
    run: Run


def command(words: str, example: str, *arguments: Argument) -> Callable[[Run], Command]:
    """Make a command of the function below."""
    return lambda run: Command(words, example, arguments, run)


def arg(*flags: str, **options: Any) -> Argument:
    """Return an argument, in the words of `argparse.add_argument`."""
    return flags, options


def many(flag: str, metavar: str, kind: Callable[[str], Any], text: str) -> Argument:
    """Return an option that may be given several times."""
    text = f"{text}; may be repeated"
    return arg(flag, action="append", default=[], metavar=metavar, type=kind, help=text)


MODEL = arg("model", type=name, help="name of the model")
RELEASE = arg("release", type=name, help="name of the release, for example r2")
OF_MODEL = arg("--model", type=name, required=True, help="whose devices")
ONLY_MODEL = arg("--model", type=name, help="only of this model")
COMMON = (
    arg("--server", metavar="URL", help="address of the server"),
    arg("--token", type=Secret, help="API token"),
    arg("--keys", type=Path, metavar="DIR", help="folder of keys"),
    arg("--json", action="store_true", help="print one JSON document"),
)


class _Parser(argparse.ArgumentParser):
    def error(self, message: str) -> NoReturn:
        show.failure(message, f"see {self.prog} --help")
        raise SystemExit(2)


def build_parser(commands: Iterable[Command]) -> argparse.ArgumentParser:
    """Return the parser; what it parses carries `run`, the command's function."""
    layout = argparse.RawDescriptionHelpFormatter
    parser = _Parser(
        prog="fleetdiff",
        description="Publishes speech models as small signed diffs and rolls them out to devices.",
        epilog="first steps:\n  fleetdiff init --dev\n"
        "  fleetdiff login --server URL --token -\n  fleetdiff init --publish\n"
        "  fleetdiff model create NAME\n  fleetdiff release publish NAME r1 FILE\n\n" + EXIT_CODES,
        formatter_class=layout,
    )
    groups = {"": parser.add_subparsers(title="commands", metavar="COMMAND", required=True)}
    for group, text in GROUPS.items():
        found = groups[""].add_parser(group, help=text, description=f"{group}: {text}")
        groups[group] = found.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for each in commands:
        group, _, verb = each.words.rpartition(" ")
        text = (each.run.__doc__ or "").strip()
        example = "\n".join(f"  fleetdiff {each.words} {e}" for e in each.example.splitlines())
        epilog = f"example:\n{example or f'  fleetdiff {each.words}'}\n\n{EXIT_CODES}"
        sub = groups[group].add_parser(
            verb, help=text, description=text, epilog=epilog, formatter_class=layout
        )
        sub.set_defaults(run=each.run)
        for flags, options in each.arguments:
            sub.add_argument(*flags, **options)
        common = sub.add_argument_group("common options")
        for flags, options in COMMON:
            common.add_argument(*flags, **options)
    return parser
