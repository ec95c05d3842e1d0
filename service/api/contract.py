"""The two OpenAPI documents, one per audience: people (`admin.json`) and devices (`device.json`).

They lie in `openapi/`; a test fails when the code says something else, and names the command.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from service.api import device, ops, releases, rollouts
from service.api.problems import Problem

AUDIENCES: dict[str, tuple[str, list[APIRouter]]] = {
    "admin.json": (
        "Fleetdiff: for people and pipelines",
        [releases.router, rollouts.router, ops.router, ops.public],
    ),
    "device.json": ("Fleetdiff: for device agents", [device.router]),
}


def documents() -> dict[str, dict[str, Any]]:
    """Return file name -> OpenAPI 3.1 document."""
    return {name: _document(title, routers) for name, (title, routers) in AUDIENCES.items()}


def _document(title: str, routers: list[APIRouter]) -> dict[str, Any]:
    routes = [route for router in routers for route in router.routes]
    document: dict[str, Any] = get_openapi(title=title, version="1", routes=routes)
    schemas = document.setdefault("components", {}).setdefault("schemas", {})
    schemas["Problem"] = Problem.model_json_schema()
    document["components"]["securitySchemes"] = {"bearer": {"type": "http", "scheme": "bearer"}}
    for path, operations in document["paths"].items():
        for operation in operations.values():
            if path not in ("/healthz", "/device/v1/enroll"):
                operation["security"] = [{"bearer": []}]
    return document
