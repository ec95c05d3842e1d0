"""Which artifacts nothing needs any more, since when, and which are deleted for it."""

import sqlalchemy as sa
from alembic import op

revision = "0017"
down_revision = "0016"
branch_labels = None
depends_on = None


def upgrade() -> None:
    with op.batch_alter_table("artifact") as table:
        table.add_column(sa.Column("state", sa.String(), server_default="stored", nullable=False))
        table.add_column(sa.Column("unneeded_since", sa.DateTime(timezone=True), nullable=True))
        table.add_column(sa.Column("deleted_at", sa.DateTime(timezone=True), nullable=True))
        table.create_check_constraint(
            op.f("ck_artifact_state"), "state IN ('stored', 'deleting', 'deleted')"
        )


def downgrade() -> None:
    with op.batch_alter_table("artifact") as table:
        table.drop_constraint(op.f("ck_artifact_state"), type_="check")
        table.drop_column("deleted_at")
        table.drop_column("unneeded_since")
        table.drop_column("state")
