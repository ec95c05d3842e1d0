"""Operators: how devices get from one release to another, and what keeps them from it."""

from typing import Annotated, Any, Literal

from fastapi import Depends, Query

from service.api.deps import Now, Reader, Tx
from service.api.problems import document
from service.api.rollouts import CanRead, CanWrite
from service.api.strict import for_people
from service.core.bodies import Label, Name, Why
from service.core.chain import HASHED_HOPS_MAX, Limits
from service.core.errors import InvalidRequest
from service.db import queries
from service.fleet import plans, registry
from service.publishing import catalog

router = for_people("plans")
AtLeastNothing = Annotated[int | None, Query(ge=0, le=1 << 53)]


def limits(
    network: Literal["", "fast", "slow", "metered"] = "",
    memory_bytes: AtLeastNothing = None,
    room_bytes: AtLeastNothing = None,
    hashed_hops: Annotated[int, Query(ge=0, le=HASHED_HOPS_MAX)] = 0,
    goes_back: bool = False,
) -> Limits:
    """Return what a device allows that somebody thinks of."""
    return Limits(network, memory_bytes, room_bytes, hashed_hops, goes_back)


@router.get("/models/{model}/plan", responses=document(404))
def get_plan(
    _caller: CanRead,
    model: Name,
    session: Reader,
    to: Name,
    assumed: Annotated[Limits, Depends(limits)],
    source: Annotated[Name | None, Query(alias="from")] = None,
    device: Label | None = None,
) -> dict[str, Any]:
    """Explain how a device gets to a release: its pipelines, and which others were excluded why.

    Say where it comes from: `from` a release and with what limits, or as the `device` says.
    """
    if (source is None) == (device is None):
        raise InvalidRequest("name either the release it comes from or a device")
    target = plans.release_named(session, model, to)
    if device is None:
        release = plans.release_named(session, model, source or "")
        return plans.explain(session, release, target, release.sha256, assumed)
    row = registry.device_named(session, device)
    if row.model != model:
        raise InvalidRequest(f"device {device} runs {row.model}, not {model}")
    return plans.explain(session, row.release, target, row.running_sha256, plans.limits_of(row))


@router.get("/models/{model}/bases", responses=document(404))
def list_bases(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """List the releases that devices run, and from which of them the next one needs patches."""
    return {"items": plans.bases(session, model)}


@router.post("/models/{model}/patches/{source}/{target}/withdraw", responses=document(404))
def withdraw_patch(
    _caller: CanWrite, model: Name, source: Name, target: Name, body: Why, session: Tx, now: Now
) -> dict[str, Any]:
    """Send no device along a patch any more; needs a reason, which every plan shows."""
    patch = plans.patch_named(session, model, source, target)
    plans.withdraw_patch(session, patch, body.reason, now)
    return plans.patch_view(patch)


@router.post("/models/{model}/patches/{source}/{target}/restore", responses=document(404))
def restore_patch(
    _caller: CanWrite, model: Name, source: Name, target: Name, session: Tx, now: Now
) -> dict[str, Any]:
    """Use a withdrawn patch again; its failures are counted from nothing."""
    patch = plans.patch_named(session, model, source, target)
    plans.restore_patch(session, patch, now)
    return plans.patch_view(patch)


@router.get("/models/{model}/floors", responses=document(404))
def list_floors(_caller: CanRead, model: Name, session: Reader) -> dict[str, Any]:
    """List the releases that a device must have run before it gets a later one."""
    catalog.model_named(session, model)
    return {"items": [plans.floor_view(floor) for floor in queries.floors_of(session, model)]}


@router.put("/models/{model}/floors/{release}", responses=document(404))
def put_floor(
    _caller: CanWrite, model: Name, release: Name, body: Why, session: Tx, now: Now
) -> dict[str, Any]:
    """Make a release a floor; needs a reason, which plans show."""
    return plans.floor_view(plans.set_floor(session, model, release, body.reason, now))


@router.delete("/models/{model}/floors/{release}", status_code=204, responses=document(404))
def delete_floor(_caller: CanWrite, model: Name, release: Name, session: Tx, now: Now) -> None:
    """Take a floor away."""
    plans.lift_floor(session, model, release, now)
