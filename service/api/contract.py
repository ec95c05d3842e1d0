"""The two OpenAPI documents, one per audience: people (`admin.json`) and devices (`device.json`).

They lie in `openapi/`; a test fails when the code says something else, and names the command.
"""

from typing import Any

from fastapi import APIRouter
from fastapi.openapi.utils import get_openapi

from service.api import artifacts, cohorts, device, entry, ops, plans, releases, rollouts, webhooks

FOR_PEOPLE = (releases, artifacts, cohorts, rollouts, plans, ops, entry, webhooks)
AUDIENCES: dict[str, tuple[str, list[APIRouter]]] = {
    "admin.json": (
        "Fleetdiff: for people and pipelines",
        [*(part.router for part in FOR_PEOPLE), ops.public],
    ),
    "device.json": ("Fleetdiff: for device agents", [device.router]),
}


def documents() -> dict[str, dict[str, Any]]:
    """Return file name -> OpenAPI 3.1 document."""
    return {
        name: get_openapi(
            title=title,
            version="1",
            routes=[route for router in routers for route in router.routes],
        )
        for name, (title, routers) in AUDIENCES.items()
    }
