"""`fleetdiff`: the one table of commands, the command line that it makes, and its exit codes.

A row is a usage line and the function that it runs. In a usage line small words are the command;
capitals and `--flags` name `ARGUMENTS`; brackets make one optional, dots allow several. The
function's docstring is the help, with an example. Every expected failure becomes two lines: what
was wrong, what to do.
"""

import argparse
import errno
import inspect
import os
import sys
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from shutil import disk_usage
from tempfile import gettempdir
from typing import NoReturn

import release_manager
from neural_diff.errors import NeuralDiffError
from release_manager import (
    audit,
    ceremony,
    diffs,
    evaluate,
    fleet,
    models,
    plans,
    releases,
    rollouts,
    show,
    signing,
    webhooks,
)
from release_manager.arguments import ARGUMENTS, COMMON
from release_manager.config import Settings, read_settings
from release_manager.errors import Refused
from release_manager.show import Reply
from trust.errors import Untrusted

ROLLOUT = (
    "MODEL RELEASE --cohort [--stages] [--gate] [--on-halt] [--on-network] [--idle] [--charging] "
    "[--window] [--per-minute] [--bytes] [--priority] [--no-new] [--at] [--rollback]"
)
COMMANDS: dict[str, Callable[[argparse.Namespace, Settings], Reply]] = {
    "init [--ceremony] [--dev] [--publish]": ceremony.init,
    "login": fleet.login,
    "status": fleet.status,
    "key make URI [--passphrase]": ceremony.make,
    "key show URI": ceremony.show_key,
    "key rotate ROLE [--add] [--remove] [--threshold]": ceremony.rotate,
    "sign ROLE [--key] [--yes]": signing.sign,
    "draft list": signing.list_drafts,
    "draft drop ROLE": signing.drop,
    "model create MODEL [--add] [--threshold]": models.create,
    "model list": fleet.list_models,
    "model floor MODEL [RELEASE] [--reason] [--lift]": plans.floor,
    "canary publish MODEL FOLDER": models.publish_canary,
    "diff make BASE [TARGET] --out [--buckets] [--result]": diffs.make,
    "diff apply BASE PATCH... --out": diffs.apply,
    "diff squash BASE PATCH... --out": diffs.squash,
    "diff invert FILE PATCH --out": diffs.invert,
    "diff inspect PATCH": diffs.inspect,
    "diff bases --model": plans.bases,
    "patch list MODEL": plans.list_patches,
    "patch withdraw MODEL SOURCE RELEASE --reason": plans.withdraw,
    "patch restore MODEL SOURCE RELEASE": plans.restore,
    "release publish MODEL RELEASE FILE [--patch] [--component] [--hardware] [--format] "
    "[--min-agent] [--rollback-from-here] [--rollback-days] [--no-rollback] [--evaluation] "
    "[--margin] [--accept-worse]": releases.publish,
    "release evaluate BASE TARGET FOLDER --recogniser --out [--margin]": evaluate.evaluate,
    "release list MODEL": fleet.list_releases,
    "release withdraw MODEL RELEASE [--fallback]": releases.withdraw,
    "release retire MODEL RELEASE": releases.retire,
    "release refresh MODEL": releases.refresh,
    "release plan MODEL RELEASE [--from] [--on]": plans.plan,
    "cohort create NAME --model [--device] [--filter]": fleet.create_cohort,
    "cohort list": fleet.list_cohorts,
    "cohort show NAME [--exact]": fleet.show_cohort,
    f"rollout start {ROLLOUT} [--accept-full-downloads]": rollouts.start,
    f"rollout simulate {ROLLOUT}": rollouts.simulate,
    "rollout list [--model] [--state]": fleet.list_rollouts,
    "rollout status ID [--watch]": rollouts.status,
    "rollout decisions ID": rollouts.decisions,
    "rollout explain ID": rollouts.explain,
    "rollout pause ID [--reason]": rollouts.pause,
    "rollout resume ID [--reason] [--accept-full-downloads]": rollouts.resume,
    "rollout change ID [--per-minute] [--bytes] [--at]": rollouts.change,
    "rollout retry ID [--reason]": rollouts.retry,
    "rollout halt ID --reason": rollouts.halt,
    "rollout approve ID [--key] [--yes]": signing.approve,
    "rollout wait ID [--until] [--timeout]": rollouts.wait,
    "device token --model [--uses] [--ttl] [--cohort]": fleet.make_token,
    "device list [--model] [--cohort] [--limit]": fleet.list_devices,
    "device show ID": fleet.show_device,
    "device explain ID [--rollout]": fleet.explain_device,
    "device retry ID": fleet.retry_device,
    "device quarantine ID": fleet.quarantine_device,
    "device readmit ID": fleet.readmit_device,
    "device revoke ID": fleet.revoke_device,
    "token create NAME --scope [--lifetime] [--network]": fleet.create_token,
    "token list": fleet.list_tokens,
    "token revoke ID": fleet.revoke_token,
    "webhook create URL [--event]": webhooks.create,
    "webhook list": webhooks.list_all,
    "webhook delete ID": webhooks.delete,
    "webhook enable ID": webhooks.enable,
    "webhook test ID": webhooks.test,
    "gc plan": fleet.collectable,
    "gc run": fleet.collect,
    "audit list [--limit]": audit.show_log,
    "audit verify": audit.verify,
}
GROUPS = {
    "key": "who signs, and with what",
    "draft": "documents that wait for signatures",
    "model": "lines of speech models",
    "canary": "the recordings that a release is judged by",
    "diff": "make, apply, join, undo and look at diffs on this machine",
    "patch": "the ways between releases, as devices find them",
    "release": "publish versions of a model, and take them back",
    "cohort": "sets of devices",
    "rollout": "bring a release to a cohort in stages",
    "device": "let devices in, and look at them",
    "token": "who may use the admin API, and for what",
    "webhook": "addresses that are told what happens",
    "gc": "artifacts that nothing needs any more",
    "audit": "what was done, and whether all of that is still there",
}
FAILED = 1
INTERRUPTED = 130
_WHAT_TO_DO = {
    "E_FREEZE": "a signed document is too old: sign it again, or check this machine's clock",
    "E_ROLLBACK_META": "the server was set back or hides something: restore its data; if it is a "
    "new one on purpose, remove seen.json from the folder of keys",
    "E_AUDIT": "the server's database was changed or set back: keep a copy and find out; if it is "
    "a new one on purpose, remove audit.json beside the configuration file",
    "E_EQUIVOCATION": "two parties say different things under one name; find out who is right",
}
_DO_NOT_PUBLISH = "do not publish through this server until you know why; nothing was signed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    words = sys.argv[1:] if arguments is None else arguments
    _Parser.as_json = "--json" in words
    args = build_parser().parse_args(words)
    failed = partial(show.failure, as_json=args.json)
    try:
        answer: Reply = args.run(args, read_settings(vars(args), os.environ))
        show.reply(answer, args.json)
        sys.stdout.flush()
        return answer.exit_code
    except Refused as error:
        return failed(str(error), error.advice, error.exit_code, error.problem)
    except Untrusted as error:
        return failed(str(error), _WHAT_TO_DO.get(error.code, _DO_NOT_PUBLISH))
    except NeuralDiffError as error:
        return failed(str(error), "check that these are the files that were meant")
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        where = f"{error.filename}: " if error.filename else ""
        advice = "check the path, its permissions and the free space"
        if error.errno in (errno.ENOSPC, errno.EDQUOT):
            where, advice = _full_disk(error.filename or vars(args).get("out"))
        return failed(f"{where}{error.strerror or error}", advice)
    except KeyboardInterrupt:
        advice = "run the same command again; it goes on where it was left"
        return failed("interrupted", advice, INTERRUPTED)
    return FAILED


