"""What became of a stage's deployments, kept as it comes about: no view has to count them."""

import sqlalchemy as sa
from alembic import op

revision = "0022"
down_revision = "0021"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
FORWARD = ("confirmed", "refused", "failed", "canceled")
WHICH = {name: f"direction = 'forward' AND state = '{name}'" for name in FORWARD}
WHICH["rolled_back"] = "direction = 'back' AND state = 'rolled_back'"
SUMS = {name: f"count(CASE WHEN {of} THEN 1 END)" for name, of in WHICH.items()}
SUMS["bytes_sent"] = "sum(bytes_sent)"


def upgrade() -> None:
    for name in SUMS:
        op.add_column("stage", sa.Column(name, INTEGER, server_default="0", nullable=False))
    found = ", ".join(f"{of} AS {name}" for name, of in SUMS.items())
    op.execute(
        f"UPDATE stage SET {', '.join(f'{name} = found.{name}' for name in SUMS)} FROM "
        f"(SELECT rollout_id, stage, {found} FROM deployment GROUP BY rollout_id, stage) AS found "
        "WHERE found.rollout_id = stage.rollout_id AND found.stage = stage.number"
    )


def downgrade() -> None:
    for name in SUMS:
        op.drop_column("stage", name)
