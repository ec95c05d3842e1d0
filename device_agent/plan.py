"""A plan: the ways in which a server says an update can be done, and whether to believe it.

A plan is not signed. It may only arrange what is: every blob it names must be listed in the
model's signed family with the same size, every patch must lead from the bytes before it, and
every way must end in the bytes that the order names. Pure: values in, verdict out.
"""

import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from typing import Any

from device_agent.errors import Rejected
from trust.errors import Untrusted
from trust.order import Order
from trust.roles import BYTES_MAX, NAME, SHA256, Family

PIPELINES_MAX = 8
STEPS_MAX = 8
TIMEOUT_S_MAX = 86_400
LABEL = re.compile(r"[\x21-\x7e]{1,64}\Z")
DIGEST_OR_NOTHING = re.compile(r"([0-9a-f]{64})?\Z")
PRINTABLE = re.compile(r"[\x20-\x7e]{0,256}\Z")


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: fetch a blob, and what the file is after it.

    Attributes:
        op: undo (the spare slot has it), full (the blob is the file), patch.
        sha256: of the blob to fetch; for undo, of the result.
        bytes: of that blob.
        to: SHA-256 of the file after this step.
        to_bytes: its size.
    """

    op: str
    sha256: str
    bytes: int
    to: str
    to_bytes: int


@dataclass(frozen=True)
class Canary:
    """The canary shard to try a release on: its signed manifest and the shard's own blob."""

    set: str
    set_bytes: int
    shard: str
    shard_sha256: str
    shard_bytes: int


@dataclass(frozen=True)
class Gate:
    """What the server asks of the trial."""

    timeout_s: int


@dataclass(frozen=True)
class Plan:
    """Alternative pipelines to one release, tried in order.

    Attributes:
        order_seq: the verified order it belongs to.
        base: SHA-256 of the bytes that ran when it was made, or empty.
        etag: of the answer that brought it.
    """

    deployment: str
    rollout: str
    direction: str
    release: str
    sha256: str
    bytes: int
    pipelines: tuple[tuple[Step, ...], ...]
    canary: Canary | None
    gate: Gate
    order_seq: int = 0
    base: str = ""
    etag: str = ""

    def to_json(self) -> dict[str, Any]:
        """Return the plan as `read_plan` reads it."""
        return asdict(self)


def check_plan(plan: Plan, order: Order, family: Family, running: str) -> None:
    """Refuse a plan that uses or reaches anything that is not signed.

    Raises:
        Untrusted: E_NOT_RELEASED, with the first thing that is wrong.
    """
    release = family.releases[order.release]
    if (plan.deployment, plan.release, plan.sha256, plan.bytes) != (
        order.deployment,
        order.release,
        order.sha256,
        release.bytes,
    ):
        raise Untrusted("E_NOT_RELEASED", "the plan leads elsewhere than the order")
    for pipeline in plan.pipelines:
        _check_pipeline(pipeline, plan.sha256, family, running)
    if plan.canary is not None:
        signed = family.canary
        if signed is None or (plan.canary.set, plan.canary.set_bytes) != (
            signed.sha256,
            signed.bytes,
        ):
            raise Untrusted("E_NOT_RELEASED", "the plan's canary set is not the signed one")


def _check_pipeline(pipeline: tuple[Step, ...], goal: str, family: Family, running: str) -> None:
    at = running
    patches = {p.sha256: p for p in family.patches}
    for number, step in enumerate(pipeline):
        patch = patches.get(step.sha256)
        if step.op == "undo":
            fits = len(pipeline) == 1 and step.sha256 == step.to
        elif step.op == "full":
            release = family.release_of(step.sha256)
            fits = number == 0 and release is not None and step.to == step.sha256
            fits = fits and step.bytes == family.blob_bytes(step.sha256)
        else:
            fits = patch is not None and (patch.from_sha256, patch.to_sha256) == (at, step.to)
            fits = fits and patch is not None and step.bytes == patch.bytes
        if not fits:
            raise Untrusted(
                "E_NOT_RELEASED", f"step {number + 1}, {step.op} {step.sha256[:12]}, is not signed"
            )
        at = step.to
    if at != goal:
        raise Untrusted("E_NOT_RELEASED", "a pipeline ends in other bytes than ordered")


def read_plan(document: Any) -> Plan:
    """Return the plan in a JSON object, of the wire or of the journal.

    Raises:
        Rejected: E_PLAN, naming the field.
    """
    read = _Reader(document)
    pipelines = read.rows("pipelines", PIPELINES_MAX)
    canary = read.value("canary")
    return Plan(
        deployment=read.text("deployment", LABEL),
        rollout=read.text("rollout", LABEL),
        direction=read.text("direction", re.compile(r"(forward|back)\Z")),
        release=read.text("release", NAME),
        sha256=read.text("sha256", SHA256),
        bytes=read.count("bytes"),
        pipelines=tuple(_read_pipeline(p) for p in pipelines),
        canary=None if canary is None else _read_canary(canary),
        gate=Gate(_Reader(read.value("gate")).count("timeout_s", TIMEOUT_S_MAX)),
        order_seq=read.count("order_seq") if "order_seq" in read.document else 0,
        base=read.text("base", DIGEST_OR_NOTHING) if "base" in read.document else "",
        etag=read.text("etag", PRINTABLE) if "etag" in read.document else "",
    )


def _read_pipeline(document: Any) -> tuple[Step, ...]:
    return tuple(
        Step(
            op=read.text("op", re.compile(r"(undo|patch|full)\Z")),
            sha256=read.text("sha256", SHA256),
            bytes=read.count("bytes"),
            to=read.text("to", SHA256),
            to_bytes=read.count("to_bytes"),
        )
        for read in map(_Reader, _Reader({"steps": document}).rows("steps", STEPS_MAX))
    )


def _read_canary(document: Any) -> Canary:
    read = _Reader(document)
    return Canary(
        set=read.text("set", SHA256),
        set_bytes=read.count("set_bytes"),
        shard=read.text("shard", NAME),
        shard_sha256=read.text("shard_sha256", SHA256),
        shard_bytes=read.count("shard_bytes"),
    )


class _Reader:
    """Takes typed fields out of a JSON object, or says which one is wrong."""

    def __init__(self, document: Any) -> None:
        if not isinstance(document, Mapping):
            raise Rejected("E_PLAN", f"{str(document)[:40]!r} stands where an object belongs")
        self.document = document

    def value(self, name: str) -> Any:
        if name not in self.document:
            raise Rejected("E_PLAN", f"the plan has no {name}")
        return self.document[name]

    def text(self, name: str, form: re.Pattern[str]) -> str:
        value = self.value(name)
        if not isinstance(value, str) or not form.match(value):
            raise Rejected("E_PLAN", f"{name} = {str(value)[:80]!r} is not understood")
        return value

    def count(self, name: str, most: int = BYTES_MAX) -> int:
        value = self.value(name)
        if not isinstance(value, int) or isinstance(value, bool) or not 0 <= value <= most:
            raise Rejected("E_PLAN", f"{name} = {str(value)[:80]!r} is no number up to {most}")
        return value

    def rows(self, name: str, most: int) -> list[Any]:
        value = self.value(name)
        if not isinstance(value, list | tuple) or not 0 < len(value) <= most:
            raise Rejected("E_PLAN", f"{name} must be a list of 1 to {most}")
        return list(value)
