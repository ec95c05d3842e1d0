"""What was measured before a release was signed; until when a canary set is good."""

import sqlalchemy as sa
from alembic import op

revision = "0013"
down_revision = "0012"
branch_labels = None
depends_on = None


def upgrade() -> None:
    evaluation = sa.Column("evaluation", sa.JSON(none_as_null=True), nullable=True)
    op.add_column("release", evaluation)
    expires_at = sa.Column("expires_at", sa.DateTime(timezone=True), nullable=True)
    op.add_column("canary_set", expires_at)


def downgrade() -> None:
    op.drop_column("canary_set", "expires_at")
    op.drop_column("release", "evaluation")
