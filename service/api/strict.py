"""Routes whose JSON reads in one way only: a key twice in an object is refused, not guessed at."""

import json
from collections.abc import Callable, Coroutine
from typing import Any

from fastapi import APIRouter, Request, Response
from fastapi.routing import APIRoute

from service.api import once
from service.api.problems import document
from service.core.errors import InvalidRequest


class StrictRoute(APIRoute):
    """A route whose JSON bodies are strict, and whose POST may be sent again."""

    def __init__(self, path: str, endpoint: Callable[..., Any], **named: Any) -> None:
        if "POST" in named["methods"]:
            endpoint = once.remembered(endpoint)
            extra = named["openapi_extra"] or {}
            named["openapi_extra"] = {**extra, "parameters": [once.DOCUMENTED]}
            named["responses"] = document(409) | named["responses"]
        super().__init__(path, endpoint, **named)

    def get_route_handler(self) -> Callable[[Request], Coroutine[Any, Any, Response]]:
        """Return the handler, which reads its body strictly."""
        handle = super().get_route_handler()

        async def strictly(request: Request) -> Response:
            return await handle(_Strict(request.scope, request.receive))

        return strictly


class _Strict(Request):
    async def json(self) -> Any:
        return json.loads(await self.body(), object_pairs_hook=_object)


def _object(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise InvalidRequest("a key stands twice in one object; which of the two is meant?")
    return found


def for_people(tag: str) -> APIRouter:
    """Return a router of the admin API."""
    refusals = document(401, 403, 422, 429, 503)
    return APIRouter(prefix="/v1", route_class=StrictRoute, tags=[tag], responses=refusals)
