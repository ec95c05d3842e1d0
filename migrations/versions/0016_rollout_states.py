"""What holds a rollout, since when, and what a person saw of it when he let it go on."""

import sqlalchemy as sa
from alembic import op

revision = "0016"
down_revision = "0014"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
LAST_DECISION = (
    "SELECT max(at) FROM rollout_decision WHERE rollout_decision.rollout_id = rollout.id"
)


def upgrade() -> None:
    with op.batch_alter_table("rollout") as table:
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
    with op.batch_alter_table("rollout") as table:
        table.drop_constraint(op.f("ck_rollout_paused"), type_="check")
        for name in ("paused_at", "finished_before", "failures_before", "full_downloads"):
            table.drop_column(name)
