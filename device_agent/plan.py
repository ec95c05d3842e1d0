"""A plan: the ways in which a server says an update can be done, and whether to believe it.

A plan is not signed. It may only arrange what is: every blob it names must be listed in the
model's signed family with the same size, every patch must lead from the bytes before it, and
every way must end in the bytes that the order names. Pure: values in, verdict out.
"""

import re
from dataclasses import dataclass, field
from typing import Annotated

from device_agent.conditions import Conditions
from trust.errors import Untrusted
from trust.order import Order
from trust.roles import BYTES_MAX, NAME, SHA256, Component, Family

PIPELINES_MAX = 8
STEPS_MAX = 8
TRIAL_S_MAX = 86_400
CANARY_SET_BYTES_MAX = 1 << 20
SHARD_BYTES_MAX = 1 << 26
LABEL = re.compile(r"[\x21-\x7e]{1,64}\Z")
ARM = re.compile(r"(canary|control)\Z")
DIGEST_OR_NOTHING = re.compile(r"([0-9a-f]{64})?\Z")
PRINTABLE = re.compile(r"[\x20-\x7e]{0,256}\Z")

Digest = Annotated[str, SHA256]
Size = Annotated[int, BYTES_MAX]


@dataclass(frozen=True)
class Step:
    """One step of a pipeline: fetch a blob, and what the file is after it.

    Attributes:
        op: undo (the spare slot has it), full (the blob is the file), patch, back (a patch undone).
        sha256: of the blob to fetch; for undo, of the result.
        bytes: of that blob.
        to: SHA-256 of the file after this step.
        to_bytes: its size.
    """

    op: Annotated[str, re.compile(r"(undo|patch|back|full)\Z")]
    sha256: Digest
    bytes: Size
    to: Digest
    to_bytes: Size


def way_of(steps: tuple[Step, ...]) -> str:
    """Return a pipeline as the server is told of it."""
    op = steps[0].op
    return " ".join([op, *(step.sha256[:16] for step in steps if op in ("patch", "back"))])


@dataclass(frozen=True)
class Canary:
    """The canary shard to try a release on: its signed manifest and the shard's own blob.

    Attributes:
        arm: canary: compare old and new; control: tell of the old one only, heard twice.
        base: digest of the release at which the chain to the new one begins, or none.
    """

    set: Digest
    set_bytes: Annotated[int, CANARY_SET_BYTES_MAX]
    shard: Annotated[str, NAME]
    shard_sha256: Digest
    shard_bytes: Annotated[int, SHARD_BYTES_MAX]
    arm: Annotated[str, ARM] = "canary"
    base: Digest | None = None


@dataclass(frozen=True)
class Gate:
    """What the server asks of the trial: how long all of it may take."""

    timeout_s: Annotated[int, TRIAL_S_MAX]


@dataclass(frozen=True)
class Plan:
    """Alternative pipelines to one release, tried in order.

    Attributes:
        components: of the release, as its family signs them; never what a server says.
        order_seq: the verified order it belongs to.
        base: SHA-256 of the bytes that ran when it was made, or empty.
        etag: of the answer that brought it.
    """

    deployment: Annotated[str, LABEL]
    release: Annotated[str, NAME]
    sha256: Digest
    bytes: Size
    pipelines: Annotated[tuple[Annotated[tuple[Step, ...], STEPS_MAX], ...], PIPELINES_MAX]
    canary: Canary | None
    gate: Gate
    conditions: Conditions = field(default_factory=Conditions)  # none: at any time
    components: tuple[Component, ...] = ()
    order_seq: int = 0
    base: Annotated[str, DIGEST_OR_NOTHING] = ""
    etag: Annotated[str, PRINTABLE] = ""


def check_plan(plan: Plan, order: Order, family: Family) -> None:
    """Refuse a plan that uses or reaches anything that is not signed.

    Raises:
        Untrusted: E_NOT_RELEASED, with the first thing that is wrong.
    """
    wanted = (order.deployment, order.release, order.sha256, family.releases[order.release].bytes)
    if (plan.deployment, plan.release, plan.sha256, plan.bytes) != wanted:
        raise Untrusted("E_NOT_RELEASED", "the plan leads elsewhere than the order")
    for pipeline in plan.pipelines:
        _check_pipeline(pipeline, plan, family)
    if plan.canary is not None:
        signed = family.canary and (family.canary.sha256, family.canary.bytes)
        if signed != (plan.canary.set, plan.canary.set_bytes):
            raise Untrusted("E_NOT_RELEASED", "the plan's canary set is not the signed one")


def _check_pipeline(pipeline: tuple[Step, ...], plan: Plan, family: Family) -> None:
    files = {(r.sha256, r.bytes) for r in family.releases.values()}
    patches = {(p.from_sha256, p.sha256, p.bytes): p.to_sha256 for p in family.patches}
    undone = {(p.to_sha256, p.sha256, p.bytes): p.from_sha256 for p in family.patches}
    at = plan.base
    for number, step in enumerate(pipeline):
        whole = number == 0 and step.to == step.sha256
        fits = {
            "undo": whole and len(pipeline) == 1,
            "full": whole and (step.sha256, step.bytes) in files,
            "patch": patches.get((at, step.sha256, step.bytes)) == step.to,
            "back": undone.get((at, step.sha256, step.bytes)) == step.to
            and {each.op for each in pipeline} == {"back"},
        }
        if not fits[step.op]:
            what = f"step {number + 1}, {step.op} {step.sha256[:12]}, is not signed"
            raise Untrusted("E_NOT_RELEASED", what)
        at = step.to
    if at != plan.sha256:
        raise Untrusted("E_NOT_RELEASED", "a pipeline ends in other bytes than ordered")
