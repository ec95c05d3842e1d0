"""`fleetdiff-server`: serve, publish, migrate, verify-sums, token, openapi.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings.
"""

import argparse
import json
import logging
import os
import signal
import sys
import textwrap
from collections.abc import Sequence
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import uvicorn
from alembic.util import CommandError
from pydantic import ValidationError
from pydantic.fields import FieldInfo
from pydantic_core import PydanticUndefined
from sqlalchemy.exc import SQLAlchemyError
from starlette.types import ASGIApp

from service import logs
from service.api.contract import documents
from service.app import create_app
from service.connections import impatient
from service.core import access
from service.core.errors import Refusal
from service.db import queries
from service.db.migrate import migrate
from service.db.session import Database
from service.engine.tick import verify
from service.settings import FromEnviron, PublisherSettings, Settings
from service.signing.keys import Publisher
from service.signing.publisher import work

logger = logging.getLogger(__name__)
FLAGS = tuple(
    "host port publisher online_keys record rollout_limits status_page metrics tick_s "
    "poll_after_s".split()
)
PUBLISHER_FLAGS = tuple(
    "online_keys root record rollout_limits orders_per_hour_max round_s".split()
)
ENDING = (signal.SIGTERM, signal.SIGINT)
EPILOG = """\
Settings come from FLEETDIFF_* variables; flags win. Two of them choose where things lie:
  FLEETDIFF_DATABASE   sqlite:///file or postgresql://user:password@host/name
  FLEETDIFF_ARTIFACTS  a folder, or s3://bucket/prefix?endpoint=URL&region=NAME

example: a server of your own on port 8080, with everything in one folder
  fleetdiff-server token --data ./data --name me
  fleetdiff-server serve --data ./data --online-keys fleetdiff-keys/online

example: keys in a process of their own, which the server cannot reach
  fleetdiff-server serve --data ./data --publisher external
  fleetdiff-server publish --data ./data --online-keys fleetdiff-keys/online \\
      --root fleetdiff-keys/root.json --record ./publisher.db

exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings
"""


def main(arguments: list[str] | None = None) -> int:
    """Run the command and return its exit code."""
    options = _parser().parse_args(arguments)
    try:
        options.run(options)
    except ValidationError as error:
        for problem in error.errors():
            name = "_".join(str(part) for part in problem["loc"])
            _say(f"setting FLEETDIFF_{name.upper()}: {problem['msg']}")
        _say("see fleetdiff-server serve --help")
        return 2
    except (Refusal, OSError, ValueError, SQLAlchemyError, CommandError) as error:
        _say(f"{type(error).__name__}: {error}")
        return 1
    return 0


def _serve(options: argparse.Namespace) -> None:
    logs.configure(options.log_level)
    settings = _settings(options)
    migrate(settings.database)
    app = create_app(settings)
    logger.info("serve", extra={"host": settings.host, "port": settings.port})
    if settings.online_keys is not None:
        logger.warning("embedded publisher: this process serves the network and holds keys")
    elif settings.publisher == "embedded":
        logger.warning("no online keys: nothing is published or ordered by this process")
    uvicorn.Server(serving(app, settings)).run()


def serving(app: ASGIApp, settings: Settings) -> uvicorn.Config:
    """Return how an application is served."""
    return uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        proxy_headers=False,  # whom to believe is a setting of our own
        timeout_graceful_shutdown=5,
        http=impatient(settings.head_s_max),
        ws="none",
        limit_concurrency=settings.connections_max,
    )


def _publish(options: argparse.Namespace) -> None:
    """Make rounds until told to end, which is heard between two of them."""
    logs.configure(options.log_level)
    chosen = {name: getattr(options, name) for name in PUBLISHER_FLAGS}
    if options.data is not None:
        chosen["database"] = _sqlite_in(options.data)
    settings = PublisherSettings.from_environ(os.environ, **chosen)
    publisher, database = Publisher.open(settings), Database(settings.database)
    signal.pthread_sigmask(signal.SIG_BLOCK, ENDING)
    logger.info("publish")
    while True:
        try:
            work(database, publisher, datetime.now(UTC))
        except Exception:  # the database is away, or not migrated yet: the next round tries again
            logger.exception("round failed")
        if signal.sigtimedwait(ENDING, settings.round_s):
            break
    logger.info("ended")


def _migrate(options: argparse.Namespace) -> None:
    migrate(_settings(options).database)


