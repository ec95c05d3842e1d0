"""What the planner needs: of patches, of devices, of the way each went; and floors."""

import sqlalchemy as sa
from alembic import op

revision = "0009"
down_revision = "0008"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    for table in ("patch", "checked_patch"):
        most = sa.Column("memory_bytes", INTEGER, server_default="67108864", nullable=False)
        op.add_column(table, most)
    for name in ("memory_bytes", "room_bytes"):
        op.add_column("device_model", sa.Column(name, INTEGER, nullable=True))
    for table in ("patch", "checked_patch", "device_model"):
        op.add_column(
            table, sa.Column("goes_back", sa.Boolean(), server_default=sa.false(), nullable=False)
        )
    for table, name in (
        ("patch", "ok_count"),
        ("patch", "fail_count"),
        ("device_model", "hops"),
        ("device_model", "hashed_hops"),
    ):
        op.add_column(table, sa.Column(name, INTEGER, server_default="0", nullable=False))
    for table, name in (
        ("patch", "withdrawn"),
        ("deployment", "way"),
        ("deployment", "failed_way"),
    ):
        op.add_column(table, sa.Column(name, sa.String(), server_default="", nullable=False))
    op.create_table(
        "floor",
        sa.Column("release_id", INTEGER, nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["release_id"], ["release.id"], name=op.f("fk_floor_release_id_release")
        ),
        sa.PrimaryKeyConstraint("release_id", name=op.f("pk_floor")),
    )


def downgrade() -> None:
    op.drop_table("floor")
    for table, names in {
        "deployment": ("failed_way", "way"),
        "device_model": ("goes_back", "room_bytes", "memory_bytes", "hashed_hops", "hops"),
        "patch": ("withdrawn", "fail_count", "ok_count", "goes_back", "memory_bytes"),
        "checked_patch": ("goes_back", "memory_bytes"),
    }.items():
        for name in names:
            op.drop_column(table, name)
