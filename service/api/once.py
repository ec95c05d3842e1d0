"""A POST that is sent twice is done once, if it carries an `Idempotency-Key`.

The answer is kept in the transaction of what was done, so there is never one without the other;
who sends the same request again gets it again. The form is that of the IETF's draft "The
Idempotency-Key HTTP Header Field" (draft-ietf-httpapi-idempotency-key-header).
"""

import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import datetime
from functools import wraps
from hashlib import sha256
from typing import Any

from fastapi import Request
from fastapi.concurrency import run_in_threadpool
from fastapi.encoders import jsonable_encoder
from sqlalchemy.orm import Session

from service.core.errors import AnswerShownOnce, InvalidRequest, KeyReused
from service.db.pipelines import Answer

HEADER = "Idempotency-Key"
KEY = re.compile(r"[\x21-\x7e]{1,128}")
SHOWN_ONCE = {"x-shown-once": True}  # a route's answer that holds a secret is not kept
DOCUMENTED = {
    "name": HEADER,
    "in": "header",
    "required": False,
    "description": "Sent again within a day with the same key, the request is not done again.",
    "schema": {"type": "string", "pattern": f"^{KEY.pattern}$"},
}


class Repeated(Exception):
    """The request was done before; this is what was answered then."""

    def __init__(self, status: int, body: Any) -> None:
        super().__init__(status, body)
        self.status, self.body = status, body


@dataclass(frozen=True)
class Claim:
    """A request with a key that nobody used before."""

    actor: str
    key: str
    request_sha256: str

    def keep(self, session: Session, request: Request, now: datetime) -> None:
        """Keep the answer for who sends the request again; a rival's is a lost race."""
        route = request.scope["route"]
        secret = (route.openapi_extra or {}).keys() & SHOWN_ONCE
        body = None if secret else jsonable_encoder(session.info["answer"])
        session.add(Answer(**vars(self), status=route.status_code or 200, body=body, at=now))


def remembered(endpoint: Callable[..., Any]) -> Callable[..., Any]:
    """Return a route's function that leaves its answer with the transaction."""

    @wraps(endpoint)
    def called(**given: Any) -> Any:
        answer = endpoint(**given)
        if "session" in given:
            given["session"].info["answer"] = answer
        return answer

    return called


async def claim(request: Request, session: Session) -> Claim | None:
    """Return what a request claims to be done once; None if it claims nothing.

    Raises:
        Repeated: it was done.
        InvalidRequest, KeyReused, AnswerShownOnce: nothing is done.
    """
    key = request.headers.get(HEADER)
    if key is None or request.method != "POST" or not request.url.path.startswith("/v1/"):
        return None
    if not KEY.fullmatch(key):
        raise InvalidRequest(f"{HEADER} must match {KEY.pattern}")
    target = f"{request.url.path}?{request.url.query}\n".encode()
    asked = sha256(target + await request.body()).hexdigest()
    found = await run_in_threadpool(session.get, Answer, (request.state.actor, key))
    if found is None:
        return Claim(request.state.actor, key, asked)
    if found.request_sha256 != asked:
        raise KeyReused(f"{HEADER} {key} came with another request; use a new key for this one")
    if found.body is None:
        raise AnswerShownOnce("it was made, and its secret was answered then; revoke it, make anew")
    raise Repeated(found.status, found.body)
