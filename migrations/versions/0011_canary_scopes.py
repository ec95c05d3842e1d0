"""Sums by scope, arm and slot; what a report adds to them; batches of devices."""

import sqlalchemy as sa
from alembic import op

revision = "0011"
down_revision = "0009"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")
UNIT, OF, KINDS = 100_000, ("old", "new"), ("sub", "del", "ins")
KEY, SIX = ("rollout_id", "device_id", "report_id"), ("n", "sd", "sdd", "sb", "sbb", "sdb")
MORE = ("arm", "slot", "old_errors", "new_errors", "ref_words")
REPORT = {
    **dict.fromkeys("base_sub base_del base_ins d b chain_d chain_b".split(), INTEGER),
    **dict.fromkeys(("worse_utts", "better_utts"), INTEGER),
    "batch": sa.String(),
    "window_start": sa.DateTime(timezone=True),
}
COUNTERS = (("stage", "finished"), ("stage", "failures"), ("enrollment_token", "admitted"))


def upgrade() -> None:
    for table, name in COUNTERS:
        op.add_column(table, sa.Column(name, INTEGER, nullable=False, server_default="0"))
    for outcome, states in {
        "finished": "'confirmed', 'refused', 'failed'",
        "failures": "'refused', 'failed'",
    }.items():
        op.execute(
            f"UPDATE stage SET {outcome} = (SELECT count(*) FROM deployment d WHERE"
            " d.rollout_id = stage.rollout_id AND d.stage = stage.number"
            f" AND d.direction = 'forward' AND d.state IN ({states}))"
        )
    op.add_column("device", sa.Column("enrolled_by", sa.String(), nullable=True))
    op.add_column("rollout", sa.Column("base_sha256", sa.String(), nullable=True))
    op.add_column("rollout", sa.Column("classes", sa.JSON(none_as_null=True), nullable=True))
    op.add_column("rollout", sa.Column("verified_at", sa.DateTime(timezone=True), nullable=True))
    for name, kind in REPORT.items():
        op.add_column("canary_report", sa.Column(name, kind, nullable=True))
    for name, default in (("arm", "canary"), ("hardware", "")):
        column = sa.Column(name, sa.String(), nullable=False, server_default=default)
        op.add_column("canary_report", column)
    op.execute(
        "UPDATE canary_report SET hardware ="
        " (SELECT hardware FROM device WHERE device.id = canary_report.device_id)"
    )
    _note_contributions()
    op.drop_table("canary_sums")
    _sums("arm", "scope", "slot", more=MORE)
    old, new = (" + ".join(f"{of}_{kind}" for kind in KINDS) for of in OF)
    for scope in ("'all'", "'stage:' || stage", "'hw:' || hardware"):
        op.execute(
            f"INSERT INTO canary_sums (rollout_id, arm, scope, slot, {', '.join(SIX + MORE[2:])})"
            f" SELECT rollout_id, 'canary', {scope}, 0, count(*), sum(d), sum(d * d), sum(b),"
            f" sum(b * b), sum(d * b), sum({old}), sum({new}), sum(ref_words)"
            f" FROM canary_report WHERE counted GROUP BY 1, 2, 3"
        )


def _note_contributions() -> None:
    """Write down what the pairs that were counted so far had added."""
    report = sa.table("canary_report", *map(sa.column, [*KEY, "counted", "ref_words", "d", "b"]))
    counts = [sum(sa.literal_column(f"{of}_{kind}") for kind in KINDS) for of in OF]
    rollout = sa.table("rollout", sa.column("id"), sa.column("gate", sa.JSON))
    rows = sa.select(*(report.c[name] for name in (*KEY, "ref_words")), *counts, rollout.c.gate)
    rows = rows.join_from(report, rollout, rollout.c.id == report.c.rollout_id)
    connection = op.get_bind()
    for *key, words, old, new, gate in connection.execute(rows.where(report.c.counted)).all():
        clip, cap = round(gate["clip"] * UNIT), round(gate["base_cap"] * UNIT)
        d, b = round((new - old) * UNIT / words), round(old * UNIT / words)
        same = (report.c[name] == value for name, value in zip(KEY, key, strict=True))
        added = {"d": max(-clip, min(clip, d)), "b": min(cap, b)}
        connection.execute(sa.update(report).where(*same).values(added))


def _sums(*key: str, more: tuple[str, ...] = ()) -> None:
    texts = {"rollout_id", "scope", "arm"}
    checks = [sa.CheckConstraint("arm IN ('canary', 'control')", name=op.f("ck_canary_sums_arm"))]
    columns = ["rollout_id", *key, *SIX, *(name for name in more if name not in key)]
    op.create_table(
        "canary_sums",
        *(
            sa.Column(name, sa.String() if name in texts else INTEGER, nullable=False)
            for name in columns
        ),
        *(checks if "arm" in key else []),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_canary_sums_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout_id", *key, name=op.f("pk_canary_sums")),
    )


def downgrade() -> None:
    op.drop_table("canary_sums")
    _sums("scope")
    for name in (*REPORT, "arm", "hardware"):
        op.drop_column("canary_report", name)
    op.drop_column("rollout", "verified_at")
    op.drop_column("rollout", "classes")
    op.drop_column("rollout", "base_sha256")
    op.drop_column("device", "enrolled_by")
    for table, name in COUNTERS:
        op.drop_column(table, name)
