"""Who made a rollout, who asked for it, for how many devices, and who approved that."""

import sqlalchemy as sa
from alembic import op

revision = "0006"
down_revision = "0005"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
BEFORE = "'draft', 'running', 'paused', 'completed', 'halted', 'canceled'"
AFTER = BEFORE.replace("'running'", "'awaiting_approval', 'running'")


def upgrade() -> None:
    with op.batch_alter_table("rollout") as table:
        table.add_column(sa.Column("created_by", sa.String(), nullable=True))
        table.add_column(sa.Column("asked_by", sa.String(), nullable=True))
        table.add_column(sa.Column("devices", INTEGER, nullable=True))
        table.add_column(sa.Column("approvals", sa.JSON(none_as_null=True), nullable=True))
        _allow(table, AFTER)


def downgrade() -> None:
    op.execute("UPDATE rollout SET state = 'draft' WHERE state = 'awaiting_approval'")
    with op.batch_alter_table("rollout") as table:
        for name in ("created_by", "asked_by", "devices", "approvals"):
            table.drop_column(name)
        _allow(table, BEFORE)


def _allow(table: "op.BatchOperations", states: str) -> None:
    table.drop_constraint(op.f("ck_rollout_state"), type_="check")
    table.create_check_constraint(op.f("ck_rollout_state"), f"state IN ({states})")
