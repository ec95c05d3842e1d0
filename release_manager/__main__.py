"""`fleetdiff`: parse, dispatch, and turn every expected failure into two lines and an exit code."""

import os
import sys
from collections.abc import Sequence

from neural_diff.errors import NeuralDiffError
from release_manager import devices, diffs, first_steps, models, releases, rollouts, show
from release_manager.command import build_parser
from release_manager.config import read_settings
from release_manager.errors import Stop
from trust.errors import Untrusted

COMMANDS = (
    *(first_steps.init, first_steps.login, first_steps.status, models.create, models.model_list),
    *(models.canary_publish, diffs.make, diffs.apply, diffs.inspect),
    *(releases.release_publish, releases.release_list),
    *(devices.cohort_create, devices.cohort_list, devices.cohort_show),
    *(rollouts.start, rollouts.rollout_list, rollouts.status, rollouts.pause, rollouts.resume),
    *(rollouts.halt, rollouts.wait_for, devices.token, devices.device_list, devices.device_show),
)
FAILED = 1
INTERRUPTED = 130
_WHAT_TO_DO = {
    "E_FREEZE": "a signed document is too old: sign it again, or check this machine's clock",
    "E_ROLLBACK_META": "the server was set back or hides something: restore its data; if it is a "
    "new one on purpose, remove seen.json from the folder of keys",
    "E_EQUIVOCATION": "two parties say different things under one name; find out who is right",
}
_DO_NOT_PUBLISH = "do not publish through this server until you know why; nothing was signed"


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command and return the exit code."""
    args = build_parser(COMMANDS).parse_args(arguments)
    try:
        settings = read_settings(vars(args), os.environ)
        answer = args.run(args, settings)
        show.reply(answer, args.json)
        sys.stdout.flush()
        return int(answer.exit_code)
    except Stop as error:
        show.failure(str(error), error.advice)
        return error.exit_code
    except Untrusted as error:
        show.failure(str(error), _WHAT_TO_DO.get(error.code, _DO_NOT_PUBLISH))
    except NeuralDiffError as error:
        show.failure(str(error), "check that these are the files that were meant")
    except BrokenPipeError:
        # The reader of our output left; there is nobody to tell.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
    except OSError as error:
        show.failure(_sentence(error), "check the path, its permissions and the free space")
    except KeyboardInterrupt:
        show.failure("interrupted", "run the same command again; it goes on where it was left")
        return INTERRUPTED
    return FAILED


def _sentence(error: OSError) -> str:
    where = f"{error.filename}: " if error.filename else ""
    return f"{where}{error.strerror or error}"


if __name__ == "__main__":
    sys.exit(main())
