"""Each model counts its changes, so that who remembers what it read knows whether it still is."""

import sqlalchemy as sa
from alembic import op

revision = "0018"
down_revision = "0017"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.add_column("model", sa.Column("generation", INTEGER, server_default="0", nullable=False))


def downgrade() -> None:
    op.drop_column("model", "generation")
