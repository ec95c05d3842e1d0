"""Floors: who waits below one, why, and what a release manager does about it.

A rollout leaves those devices alone, for its canary judges one release; the floor's own rollout
brings them on.
"""

import shlex
from collections.abc import Sequence
from typing import Any

from sqlalchemy.orm import Session

from service.db import queries
from service.db.rollout_tables import ENDED, LIVE, Floor, Rollout
from service.db.tables import Release
from service.fleet.sample import Sample


def floor_of(session: Session, target: Release, running: Release | None) -> Floor | None:
    """Return the lowest floor that must run before a release may; unknown bytes passed none."""
    return floor_below(queries.floors_of(session, target.model), target, running)


def floor_below(floors: Sequence[Floor], target: Release, running: Release | None) -> Floor | None:
    """Return the lowest of a model's floors that stands between two releases."""
    passed = running.seq if running else 0
    return next((f for f in floors if passed < f.release.seq < target.seq), None)


def held(session: Session, rollout: Rollout, seen: Sample) -> list[dict[str, Any]]:
    """Return each floor that holds devices of a rollout, the lowest first.

    Args:
        session: to read with.
        rollout: one that has ended holds nobody.
        seen: its sample, which tells how many they are.
    """
    floors = queries.floors_of(session, rollout.model)
    if rollout.state in ENDED or not floors:
        return []
    releases = {release.id: release for release in queries.releases_of(session, rollout.model)}
    below: dict[int, dict[str, int]] = {}
    for release_id, devices in sorted(seen.by_release.items(), key=lambda item: item[0] or 0):
        running = releases.get(release_id or 0)
        floor = floor_below(floors, rollout.release, running)
        if floor is not None:
            below.setdefault(floor.release_id, {})[running.name if running else ""] = devices
    return [
        {
            "floor": floor.release.name,
            "devices": seen.about(sum(below[floor.release_id].values())),
            "running": [name or "unknown" for name in below[floor.release_id]],
            "reason": floor.reason,
            "help": _help(rollout, floor.release.name, [*below[floor.release_id]]),
        }
        for floor in floors
        if floor.release_id in below
    ]


def _help(rollout: Rollout, floor: str, running: Sequence[str]) -> str:
    """Return the commands that bring the devices on which run these; "" are unknown bytes."""
    cohort, name = rollout.cohort, f"below-{floor}"
    start = ["fleetdiff", "rollout", "start", rollout.model, floor, "--cohort"]
    if rollout.state not in LIVE:
        return f"first: {shlex.join([*start, cohort.name])}"
    # This one lives, and a cohort has one live rollout at a time: those below get their own.
    make = ["fleetdiff", "cohort", "create", name, "--model", rollout.model]
    chosen = {"running": ",".join(running), **_chosen(cohort.filter or {})}
    if cohort.filter is None or not all([*running, *chosen.values()]):
        which = " or ".join(one or "unknown bytes" for one in running)
        listed = shlex.join(["fleetdiff", "device", "list", "--cohort", cohort.name])
        make = [*make, "--device", "ID"]
        told = f"with every ID of {listed} that runs {which}: {shlex.join(make)} ... "
        return f"{told}&& {shlex.join([*start, name])}"
    for key, value in chosen.items():
        make += ["--filter", f"{key}={value}"]
    return f"{shlex.join(make)} && {shlex.join([*start, name])}"


def _chosen(filter_: dict[str, Any]) -> dict[str, str]:
    """Return what a filter asks for beside what runs, in the words of the command line."""
    hardware = filter_.get("hardware")
    named = {"hardware": ",".join(hardware)} if hardware else {}
    for kind in ("attributes", "tags"):
        named |= {f"{kind}.{key}": value for key, value in filter_.get(kind, {}).items()}
    return named
