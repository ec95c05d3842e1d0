"""What a canary report tells without a reference, and what it adds to each signal."""

import sqlalchemy as sa
from alembic import op

revision = "0015"
down_revision = "0014"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
NUMBERS = "differ_utts old_empty new_empty differ_d empty_d latency_d".split()


def upgrade() -> None:
    for name in NUMBERS:
        op.add_column("canary_report", sa.Column(name, INTEGER, nullable=True))
    op.add_column("canary_report", sa.Column("together", sa.Boolean(), nullable=True))


def downgrade() -> None:
    for name in ("together", *NUMBERS):
        op.drop_column("canary_report", name)
