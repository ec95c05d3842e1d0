"""Every table, as classes. "Model" only ever means a line of speech models.

Times are UTC; shares are basis points; counts of errors are integers. What a row refers to is an
attribute; what refers to a row is a query, except for what makes up one thing, as stages do.
"""

from datetime import datetime
from typing import Any

import sqlalchemy as sa
from sqlalchemy import CheckConstraint, ForeignKey, Index, UniqueConstraint
from sqlalchemy.orm import Mapped, mapped_column, relationship

from service.db.columns import Table, one_of

INACTIVE = sa.text("status <> 'active'")  # as in its index, or the index is not used
MEMORY_BYTES_MOST = str(64 << 20)  # of any patch: what was checked before it was asked for


class Model(Table):
    """A line of speech models, e.g. `asr-en-edge`."""

    name: Mapped[str] = mapped_column(primary_key=True)
    canary_salt: Mapped[str]  # picks each device's shard; never leaves the database
    created_at: Mapped[datetime]
    # Counts the changes of whatever answers to polls follow from, but for the device itself.
    generation: Mapped[int] = mapped_column(default=0, server_default="0")


class Artifact(Table):
    """An immutable blob in the artifact store; its row outlives its bytes."""

    sha256: Mapped[str] = mapped_column(primary_key=True)
    bytes: Mapped[int]
    created_at: Mapped[datetime]
    state: Mapped[str] = mapped_column(default="stored", server_default="stored")
    unneeded_since: Mapped[datetime | None]  # as it was first noticed
    deleted_at: Mapped[datetime | None]
    __table_args__ = (one_of("state", "stored", "deleting", "deleted"),)


class MetadataFile(Table):
    """A signed document, exactly as it was signed."""

    role: Mapped[str] = mapped_column(primary_key=True)
    version: Mapped[int] = mapped_column(primary_key=True)
    body: Mapped[bytes]
    expires_at: Mapped[datetime]
    accepted_at: Mapped[datetime]


class PublisherState(Table):
    """What the publisher says of its last round; one row, which nobody signs and nobody trusts."""

    id: Mapped[int] = mapped_column(primary_key=True)
    round_at: Mapped[datetime]
    problems: Mapped[list[Any]]


class Draft(Table):
    """The next version of an offline document, with the signatures it has so far."""

    role: Mapped[str] = mapped_column(primary_key=True)
    body: Mapped[bytes]
    staged_by: Mapped[str]
    staged_at: Mapped[datetime]


