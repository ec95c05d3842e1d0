"""The status page at `/`, and its inner fragment at `/status`, which the page asks for again.

The fragment has an ETag, so an unchanged refresh costs a few bytes; on a large fleet, where a
look takes long, everyone shares one look for a while. Style and script are part of the page and
allowed by their hashes, and nothing else may load: the page asks nobody but this server.
"""

import base64
import binascii
import hashlib
import threading
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from typing import Annotated, cast

from fastapi import APIRouter, Depends, Header, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException

from service.core import access
from service.core.errors import Forbidden, Unauthorized
from service.dashboard.charts import icon
from service.dashboard.story import tell
from service.dashboard.words import moment
from service.db.session import Database
from service.settings import Settings

SCOPE = "telemetry:read"
REALM = 'Basic realm="fleetdiff", charset="UTF-8"'
SLOW_S = 0.25  # a look that takes longer is kept, and shared
KEPT_PER_COST = 10  # for ten times as long as it took: a tenth of a core at most
ADVICE = (
    f"any user name, and as the password an API token with the scope {SCOPE} "
    f"(fleetdiff-server token --name me --scope {SCOPE})"
)

_templates = Environment(
    loader=PackageLoader("service.dashboard"),
    autoescape=True,
    undefined=StrictUndefined,
    trim_blocks=True,
    lstrip_blocks=True,
)
_templates.globals.update(icon=icon, moment=moment)


def _source(name: str) -> Markup:
    """Return one of our own files as it is; the hash in the policy is taken of these bytes."""
    loader = cast(PackageLoader, _templates.loader)
    return Markup(loader.get_source(_templates, name)[0])  # ours, not a visitor's


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


STYLE, SCRIPT = _source("page.css"), _source("page.js")
HEADERS = {
    "Content-Security-Policy": (
        f"default-src 'none'; style-src {_hash(STYLE)}; script-src {_hash(SCRIPT)}; "
        "connect-src 'self'; img-src data:; base-uri 'none'; form-action 'none'; "
        "frame-ancestors 'none'"
    ),
    "X-Content-Type-Options": "nosniff",
    "X-Frame-Options": "DENY",
    "Referrer-Policy": "no-referrer",
    "Cross-Origin-Opener-Policy": "same-origin",
    "Cross-Origin-Resource-Policy": "same-origin",
    "Permissions-Policy": "camera=(), microphone=(), geolocation=()",
    "Cache-Control": "no-cache, private",
}


@dataclass(frozen=True)
class Look:
    """One look at the fleet: the fragment and its tag.

    Attributes:
        fresh_until_s: everyone shares it until then.
        spare_until_s: until then it will do while somebody else takes the next one.
    """

    fragment: str
    etag: str
    fresh_until_s: float
    spare_until_s: float


class Lookout:
    """Looks at the fleet for everyone who asks, one look at a time.

    Args:
        stopwatch: seconds that only grow; tests bring their own.
    """

    def __init__(self, stopwatch: Callable[[], float] = time.monotonic) -> None:
        self._stopwatch = stopwatch
        self._looking = threading.Lock()
        self._last: Look | None = None

    def look(self, database: Database, now: datetime) -> Look:
        """Return the fleet as it is now, or a moment ago if looking is slow."""
        last, begun = self._last, self._stopwatch()
        spare = last if last is not None and begun < last.spare_until_s else None
        if spare is not None and begun < spare.fresh_until_s:
            return spare
        # Whoever waits holds a thread that a device could use, so with a spare nobody waits.
        if not self._looking.acquire(blocking=spare is None) and spare is not None:
            return spare
        try:
            begun = self._stopwatch()
            with database.reader() as session:
                story = tell(session, now)
            fragment = _templates.get_template("status.html").render(story=story)
            ended = self._stopwatch()
        finally:
            self._looking.release()
        kept_s = (ended - begun) * KEPT_PER_COST if ended - begun > SLOW_S else 0.0
        etag = f'"{hashlib.sha256(fragment.encode()).hexdigest()[:32]}"'
        self._last = Look(fragment, etag, ended + kept_s, ended + 2 * kept_s)
        return self._last


def visitor(
    request: Request,
    authorization: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> None:
    """Admit whoever may see the page.

    Without a good token, and with one that lacks the scope, the answer is 401 and not 403: only
    then does a browser ask again instead of repeating the wrong token until it is closed.
    """
    settings = cast(Settings, request.app.state.settings)
    if settings.status_page == "open":
        return
    try:
        with cast(Database, request.app.state.database).reader() as session:
            access.authorize(session, _password(authorization), SCOPE, request.app.state.clock())
    except (Unauthorized, Forbidden) as error:
        why = error.detail if isinstance(error, Forbidden) else "a valid API token is required"
        headers = {"WWW-Authenticate": REALM, "Cache-Control": "no-store"}
        raise HTTPException(401, f"{why}: give {ADVICE}", headers) from error


visitor.scope = SCOPE  # type: ignore[attr-defined]  # the test of routes reads it
router = APIRouter(include_in_schema=False, dependencies=[Depends(visitor)])


@router.get("/")
def page(request: Request) -> Response:
    """Show the whole page."""
    look = _look(request)
    body = _templates.get_template("page.html").render(
        fragment=Markup(look.fragment),  # rendered above, escaped there
        etag=look.etag,
        style=STYLE,
        script=SCRIPT,
    )
    return Response(body, media_type="text/html", headers=HEADERS)


@router.get("/status")
def status(
    request: Request,
    if_none_match: Annotated[str | None, Header(include_in_schema=False)] = None,
) -> Response:
    """Show the inner fragment, or 304 if it is what the caller has."""
    look = _look(request)
    headers = HEADERS | {"ETag": look.etag}
    known = {tag.strip().removeprefix("W/") for tag in (if_none_match or "").split(",")}
    if look.etag in known:
        return Response(status_code=304, headers=headers)
    return Response(look.fragment, media_type="text/html", headers=headers)


def _look(request: Request) -> Look:
    state = request.app.state
    if not hasattr(state, "lookout"):
        state.lookout = Lookout()
    return cast(Lookout, state.lookout).look(state.database, state.clock())


def _password(authorization: str | None) -> str:
    """Return the password of an `Authorization: Basic ...` header (RFC 7617)."""
    scheme, _, encoded = (authorization or "").partition(" ")
    if scheme.lower() != "basic":
        raise Unauthorized("send `Authorization: Basic ...`")
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except (binascii.Error, UnicodeDecodeError) as error:
        raise Unauthorized("the credential is malformed") from error