def _full_disk(path: str | Path | None) -> tuple[str, str]:
    """Return which disk is full, or else the fuller of those written to, and what to do."""
    folders = [Path(path).absolute().parent] if path else [Path.cwd(), Path(gettempdir())]
    free, where = min((disk_usage(folder).free, str(path or folder)) for folder in folders)
    advice = "make room there or write elsewhere (--out; TMPDIR), then run the same command again"
    return f"{where} ({free} bytes are free on its disk): ", advice


class _Parser(argparse.ArgumentParser):
    as_json = False

    def error(self, message: str) -> NoReturn:
        show.failure(message, f"see {self.prog} --help", 2, as_json=self.as_json)
        raise SystemExit(2)


def build_parser() -> argparse.ArgumentParser:
    """Return the parser; what it parses carries `run`, the command's function."""
    layout, text = argparse.RawDescriptionHelpFormatter, release_manager.__doc__ or ""
    exit_codes = text[text.index("exit codes:") :]
    parser = _Parser(prog="fleetdiff", description=text, formatter_class=layout)
    groups = {"": parser.add_subparsers(title="commands", metavar="COMMAND", required=True)}
    for group, text in GROUPS.items():
        found = groups[""].add_parser(group, help=text, description=f"{group}: {text}")
        groups[group] = found.add_subparsers(title="commands", metavar="COMMAND", required=True)
    for usage, run in COMMANDS.items():
        group, verb = ["", *words_of(usage)][-2:]
        text = inspect.getdoc(run) or ""
        command = groups[group].add_parser(
            verb,
            help=text.partition("\n")[0],
            description=text,
            epilog=exit_codes,
            formatter_class=layout,
        )
        command.set_defaults(run=run)
        for argument in usage.split()[len(words_of(usage)) :]:
            _add_argument(command, argument)
        common = command.add_argument_group("common options")
        for flag, options in COMMON.items():
            common.add_argument(flag, **options)
    return parser


def words_of(usage: str) -> list[str]:
    """Return the words of the command in a usage line."""
    return [word for word in usage.split() if word[0].islower()]


def _add_argument(command: argparse.ArgumentParser, argument: str) -> None:
    name = argument.strip("[].")
    options = dict(ARGUMENTS[name])
    if name.startswith("--"):
        flags = ["-o", name] if name == "--out" else [name]
        command.add_argument(*flags, required=argument == name, **options)
    else:
        count = "+" if argument.endswith("...") else "?" if argument != name else None
        command.add_argument(name.lower(), metavar=name, nargs=count, **options)


if __name__ == "__main__":
    sys.exit(main())
