"""Canary reports: one true pair of a device counts, once, exactly; nothing else moves a sum."""

import hashlib
import re
from dataclasses import astuple
from functools import partial
from typing import Any

import pytest

from service.core import canary
from service.core.canary import Gate
from service.fleet import sums as kept
from tests.service.world import BASE, BETTER, MODEL, Phone, World, digest, outcomes, refused

NOTHING = (0, 0, 0, 0, 0, 0)
COUNTS = {"sub": 1, "del": 0, "ins": 0}
MALFORMED: list[dict[str, Any]] = [
    {"report_id": "A" * 32},
    {"report_id": ""},
    {"attempt": 0},
    {"attempt": True},
    {"deployment": ""},
    {"deployment": None},
    {"old_model": "x"},
    {"shard": ""},
    {"shard": "0\n1"},
    {"scorer": "wer/2"},
    {"runtime": "x" * 129},
    {"utterances": 0},
    {"utterances": 20.5},
    {"ref_words": 0},
    {"ref_words": 10**12},
    {"ref_words": "100"},
    {"order": "both"},
    {"old": COUNTS | {"sub": -1}},
    {"old": COUNTS | {"sub": 0.1}},
    {"old": COUNTS | {"sub": "1"}},
    {"old": COUNTS | {"sub": True}},
    {"old": COUNTS | {"sub": 10**9}},
    {"old": COUNTS | {"sub": None}},
    {"old": COUNTS | {"wer": 0}},
    {"old": {"sub": 1, "del": 0}},
    {"new": [1, 0, 0]},
    {"old_ms": -1},
    {"new_ms": 1 << 60},
    {"gate": "passed"},
    {"base": COUNTS | {"sub": -1}},
    {"base": []},
    {"worse_utts": -1},
    {"better_utts": "1"},
    {"differ_utts": -1},
    {"old_empty": "1"},
    {"new_empty": True},
    {"together": 1},
    {"together": "true"},
    {"window_start": "2026-06-01T12:30:00Z"},
    {"window_start": 1_780_000_000},
    {"arm": "control"},
    {"hardware": "h9"},
    {"cohort": "all"},
]


def sums(world: World, rollout: str) -> tuple[int, ...]:
    with world.app.state.database.reader() as session:
        found = kept.by_scope(session, rollout)
        return astuple(found["canary", "all"][0]) if found else NOTHING


def expected(pairs: list[tuple[int, int]], words: int = 100) -> tuple[int, ...]:
    """Return the sums of (old errors, new errors) by the definition."""
    found = [canary.contribution(Gate(), old, new, words) for old, new in pairs]
    columns = [(1, d, d * d, b, b * b, d * b) for d, b in found]
    return tuple(sum(column) for column in zip(*columns, strict=True))


def offered(world: World, serial: str) -> tuple[Phone, Any]:
    phone = world.enroll(serial, runs=digest(BASE))
    return phone, phone.offered()


def report_id(phone: Phone, plan: Any, attempt: int) -> str:
    shard = plan["canary"]
    text = f"{plan['release']}|{phone.id}|{shard['set']}|{shard['shard']}|{attempt}"
    return hashlib.sha256(text.encode()).hexdigest()[:32]