def _verify_sums(options: argparse.Namespace) -> None:
    """Print what disagrees; a running rollout of which something does is paused."""
    settings = _settings(options)
    migrate(settings.database)
    database = Database(settings.database)
    with database.reader() as session:
        every = queries.recent_rollouts(session)
    ids = [rollout.id for rollout in every if rollout.reports_deleted_at is None]
    wrong = {
        rollout: found for rollout in ids if (found := verify(database, rollout, datetime.now(UTC)))
    }
    for rollout, found in wrong.items():
        print("\n".join(f"{rollout} {scope}" for scope in found))
    if wrong:
        raise ValueError(f"the sums of {len(wrong)} of {len(ids)} rollouts are not their reports'")
    _say(f"the sums of {len(ids)} rollouts are exactly what their reports add up to")


def _token(options: argparse.Namespace) -> None:
    settings = _settings(options)
    migrate(settings.database)
    database = Database(settings.database)
    lifetime = timedelta(days=options.days)
    scopes = options.scope or list(access.SCOPES)
    with database.writer() as session:
        row, token = access.create_token(session, options.name, scopes, lifetime, datetime.now(UTC))
        expires = row.expires_at.isoformat(timespec="seconds")
    _say(f"token of {options.name}, valid until {expires}; it is shown only now:")
    print(token)


def _openapi(options: argparse.Namespace) -> None:
    for name, document in documents().items():
        path = options.folder / name
        path.write_text(json.dumps(document, indent=2, sort_keys=True) + "\n")
        _say(f"wrote {path}")


def _settings(options: argparse.Namespace) -> Settings:
    chosen: dict[str, object] = {name: getattr(options, name, None) for name in FLAGS}
    if options.data is not None:
        options.data.mkdir(parents=True, exist_ok=True)
        chosen["database"] = _sqlite_in(options.data)
        chosen["artifacts"] = str((options.data / "artifacts").resolve())
    return Settings.from_environ(os.environ, **chosen)


def _sqlite_in(folder: Path) -> str:
    return f"sqlite:///{(folder / 'fleetdiff.db').resolve()}"


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="fleetdiff-server",
        description="Stores releases and patches, offers them to cohorts, judges the canary.",
        epilog=EPILOG,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    commands = parser.add_subparsers(required=True, metavar="COMMAND")
    data = argparse.ArgumentParser(add_help=False)
    data.add_argument(
        "--data", type=Path, help="one folder for SQLite and artifacts (instead of two settings)"
    )

    layout: Any = argparse.RawDescriptionHelpFormatter
    every = {"epilog": _variables(Settings, FLAGS), "formatter_class": layout}
    serve = commands.add_parser("serve", parents=[data], help="run the server", **every)
    _add_flags(serve, Settings, FLAGS)
    serve.set_defaults(run=_serve)

    says = "sign what is due, with the online keys, until stopped"
    every["epilog"] = _variables(PublisherSettings, PUBLISHER_FLAGS)
    publish = commands.add_parser("publish", parents=[data], help=says, **every)
    _add_flags(publish, PublisherSettings, PUBLISHER_FLAGS)
    publish.set_defaults(run=_publish)

    upgrade = commands.add_parser("migrate", parents=[data], help="bring the database up to date")
    upgrade.set_defaults(run=_migrate)

    sums = commands.add_parser(
        "verify-sums",
        parents=[data],
        help="add up all canary reports again; exit 1 if that differs",
    )
    sums.set_defaults(run=_verify_sums)

    token = commands.add_parser("token", parents=[data], help="make an API token, shown once")
    token.add_argument("--name", required=True, help="whose token it is")
    token.add_argument(
        "--scope", action="append", choices=access.SCOPES, help="repeat; default: every scope"
    )
    token.add_argument("--days", type=int, default=90, help="days it is valid (default 90)")
    token.set_defaults(run=_token)

    openapi = commands.add_parser("openapi", help="write the two API documents")
    openapi.add_argument("folder", type=Path, help="where admin.json and device.json go")
    openapi.set_defaults(run=_openapi, data=None)
    return parser


def _add_flags(
    parser: argparse.ArgumentParser, settings: type[FromEnviron], names: Sequence[str]
) -> None:
    for name in names:
        parser.add_argument(f"--{name.replace('_', '-')}", help=_told(settings.model_fields[name]))
    parser.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"])


def _variables(settings: type[FromEnviron], flags: Sequence[str]) -> str:
    """Return every setting that has no flag, as the variable that it is read from."""
    fields = settings.model_fields.items()
    rest = {f"FLEETDIFF_{name.upper()}": told for name, told in fields if name not in flags}
    layout: Any = {"width": 78, "initial_indent": " " * 6, "subsequent_indent": " " * 6}
    lines = [f"  {name}\n{textwrap.fill(_told(told), **layout)}" for name, told in rest.items()]
    return "\n".join(["each flag is a variable, too (FLEETDIFF_PORT); these have none:", *lines])


def _told(setting: FieldInfo) -> str:
    default = "" if setting.default in (None, PydanticUndefined, ()) else f"{setting.default}"
    return f"{setting.description} (default {default})" if default else f"{setting.description}"


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
