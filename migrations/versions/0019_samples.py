"""What is asked of a fleet however large: the next devices of a model by id, and who is inactive."""

import sqlalchemy as sa
from alembic import op

revision = "0019"
down_revision = "0018"
branch_labels = None
depends_on = None

INACTIVE = sa.text("status <> 'active'")


def upgrade() -> None:
    op.create_index("ix_device_model_model_device_id", "device_model", ["model", "device_id"])
    op.create_index(
        "ix_device_inactive", "device", ["id"], sqlite_where=INACTIVE, postgresql_where=INACTIVE
    )


def downgrade() -> None:
    op.drop_index("ix_device_inactive", "device")
    op.drop_index("ix_device_model_model_device_id", "device_model")
