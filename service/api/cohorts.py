"""Release managers: cohorts, to which rollouts go."""

from typing import Any

from service.api.deps import Now, Reader, Tx
from service.api.paging import LIMIT, Limit, page
from service.api.problems import document
from service.api.rollouts import CanRead, CanWrite
from service.api.strict import for_people
from service.core.bodies import Label, Name, NewCohort
from service.db import queries
from service.engine import cohorts
from service.engine.health import cohort_view
from service.publishing import catalog

router = for_people("rollouts")


@router.post("/cohorts", status_code=201, responses=document(404, 409))
def create_cohort(_caller: CanWrite, body: NewCohort, session: Tx, now: Now) -> dict[str, Any]:
    """Add a cohort: a list of devices, or a filter that devices match."""
    chosen = body.filter.model_dump() if body.filter else None
    cohort = cohorts.create_cohort(session, body.name, body.model, body.devices, chosen, now)
    return cohort_view(session, cohort)


@router.get("/cohorts")
def list_cohorts(
    _caller: CanRead, session: Reader, cursor: Name | None = None, limit: Limit = LIMIT
) -> dict[str, Any]:
    """List the cohorts by name; pass `next` as `cursor` for the next page."""
    rows = queries.cohorts_page(session, cursor or "", limit)
    return page([cohort_view(session, cohort) for cohort in rows], "name", limit)


@router.get("/cohorts/{name}", responses=document(404))
def get_cohort(
    _caller: CanRead, name: Name, session: Reader, exact: bool = False
) -> dict[str, Any]:
    """Preview a cohort: how many devices, on which releases, and some of them.

    Of a large one a sample tells the numbers (`counted` is false), unless they shall be `exact`.
    """
    return cohort_view(session, catalog.cohort_named(session, name), exact=exact)


@router.put("/cohorts/{name}/devices/{device_id}", responses=document(404))
def put_member(
    _caller: CanWrite, name: Name, device_id: Label, session: Tx, now: Now
) -> dict[str, Any]:
    """Add a device to a static cohort."""
    cohort = catalog.cohort_named(session, name)
    cohorts.add_member(session, cohort, device_id, now)
    return cohort_view(session, cohort)
