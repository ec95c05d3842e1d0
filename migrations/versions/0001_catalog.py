"""Models, artifacts, signed metadata, releases, patches, devices, tokens."""

import sqlalchemy as sa
from alembic import op

revision = "0001"
down_revision = None
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "api_token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("scopes", sa.JSON(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("revoked_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_api_token")),
    )
    op.create_table(
        "artifact",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("sha256", name=op.f("pk_artifact")),
    )
    op.create_table(
        "device",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("serial", sa.String(), nullable=False),
        sa.Column("hardware", sa.String(), nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("attributes", sa.JSON(), nullable=False),
        sa.Column("tags", sa.JSON(), nullable=False),
        sa.Column("agent_version", sa.String(), nullable=False),
        sa.Column("credential_sha256", sa.String(), nullable=False),
        sa.Column("enrolled_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("last_seen_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "status IN ('active', 'quarantined', 'revoked')", name=op.f("ck_device_status")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_device")),
        sa.UniqueConstraint("serial", name=op.f("uq_device_serial")),
    )
    op.create_table(
        "metadata_file",
        sa.Column("role", sa.String(), nullable=False),
        sa.Column("version", INTEGER, nullable=False),
        sa.Column("body", sa.LargeBinary(), nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("accepted_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("role", "version", name=op.f("pk_metadata_file")),
    )
    op.create_table(
        "model",
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("canary_salt", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint("name", name=op.f("pk_model")),
    )
    op.create_table(
        "canary_set",
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("manifest", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_canary_set_model_model")),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifact.sha256"], name=op.f("fk_canary_set_sha256_artifact")
        ),
        sa.PrimaryKeyConstraint("model", name=op.f("pk_canary_set")),
    )
    op.create_table(
        "release",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("seq", INTEGER, nullable=False),
        sa.Column("status", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("hardware", sa.JSON(), nullable=False),
        sa.Column("rollback_from", sa.JSON(), nullable=False),
        sa.Column("published_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "status IN ('active', 'retired', 'withdrawn')", name=op.f("ck_release_status")
        ),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_release_model_model")),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifact.sha256"], name=op.f("fk_release_sha256_artifact")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_release")),
        sa.UniqueConstraint("model", "name", name=op.f("uq_release_model_name")),
        sa.UniqueConstraint("model", "seq", name=op.f("uq_release_model_seq")),
        sa.UniqueConstraint("model", "sha256", name=op.f("uq_release_model_sha256")),
    )
    op.create_table(
        "patch",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("from_release", INTEGER, nullable=False),
        sa.Column("to_release", INTEGER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.CheckConstraint("kind IN ('sparse', 'hashed', 'exact')", name=op.f("ck_patch_kind")),
        sa.CheckConstraint("from_release <> to_release", name=op.f("ck_patch_edge")),
        sa.ForeignKeyConstraint(
            ["from_release"], ["release.id"], name=op.f("fk_patch_from_release_release")
        ),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_patch_model_model")),
        sa.ForeignKeyConstraint(
            ["sha256"], ["artifact.sha256"], name=op.f("fk_patch_sha256_artifact")
        ),
        sa.ForeignKeyConstraint(
            ["to_release"], ["release.id"], name=op.f("fk_patch_to_release_release")
        ),
        sa.PrimaryKeyConstraint("model", "sha256", name=op.f("pk_patch")),
    )


def downgrade() -> None:
    op.drop_table("patch")
    op.drop_table("release")
    op.drop_table("canary_set")
    op.drop_table("model")
    op.drop_table("metadata_file")
    op.drop_table("device")
    op.drop_table("artifact")
    op.drop_table("api_token")