@pytest.mark.attack("T03", "T06")
def test_a_report_with_any_field_wrong_is_refused_and_the_sums_stay(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready()
    phone, plan = offered(world, "serial-1")
    other, theirs = offered(world, "serial-2")
    before = world.rows()
    fitting: list[dict[str, Any]] = [  # of the right form, and untrue
        {"deployment": theirs["deployment"]},
        {"deployment": "ab" * 8},
        {"report_id": "0" * 32},
        {"report_id": report_id(other, theirs, 1)},
        {"attempt": 2},
        {"old_model": digest(BETTER)},
        {"new_model": digest(BASE)},
        {"canary_set": digest(b"other")},
        {"shard": "99"},
        {"utterances": 21},
        {"ref_words": 99},
        {"ref_words": 101},
        {"base": COUNTS},  # r2 comes right after the base of its chain
        {"window_start": "2026-05-31T11:00:00Z"},
        {"window_start": "2026-06-02T14:00:00Z"},
    ]
    impossible: list[dict[str, Any]] = [
        {"old": COUNTS | {"sub": 101}},
        {"new": COUNTS | {"sub": 60, "del": 41}},
        {"new": COUNTS | {"ins": 101}},
        {"worse_utts": 12, "better_utts": 9},
        {"worse_utts": 21},
        {"differ_utts": 21},
        {"old_empty": 21},
        {"new_empty": 21},
    ]
    for change in fitting:
        refused(phone.pair(plan, 10, 10, **change), 422, "counts-mismatch")
    for change in impossible:
        refused(phone.pair(plan, 10, 10, **change), 422, "impossible-counts")
    for change in [*MALFORMED, {"device_id": other.id}]:
        refused(phone.pair(plan, 10, 10, **change), 422, "invalid-request")
    for constant in (b"NaN", b"Infinity", b"1e999"):
        body = b'{"ref_words": ' + constant + b"}"
        headers = {"Content-Type": "application/json"}
        reply = phone.request("POST", "/canary-reports", content=body, headers=headers)
        refused(reply, 422, "invalid-request")
    assert world.rows() == before and sums(world, rollout) == NOTHING
    more = {"worse_utts": 12, "better_utts": 8, "window_start": "2026-06-01T12:00:00Z"}
    assert phone.pair(plan, 10, 10, **more).json() == {"result": "counted"}
    text = world.call("GET", "/metrics").text
    told = dict(re.findall(r'reports_total\{outcome="(.*)"\} (\d+)', text))
    counts = {"counts-mismatch": len(fitting), "impossible-counts": len(impossible), "counted": 1}
    assert told == {k: str(n) for k, n in counts.items()} | {
        "invalid-request": str(len(MALFORMED) + 1 + 3)
    }


@pytest.mark.attack("A04", "T06", "T07")
def test_no_device_speaks_for_another(world: World) -> None:
    rollout = world.ready()
    phone, plan = offered(world, "serial-1")
    other, _ = offered(world, "serial-2")
    before = world.rows()
    refused(other.pair(plan, 0, 100), 422, "counts-mismatch")
    stolen = other.pair(plan, 0, 100, report_id=report_id(phone, plan, 1))
    refused(stolen, 422, "counts-mismatch")
    assert world.rows() == before and sums(world, rollout) == NOTHING


@pytest.mark.attack("T04", "T05")
def test_a_device_counts_once_however_often_it_reports(world: World) -> None:
    rollout = world.ready()
    phone, plan = offered(world, "serial-1")
    assert phone.pair(plan, 10, 12).json() == {"result": "counted"}
    once = sums(world, rollout)
    assert once == expected([(10, 12)])
    assert phone.pair(plan, 10, 12).json() == {"result": "duplicate"}
    assert phone.pair(plan, 10, 99).json() == {"result": "duplicate"}, "the first word stands"
    for attempt in (2, 3):
        again = {"attempt": attempt, "report_id": report_id(phone, plan, attempt)}
        assert phone.pair(plan, 10, 90, **again).json() == {"result": "repeat"}
        assert phone.pair(plan, 10, 90, **again).json() == {"result": "duplicate"}
    assert sums(world, rollout) == once
    assert len(world.rows()["canary_report"]) == 3
    seen = world.ok("GET", f"/v1/rollouts/{rollout}")
    assert seen["health"]["pairs"] == 1 and seen["health"]["new_wer_bp"] == 1200
    phone.install(plan, 10, 12)  # the report is a duplicate, the switch is news
    assert world.ok("GET", f"/v1/rollouts/{rollout}")["stages"][0]["confirmed"] == 1


@pytest.mark.attack("T05")
def test_a_closed_rollout_takes_no_more_reports(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready()
    phone, plan = offered(world, "serial-1")
    late, late_plan = offered(world, "serial-2")
    assert phone.pair(plan, 10, 12).status_code == 202
    world.ok("POST", f"/v1/rollouts/{rollout}/pause")
    paused, paused_plan = late, late_plan
    assert paused.pair(paused_plan, 11, 11).json() == {"result": "counted"}
    third = world.enroll("serial-3", runs=digest(BASE))
    world.ok("POST", f"/v1/rollouts/{rollout}/resume")
    third_plan = third.offered()
    world.ok("POST", f"/v1/rollouts/{rollout}/halt", json={"reason": "enough"})
    before = world.rows()
    refused(third.pair(third_plan, 0, 100), 409, "report-closed")
    assert phone.pair(plan, 10, 12).json() == {"result": "duplicate"}
    assert world.rows() == before
    assert sums(world, rollout) == expected([(10, 12), (11, 11)])


def test_a_report_from_quarantine_is_kept_and_never_counted(world_sqlite: World) -> None:
    world = world_sqlite
    rollout = world.ready()
    phone, plan = offered(world, "serial-1")
    world.ok("PATCH", f"/v1/devices/{phone.id}", json={"status": "quarantined"})
    assert phone.pair(plan, 0, 100).json() == {"result": "repeat"}
    assert sums(world, rollout) == NOTHING and len(world.rows()["canary_report"]) == 1


def test_reports_at_once_add_up_exactly(world: World) -> None:
    rollout = world.ready()
    told = [(3 * n % 40, 7 * n % 60) for n in range(16)]
    phones = world.fleet(16, digest(BASE))
    for phone in phones:
        phone.poll()
    world.tick()
    calls = []
    for phone, (old, new) in zip(phones, told, strict=True):
        plan = phone.poll()["plan"]
        calls += [partial(phone.pair, plan, old, new)] * 2  # and everyone stutters
    assert outcomes(calls) == [202] * 32
    assert sums(world, rollout) == expected(told)
    assert len(world.rows()["canary_report"]) == 16
    assert world.ok("GET", f"/v1/models/{MODEL}")["devices"] == 16
