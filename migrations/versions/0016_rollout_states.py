"""When a rollout starts, what holds it and since when, and what a person saw of it then."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0015"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LAST_DECISION = (
    "SELECT max(at) FROM rollout_decision WHERE rollout_decision.rollout_id = rollout.id"
)


BEFORE = "'draft', 'awaiting_approval', 'running', 'paused', 'completed', 'halted', 'canceled'"
AFTER = BEFORE.replace("'running'", "'scheduled', 'running'")


def upgrade() -> None:
    with op.batch_alter_table("rollout") as table:
        table.add_column(sa.Column("start_at", sa.DateTime(timezone=True), nullable=True))
        _allow(table, AFTER)
        table.add_column(sa.Column("paused_at", sa.DateTime(timezone=True), nullable=True))
        for name in ("finished_before", "failures_before"):
            table.add_column(sa.Column(name, INTEGER, server_default="0", nullable=False))
        table.add_column(
            sa.Column("full_downloads", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
    op.execute(f"UPDATE rollout SET paused_at = ({LAST_DECISION}) WHERE state = 'paused'")
    op.execute(
        "UPDATE rollout SET paused_at = created_at WHERE state = 'paused' AND paused_at IS NULL"
    )
    with op.batch_alter_table("rollout") as table:
        table.create_check_constraint(
            op.f("ck_rollout_paused"), "(state = 'paused') = (paused_at IS NOT NULL)"
        )


def downgrade() -> None:
    op.execute("UPDATE rollout SET state = 'draft' WHERE state = 'scheduled'")
    with op.batch_alter_table("rollout") as table:
        table.drop_constraint(op.f("ck_rollout_paused"), type_="check")
        _allow(table, BEFORE)
        for name in (
            "start_at",
            "paused_at",
            "finished_before",
            "failures_before",
            "full_downloads",
        ):
            table.drop_column(name)


def _allow(table: "op.BatchOperations", states: str) -> None:
    table.drop_constraint(op.f("ck_rollout_state"), type_="check")
    table.create_check_constraint(op.f("ck_rollout_state"), f"state IN ({states})")
