"""The publisher's state, the key of each order, and the patches that were applied on upload."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "publisher_state",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("round_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("problems", sa.JSON(), nullable=False),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_publisher_state")),
    )
    op.create_table(
        "checked_patch",
        sa.Column("sha256", sa.String(), nullable=False),
        sa.Column("from_sha256", sa.String(), nullable=False),
        sa.Column("to_sha256", sa.String(), nullable=False),
        sa.Column("checked_at", sa.DateTime(timezone=True), nullable=False),
        sa.PrimaryKeyConstraint(
            "sha256", "from_sha256", "to_sha256", name=op.f("pk_checked_patch")
        ),
    )
    op.add_column("device_model", sa.Column("order_keyid", sa.String(), nullable=True))


def downgrade() -> None:
    op.drop_column("device_model", "order_keyid")
    op.drop_table("checked_patch")
    op.drop_table("publisher_state")
