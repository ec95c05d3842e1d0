"""The oldest agent that can install a release."""

import sqlalchemy as sa
from alembic import op

revision = "0007"
down_revision = "0006"
branch_labels = None
depends_on = None


def upgrade() -> None:
    op.add_column("release", sa.Column("min_agent", sa.String(), nullable=False, server_default=""))


def downgrade() -> None:
    op.drop_column("release", "min_agent")
