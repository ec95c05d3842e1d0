"""`fleetdiff-server`: serve, migrate, token, openapi.

Exit codes: 0 done, 1 refused or failed, 2 wrong usage or settings.
"""

import argparse
import json
import logging
import os
import sys
from datetime import UTC, datetime, timedelta
from pathlib import Path

import uvicorn
from alembic.util import CommandError
from pydantic import ValidationError
from sqlalchemy.exc import SQLAlchemyError

from service import logs
from service.api.contract import documents
from service.app import create_app
from service.core import access
from service.core.errors import Refusal
from service.db.migrate import migrate
from service.db.session import Database
from service.settings import Settings

logger = logging.getLogger(__name__)
FLAGS = ("host", "port", "online_keys", "status_page", "tick_s", "poll_after_s")  # of settings
EPILOG = """\
Settings come from FLEETDIFF_* variables; flags win. Two of them choose where things lie:
  FLEETDIFF_DATABASE   sqlite:///file or postgresql://user:password@host/name
  FLEETDIFF_ARTIFACTS  a folder, or s3://bucket/prefix?endpoint=URL&region=NAME

example: a server of your own on port 8080, with everything in one folder
  fleetdiff-server token --data ./data --name me
  fleetdiff-server serve --data ./data --online-keys fleetdiff-keys/online

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
        _say("see fleetdiff-server --help")
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
    config = uvicorn.Config(
        app,
        host=settings.host,
        port=settings.port,
        log_config=None,
        access_log=False,
        server_header=False,
        timeout_graceful_shutdown=5,
    )
    logger.info("serve", extra={"host": settings.host, "port": settings.port})
    if settings.online_keys is None:
        logger.warning("no online keys: nothing is published or ordered by this process")
    uvicorn.Server(config).run()


def _migrate(options: argparse.Namespace) -> None:
    migrate(_settings(options).database)


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
        chosen["database"] = f"sqlite:///{(options.data / 'fleetdiff.db').resolve()}"
        chosen["artifacts"] = str((options.data / "artifacts").resolve())
    return Settings.from_environ(os.environ, **chosen)


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

    serve = commands.add_parser("serve", parents=[data], help="run the server")
    for name in FLAGS:
        setting = Settings.model_fields[name]
        default = f" (default {setting.default})" if setting.default is not None else ""
        serve.add_argument(f"--{name.replace('_', '-')}", help=f"{setting.description}{default}")
    serve.add_argument("--log-level", default="INFO", choices=["DEBUG", "INFO", "WARNING"])
    serve.set_defaults(run=_serve)

    upgrade = commands.add_parser("migrate", parents=[data], help="bring the database up to date")
    upgrade.set_defaults(run=_migrate)

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


def _say(line: str) -> None:
    print(line, file=sys.stderr)


if __name__ == "__main__":
    sys.exit(main())