class Release(Table):
    """One version of a model, as its family signed it."""

    id: Mapped[int] = mapped_column(primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    name: Mapped[str]
    seq: Mapped[int]
    status: Mapped[str]
    sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"))
    bytes: Mapped[int]
    hardware: Mapped[list[Any]]
    rollback_from: Mapped[list[Any]]
    rollback_until: Mapped[int] = mapped_column(default=0, server_default="0")  # 0: for good
    min_agent: Mapped[str] = mapped_column(server_default="")
    # What trust.roles.Evaluation holds; read with a report only, for it is long.
    evaluation: Mapped[dict[str, Any] | None] = mapped_column(deferred=True)
    published_at: Mapped[datetime]
    __table_args__ = (
        UniqueConstraint("model", "name"),
        UniqueConstraint("model", "seq"),
        UniqueConstraint("model", "sha256"),
        one_of("status", "active", "retired", "withdrawn"),
    )

    def takes_back(self, later: "Release", now: datetime) -> bool:
        """Whether the family signs the way back from a later release to this one, until now."""
        is_open = not self.rollback_until or now.timestamp() < self.rollback_until
        return is_open and later.name in self.rollback_from


class Patch(Table):
    """An edge between two releases of a model."""

    model: Mapped[str] = mapped_column(ForeignKey("model.name"), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"), primary_key=True)
    from_release: Mapped[int] = mapped_column(ForeignKey("release.id"))
    to_release: Mapped[int] = mapped_column(ForeignKey("release.id"))
    kind: Mapped[str]
    bytes: Mapped[int]
    memory_bytes: Mapped[int] = mapped_column(server_default=MEMORY_BYTES_MOST)
    goes_back: Mapped[bool] = mapped_column(server_default=sa.false())
    ok_count: Mapped[int] = mapped_column(server_default="0")  # seen in the field
    fail_count: Mapped[int] = mapped_column(server_default="0")
    withdrawn: Mapped[str] = mapped_column(server_default="")  # why nobody is sent along it
    source: Mapped[Release] = relationship(foreign_keys=[from_release])
    target: Mapped[Release] = relationship(foreign_keys=[to_release])
    __table_args__ = (
        CheckConstraint("from_release <> to_release", name="edge"),
        one_of("kind", "sparse", "hashed", "exact"),
    )


class CheckedPatch(Table):
    """A patch that was applied to its base here, and made its target byte for byte."""

    sha256: Mapped[str] = mapped_column(primary_key=True)
    from_sha256: Mapped[str] = mapped_column(primary_key=True)
    to_sha256: Mapped[str] = mapped_column(primary_key=True)
    kind: Mapped[str] = mapped_column(primary_key=True)  # as which it was signed
    checked_at: Mapped[datetime]
    memory_bytes: Mapped[int] = mapped_column(server_default=MEMORY_BYTES_MOST)
    goes_back: Mapped[bool] = mapped_column(server_default=sa.false())


class CanarySet(Table):
    """The canary pool of a model; the manifest names the shards and their counts."""

    model: Mapped[str] = mapped_column(ForeignKey("model.name"), primary_key=True)
    sha256: Mapped[str] = mapped_column(ForeignKey("artifact.sha256"))
    manifest: Mapped[dict[str, Any]]
    expires_at: Mapped[datetime | None]


class ApiToken(Table):
    """A person's or a pipeline's key to the admin API; only a digest is stored."""

    id: Mapped[str] = mapped_column(primary_key=True)
    name: Mapped[str]
    secret_sha256: Mapped[str]
    scopes: Mapped[list[Any]]
    created_at: Mapped[datetime]
    expires_at: Mapped[datetime]
    revoked_at: Mapped[datetime | None]
    last_used_at: Mapped[datetime | None]  # to the minute
    networks: Mapped[list[Any] | None]  # that it may come from; None: any


class EnrollmentToken(Table):
    """Lets a number of devices introduce themselves."""

    id: Mapped[str] = mapped_column(primary_key=True)
    secret_sha256: Mapped[str]
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    cohort_id: Mapped[int | None] = mapped_column(ForeignKey("cohort.id"))
    uses_left: Mapped[int]
    admitted: Mapped[int] = mapped_column(default=0, server_default="0")
    expires_at: Mapped[datetime]
    created_at: Mapped[datetime]
    __table_args__ = (CheckConstraint("uses_left >= 0", name="uses"),)


class Device(Table):
    """One device; its credential, or the key that it signs with, is stored as a digest."""

    id: Mapped[str] = mapped_column(primary_key=True)
    serial: Mapped[str] = mapped_column(unique=True)
    hardware: Mapped[str]
    status: Mapped[str]
    attributes: Mapped[dict[str, Any]]  # owned by the device
    tags: Mapped[dict[str, Any]]  # owned by operators
    agent_version: Mapped[str]
    credential_sha256: Mapped[str]
    next_credential_sha256: Mapped[str | None]  # takes the other's place when it is first used
    old_credential_sha256: Mapped[str | None]  # whoever still has it is not the device
    renewed_at: Mapped[datetime | None]
    signed_number: Mapped[int | None]  # the highest of a signed request; None: a bearer's secret
    certificate_sha256: Mapped[str | None]  # without which the credential is none
    enrolled_at: Mapped[datetime]
    enrolled_by: Mapped[str | None]  # the enrollment token; its devices are a batch
    last_seen_at: Mapped[datetime | None]
    __table_args__ = (
        one_of("status", "active", "quarantined", "revoked"),
        Index("ix_device_inactive", "id", sqlite_where=INACTIVE, postgresql_where=INACTIVE),
    )


class AuditEntry(Table):
    """Something that was done, or refused; each names the digest of the one before it."""

    seq: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    at: Mapped[datetime]
    actor: Mapped[str]
    action: Mapped[str]
    object: Mapped[str]
    result: Mapped[str]
    details: Mapped[dict[str, Any]]
    ip: Mapped[str]
    request_id: Mapped[str]
    previous_sha256: Mapped[str]
    sha256: Mapped[str]
    __table_args__ = (one_of("result", "done", "denied"),)


class AuditHead(Table):
    """The last entry of the audit log, in the one row that whoever appends must lock."""

    id: Mapped[int] = mapped_column(primary_key=True, autoincrement=False)
    seq: Mapped[int]
    sha256: Mapped[str]
    signed_at: Mapped[datetime | None]  # by the publisher, once a day


class DeviceModel(Table):
    """What a device runs, by the digest it reported, and the order it was given."""

    device_id: Mapped[str] = mapped_column(ForeignKey("device.id"), primary_key=True)
    model: Mapped[str] = mapped_column(ForeignKey("model.name"))
    running_sha256: Mapped[str]
    running_release: Mapped[int | None] = mapped_column(ForeignKey("release.id"))
    hops: Mapped[int] = mapped_column(server_default="0")  # since its last full file
    hashed_hops: Mapped[int] = mapped_column(server_default="0")
    memory_bytes: Mapped[int | None]  # that it has, as it says; None: it did not
    room_bytes: Mapped[int | None]  # that an update may take on its disk
    goes_back: Mapped[bool] = mapped_column(server_default=sa.false())  # its agent undoes patches
    # The network, the clock and so on, as it says; None: its agent keeps no conditions.
    surroundings: Mapped[dict[str, Any] | None] = mapped_column(sa.JSON(none_as_null=True))
    deployment_id: Mapped[str | None] = mapped_column(ForeignKey("deployment.id"))  # wanted
    order_seq: Mapped[int]
    order_deployment: Mapped[str | None]  # what the signed order is for
    order_keyid: Mapped[str | None]  # whose signature it carries
    order_body: Mapped[bytes | None]
    order_expires_at: Mapped[datetime | None]
    device: Mapped[Device] = relationship()
    release: Mapped[Release | None] = relationship()
    __table_args__ = (
        Index(None, "model", "running_release"),
        Index(None, "model", "device_id"),
        # The publisher looks for orders to sign on every tick.
        Index(
            "ix_device_model_unsigned",
            "deployment_id",
            sqlite_where=sa.text("deployment_id IS NOT NULL"),
            postgresql_where=sa.text("deployment_id IS NOT NULL"),
        ),
    )
