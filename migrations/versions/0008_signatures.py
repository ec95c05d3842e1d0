"""Devices that sign; who uploaded what; a patch is checked as the kind that it is signed as."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0007"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _checked_patch("sha256", "from_sha256", "to_sha256", "kind")
    op.create_table(
        "upload",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("principal", sa.String(), nullable=False),
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("used", sa.Boolean(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_upload")),
    )
    op.create_index(op.f("ix_upload_principal_at"), "upload", ["principal", "at"])
    op.add_column("device", sa.Column("signed_number", INTEGER, nullable=True))


def downgrade() -> None:
    op.drop_column("device", "signed_number")
    op.drop_table("upload")
    _checked_patch("sha256", "from_sha256", "to_sha256")


def _checked_patch(*key: str) -> None:
    """Make the table anew, empty: what it remembered is found out again when it is asked for."""
    op.drop_table("checked_patch")
    op.create_table(
        "checked_patch",
        *(sa.Column(name, sa.String(), nullable=False) for name in key),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(*key, name=op.f("pk_checked_patch")),
    )
