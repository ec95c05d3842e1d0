"""Every error is an RFC 9457 problem: what was wrong, where, what to do.

The title is the docstring of the refusal, the type its name; a 422 carries a JSON pointer for
each field. A bug answers 500 without a stack trace; the trace goes to the log.
"""

import json
import logging
import re
from collections.abc import Mapping, Sequence
from typing import Any

from fastapi import FastAPI, Request
from fastapi.exceptions import RequestValidationError
from fastapi.responses import JSONResponse
from pydantic import BaseModel, ConfigDict
from sqlalchemy.exc import DBAPIError
from starlette.exceptions import HTTPException

from service.api.once import Repeated
from service.api.origin import denied
from service.core.errors import LostRace, Refusal, TooManyRequests, Unauthorized

logger = logging.getLogger(__name__)
CANARY_REPORTS = "/device/v1/canary-reports"
MEDIA_TYPE = "application/problem+json"
STATUS_OF = {
    "INVALID": 422,
    "NOT_FOUND": 404,
    "CONFLICT": 409,
    "CHANGED": 412,
    "UNAUTHORIZED": 401,
    "FORBIDDEN": 403,
    "TOO_LARGE": 413,
    "TOO_MANY": 429,
    "UNAVAILABLE": 503,
    "LENGTH_REQUIRED": 411,
    "TOO_SLOW": 408,
}
# PostgreSQL: a unique violation, a serialization failure, a deadlock. SQLite has one writer.
RACES = ("23505", "40001", "40P01")


class Problem(BaseModel):
    """A problem document (RFC 9457)."""

    model_config = ConfigDict(extra="allow")

    type: str
    title: str
    status: int
    detail: str


def document(*statuses: int) -> dict[int | str, dict[str, Any]]:
    """Return the `responses=` of a route that may refuse with these statuses."""
    content = {MEDIA_TYPE: {"schema": {"$ref": "#/components/schemas/Problem"}}}
    return {s: {"description": "Problem", "model": Problem, "content": content} for s in statuses}


def problem(
    status: int,
    name: str,
    title: str,
    detail: str,
    headers: Mapping[str, str] | None = None,
    **more: Any,
) -> JSONResponse:
    """Return a problem response."""
    body = {"type": f"/problems/{name}", "title": title, "status": status, "detail": detail}
    return JSONResponse({**more, **body}, status, headers=headers, media_type=MEDIA_TYPE)


def install(app: FastAPI) -> None:
    """Make every error of an app a problem."""
    for kind in (Refusal, Repeated, RequestValidationError, HTTPException, DBAPIError, Exception):
        app.add_exception_handler(kind, counted)


async def counted(request: Request, error: Exception) -> JSONResponse:
    """Return the problem that an error is, and count it if a canary report was refused."""
    reply = await answer(request, error)
    if request.url.path == CANARY_REPORTS:
        kind = json.loads(bytes(reply.body))["type"]
        request.app.state.reports.add(kind.removeprefix("/problems/"))
    return reply


async def answer(request: Request, error: Exception) -> JSONResponse:
    """Return the problem that an error is; to a repeated request, what was answered before."""
    match error:
        case Repeated():
            headers = {"Idempotent-Replayed": "true"}
            return JSONResponse(error.body, error.status, headers=headers)
        case Refusal():
            return of_refusal(await denied(request, error) if error.audited else error)
        case RequestValidationError():
            return _validation(error.errors())
        case HTTPException(__cause__=Refusal() as cause):
            return of_refusal(cause)  # FastAPI hides what stopped the reading of a body
        case HTTPException(status_code=400):  # it is not UTF-8, or too deep
            return _validation([{"loc": ("body",), "msg": error.detail}])
        case HTTPException():
            if error.status_code == 401:  # the status page challenges in a way of its own
                often = await denied(request, Unauthorized(""))
                if isinstance(often, TooManyRequests):
                    return of_refusal(often)
            return _http(error)
        case DBAPIError() if getattr(error.orig, "sqlstate", None) in RACES:
            return _lost_race(request)
    logger.error("bug", exc_info=error, extra={"method": request.method, "path": request.url.path})
    return problem(500, "bug", "The server made a mistake", "It was logged; try again later.")


def of_refusal(error: Refusal) -> JSONResponse:
    """Return the problem that a refusal is."""
    name = re.sub(r"(?<!^)(?=[A-Z])", "-", type(error).__name__).lower()
    title = (type(error).__doc__ or "").strip().rstrip(".")
    status = STATUS_OF[error.kind]
    headers = {"WWW-Authenticate": 'Bearer realm="fleetdiff"'} if status == 401 else {}
    if "retry_after_s" in error.members:
        headers = {"Retry-After": str(error.members["retry_after_s"])}
    return problem(status, name, title, error.detail, headers, **error.members)


def _validation(errors: Sequence[Any]) -> JSONResponse:
    fields = [{"pointer": _pointer(found["loc"]), "detail": found["msg"]} for found in errors]
    detail = "; ".join(f"{field['pointer']}: {field['detail']}" for field in fields)
    return problem(422, "invalid-request", "The request makes no sense", detail, errors=fields)


def _pointer(loc: Sequence[str | int]) -> str:
    """Return a JSON pointer (RFC 6901)."""
    return "".join("/" + str(part).replace("~", "~0").replace("/", "~1") for part in loc)


def _http(error: HTTPException) -> JSONResponse:
    names = {404: "not-found", 405: "method-not-allowed", 416: "range-not-satisfiable"}
    name = names.get(error.status_code, "http")
    return problem(error.status_code, name, str(error.detail), str(error.detail), error.headers)


def _lost_race(request: Request) -> JSONResponse:
    lost = of_refusal(LostRace("another request did this at the same time; look again"))
    if request.url.path.startswith("/device/") and not request.url.path.endswith("/enroll"):
        # An agent takes a conflict for a verdict; this one passes, so it shall come again.
        lost.status_code = 503
    return lost
