"""Devices that sign their requests; a patch is checked as the kind that it is signed as."""

import sqlalchemy as sa
from alembic import op

revision = "0008"
down_revision = "0005"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    _checked_patch("sha256", "from_sha256", "to_sha256", "kind")
    op.add_column("device", sa.Column("signed_number", INTEGER, nullable=True))


def downgrade() -> None:
    op.drop_column("device", "signed_number")
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
