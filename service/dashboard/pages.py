"""The status page at `/`, and its inner fragment at `/status`, which the page asks for again.

The fragment has an ETag, so an unchanged refresh costs a few bytes. Style and script are part of
the page and allowed by their hashes, and nothing else may load: the page asks nobody but this
server.
"""

import base64
import hashlib
from datetime import UTC
from typing import Annotated

from fastapi import APIRouter, Depends, Header, Request, Response
from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from starlette.exceptions import HTTPException

from service.core import access
from service.core.errors import Forbidden, Unauthorized
from service.core.network import client_ip
from service.dashboard import charts, story, words

SCOPE = "telemetry:read"
ADVICE = (
    "the status page asks for a valid API token: give any user name, and as the password a token "
    f"with the scope {SCOPE} (fleetdiff-server token --name me --scope {SCOPE})"
)
CHALLENGE = {
    "WWW-Authenticate": 'Basic realm="fleetdiff", charset="UTF-8"',
    "Cache-Control": "no-store",
}

_loader = PackageLoader("service.dashboard")
TEMPLATES = Environment(
    loader=_loader, autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
)
TEMPLATES.filters.update(words.FILTERS)
TEMPLATES.globals.update(spans=charts.spans, scale_bp=charts.scale_bp, UTC=UTC)
# Our own files as they are: the policy allows these very bytes.
STYLE, SCRIPT = (Markup(_loader.get_source(TEMPLATES, f"page.{kind}")[0]) for kind in ("css", "js"))


def _hash(text: str) -> str:
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


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


def visitor(
    request: Request, authorization: Annotated[str, Header(include_in_schema=False)] = ""
) -> None:
    """Admit whoever may see the page.

    Without a good token, and with one that lacks the scope, the answer is 401 and not 403: only
    then does a browser ask again instead of repeating the wrong token until it is closed.
    """
    state = request.app.state
    if state.settings.status_page == "open":
        return
    try:
        with state.database.reader() as session:
            peer = request.client.host if request.client else ""
            hops = request.headers.getlist("x-forwarded-for")
            ip = client_ip(peer, hops, state.settings.trusted_proxies)
            caller = access.authorize(session, _password(authorization), state.clock(), ip)
            access.allowed(caller, SCOPE)
    except (Unauthorized, Forbidden):
        raise HTTPException(401, ADVICE, CHALLENGE) from None  # not a challenge for `Bearer`


visitor.scope = SCOPE  # type: ignore[attr-defined]  # the test of routes reads it
router = APIRouter(include_in_schema=False, dependencies=[Depends(visitor)])


@router.get("/")
def page(request: Request) -> Response:
    """Show the whole page."""
    fragment, etag = _look(request)
    # The fragment is rendered and escaped already.
    shown = {"fragment": Markup(fragment), "etag": etag, "style": STYLE, "script": SCRIPT}
    body = TEMPLATES.get_template("page.html").render(shown)
    return Response(body, media_type="text/html", headers=HEADERS)


@router.get("/status")
def status(
    request: Request, if_none_match: Annotated[str, Header(include_in_schema=False)] = ""
) -> Response:
    """Show the inner fragment, or 304 if it is what the caller has."""
    fragment, etag = _look(request)
    headers = HEADERS | {"ETag": etag}
    if etag in (tag.strip().removeprefix("W/") for tag in if_none_match.split(",")):
        return Response(status_code=304, headers=headers)
    return Response(fragment, media_type="text/html", headers=headers)


def _look(request: Request) -> tuple[str, str]:
    """Return the fleet as it is now, as the fragment and its tag."""
    state = request.app.state
    with state.database.reader() as session:
        told = story.tell(session, state.clock())
        fragment = TEMPLATES.get_template("status.html").render(told)
    return fragment, f'"{hashlib.sha256(fragment.encode()).hexdigest()[:32]}"'


def _password(authorization: str) -> str:
    """Return the password of an `Authorization: Basic ...` header (RFC 7617)."""
    scheme, _, encoded = authorization.partition(" ")
    if scheme.lower() != "basic":
        raise Unauthorized("send `Authorization: Basic ...`")
    try:
        return base64.b64decode(encoded.strip(), validate=True).decode().partition(":")[2]
    except ValueError as error:  # neither base64 nor UTF-8
        raise Unauthorized("the credential is malformed") from error
