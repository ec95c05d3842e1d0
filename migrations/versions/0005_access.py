"""The audit log; where a token may come from; credentials that are renewed."""

import sqlalchemy as sa
from alembic import op

revision = "0005"
down_revision = "0004"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "audit_entry",
        sa.Column("seq", INTEGER, autoincrement=False, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("action", sa.String(), nullable=False),
        sa.Column("object", sa.String(), nullable=False),
        sa.Column("result", sa.String(), nullable=False),
        sa.Column("details", sa.JSON(), nullable=False),
        sa.Column("ip", sa.String(), nullable=False),
        sa.Column("request_id", sa.String(), nullable=False),
        sa.Column("previous_sha256", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.CheckConstraint("result IN ('done', 'denied')", name=op.f("ck_audit_entry_result")),
        sa.PrimaryKeyConstraint("seq", name=op.f("pk_audit_entry")),
    )
    head = op.create_table(
        "audit_head",
        sa.Column("id", INTEGER, autoincrement=False, nullable=False),
        sa.Column("seq", INTEGER, nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("signed_at", sa.DateTime(timezone=True), nullable=True),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_audit_head")),
    )
    op.add_column("api_token", sa.Column("last_used_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("api_token", sa.Column("networks", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("device", sa.Column("next_credential_sha256", sa.String(), nullable=True))
    op.add_column("device", sa.Column("old_credential_sha256", sa.String(), nullable=True))
    op.add_column("device", sa.Column("renewed_at", sa.DateTime(timezone=True), nullable=True))
    op.add_column("device", sa.Column("certificate_sha256", sa.String(), nullable=True))
    op.bulk_insert(head, [{"id": 1, "seq": 0, "sha256": "0" * 64}])


def downgrade() -> None:
    op.drop_column("device", "certificate_sha256")
    op.drop_column("device", "renewed_at")
    op.drop_column("device", "old_credential_sha256")
    op.drop_column("device", "next_credential_sha256")
    op.drop_column("api_token", "networks")
    op.drop_column("api_token", "last_used_at")
    op.drop_table("audit_head")
    op.drop_table("audit_entry")
