"""Every route of an app, flat, with the scopes that its dependencies carry."""

from collections.abc import Iterator
from typing import Any, NamedTuple

from fastapi import FastAPI
from fastapi.routing import APIRoute

SHA256 = "ab" * 32
FILLED = {"sha256": SHA256, "role": "targets", "filename": "timestamp.json"}


class Served(NamedTuple):
    """One method of one path."""

    method: str
    path: str
    scopes: frozenset[str]

    @property
    def url(self) -> str:
        """Return the path with something plausible in each place."""
        url = self.path
        while "{" in url:
            name = url[url.index("{") + 1 : url.index("}")]
            url = url.replace(f"{{{name}}}", FILLED.get(name, "nothing"))
        return url


def routes_of(app: FastAPI) -> list[Served]:
    """Return what the app serves; a route of an unknown kind is an error, not a gap."""
    return [
        Served(method, route.path, frozenset(_scopes(route.dependant)))
        for route in map(_carrying, app.routes)
        for method in sorted(route.methods or ())
    ]


def _carrying(route: Any) -> APIRoute:
    assert isinstance(route, APIRoute), f"{route!r} cannot carry a scope"
    return route


def _scopes(dependant: Any) -> Iterator[str]:
    for dependency in dependant.dependencies:
        scope = getattr(dependency.call, "scope", None)
        if isinstance(scope, str):
            yield scope
        yield from _scopes(dependency)
