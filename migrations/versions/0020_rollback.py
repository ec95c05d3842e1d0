"""Rollouts that lead back, and until when the family signs a way back."""

import sqlalchemy as sa
from alembic import op

revision = "0020"
down_revision = "0019"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column(
        "rollout", sa.Column("rollback", sa.Boolean(), server_default=sa.false(), nullable=False)
    )
    op.add_column(
        "release", sa.Column("rollback_until", INTEGER, server_default="0", nullable=False)
    )


def downgrade() -> None:
    op.drop_column("release", "rollback_until")
    op.drop_column("rollout", "rollback")
