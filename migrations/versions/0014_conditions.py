"""What a rollout asks of its devices, what it may cost, and when a device tries again."""

import sqlalchemy as sa
from alembic import op

revision = "0014"
down_revision = "0013"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "budget",
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("per_minute_max", INTEGER, nullable=True),
        sa.Column("bytes_max", INTEGER, nullable=True),
        sa.Column("minute", INTEGER, nullable=False),
        sa.Column("granted", INTEGER, nullable=False),
        sa.Column("bytes_committed", INTEGER, nullable=False),
        sa.CheckConstraint("bytes_committed >= 0", name=op.f("ck_budget_bytes_committed")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_budget_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout_id", name=op.f("pk_budget")),
    )
    op.add_column(
        "rollout", sa.Column("conditions", sa.JSON(), server_default="{}", nullable=False)
    )
    op.add_column("rollout", sa.Column("priority", INTEGER, server_default="0", nullable=False))
    op.add_column(
        "rollout", sa.Column("include_new", sa.Boolean(), server_default=sa.true(), nullable=False)
    )
    op.add_column("device_model", sa.Column("surroundings", sa.JSON(none_as_null=True)))
    op.add_column(
        "deployment", sa.Column("bytes_reserved", INTEGER, server_default="0", nullable=False)
    )
    op.add_column("deployment", sa.Column("failures", INTEGER, server_default="0", nullable=False))
    op.add_column("deployment", sa.Column("retry_at", sa.DateTime(timezone=True), nullable=True))


def downgrade() -> None:
    op.drop_column("deployment", "retry_at")
    op.drop_column("deployment", "failures")
    op.drop_column("deployment", "bytes_reserved")
    op.drop_column("device_model", "surroundings")
    op.drop_column("rollout", "include_new")
    op.drop_column("rollout", "priority")
    op.drop_column("rollout", "conditions")
    op.drop_table("budget")
