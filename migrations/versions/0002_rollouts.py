"""Cohorts, rollouts, deployments, events, canary reports, decisions."""

import sqlalchemy as sa
from alembic import op

revision = "0002"
down_revision = "0001"
branch_labels = None
depends_on = None

INTEGER = sa.BigInteger().with_variant(sa.Integer(), "sqlite")


def upgrade() -> None:
    op.create_table(
        "cohort",
        sa.Column("id", INTEGER, nullable=False),
        sa.Column("name", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("filter", sa.JSON(none_as_null=True), nullable=True),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_cohort_model_model")),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_cohort")),
        sa.UniqueConstraint("name", name=op.f("uq_cohort_name")),
    )
    op.create_table(
        "event",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("seq", INTEGER, nullable=False),
        sa.Column("kind", sa.String(), nullable=False),
        sa.Column("deployment_id", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("detail", sa.String(), nullable=False),
        sa.Column("bytes", INTEGER, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["device.id"], name=op.f("fk_event_device_id_device")
        ),
        sa.PrimaryKeyConstraint("device_id", "seq", name=op.f("pk_event")),
    )
    op.create_table(
        "cohort_member",
        sa.Column("cohort_id", INTEGER, nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.ForeignKeyConstraint(
            ["cohort_id"], ["cohort.id"], name=op.f("fk_cohort_member_cohort_id_cohort")
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["device.id"], name=op.f("fk_cohort_member_device_id_device")
        ),
        sa.PrimaryKeyConstraint("cohort_id", "device_id", name=op.f("pk_cohort_member")),
    )
    op.create_table(
        "enrollment_token",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("secret_sha256", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("cohort_id", INTEGER, nullable=True),
        sa.Column("uses_left", INTEGER, nullable=False),
        sa.Column("expires_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint("uses_left >= 0", name=op.f("ck_enrollment_token_uses")),
        sa.ForeignKeyConstraint(
            ["cohort_id"], ["cohort.id"], name=op.f("fk_enrollment_token_cohort_id_cohort")
        ),
        sa.ForeignKeyConstraint(
            ["model"], ["model.name"], name=op.f("fk_enrollment_token_model_model")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_enrollment_token")),
    )
    op.create_table(
        "rollout",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("release_id", INTEGER, nullable=False),
        sa.Column("cohort_id", INTEGER, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reasons", sa.JSON(), nullable=False),
        sa.Column("stage", INTEGER, nullable=False),
        sa.Column("generation", INTEGER, nullable=False),
        sa.Column("salt", sa.String(), nullable=False),
        sa.Column("gate", sa.JSON(), nullable=False),
        sa.Column("gate_sha256", sa.String(), nullable=False),
        sa.Column("on_halt", sa.String(), nullable=False),
        sa.Column("halt_reason", sa.String(), nullable=False),
        sa.Column("waiting_for", sa.String(), nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.Column("finished_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint("on_halt IN ('keep', 'revert')", name=op.f("ck_rollout_on_halt")),
        sa.CheckConstraint(
            "state IN ('draft', 'running', 'paused', 'completed', 'halted', 'canceled')",
            name=op.f("ck_rollout_state"),
        ),
        sa.ForeignKeyConstraint(
            ["cohort_id"], ["cohort.id"], name=op.f("fk_rollout_cohort_id_cohort")
        ),
        sa.ForeignKeyConstraint(["model"], ["model.name"], name=op.f("fk_rollout_model_model")),
        sa.ForeignKeyConstraint(
            ["release_id"], ["release.id"], name=op.f("fk_rollout_release_id_release")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_rollout")),
    )
    op.create_index(op.f("ix_rollout_model_state"), "rollout", ["model", "state"], unique=False)
    op.create_table(
        "canary_report",
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("report_id", sa.String(), nullable=False),
        sa.Column("stage", INTEGER, nullable=False),
        sa.Column("counted", sa.Boolean(), nullable=False),
        sa.Column("canary_set", sa.String(), nullable=False),
        sa.Column("shard", sa.String(), nullable=False),
        sa.Column("runtime", sa.String(), nullable=False),
        sa.Column("gate", sa.String(), nullable=False),
        sa.Column("ref_words", INTEGER, nullable=False),
        sa.Column("old_sub", INTEGER, nullable=False),
        sa.Column("old_del", INTEGER, nullable=False),
        sa.Column("old_ins", INTEGER, nullable=False),
        sa.Column("new_sub", INTEGER, nullable=False),
        sa.Column("new_del", INTEGER, nullable=False),
        sa.Column("new_ins", INTEGER, nullable=False),
        sa.Column("old_ms", INTEGER, nullable=False),
        sa.Column("new_ms", INTEGER, nullable=False),
        sa.Column("received_at", sa.DateTime(timezone=True), nullable=False),
        sa.ForeignKeyConstraint(
            ["device_id"], ["device.id"], name=op.f("fk_canary_report_device_id_device")
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_canary_report_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint(
            "rollout_id", "device_id", "report_id", name=op.f("pk_canary_report")
        ),
    )
    op.create_index(
        "uq_canary_report_first_pair",
        "canary_report",
        ["rollout_id", "device_id"],
        unique=True,
        sqlite_where=sa.text("counted"),
        postgresql_where=sa.text("counted"),
    )
    op.create_table(
        "canary_sums",
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("scope", sa.String(), nullable=False),
        sa.Column("n", INTEGER, nullable=False),
        sa.Column("sd", INTEGER, nullable=False),
        sa.Column("sdd", INTEGER, nullable=False),
        sa.Column("sb", INTEGER, nullable=False),
        sa.Column("sbb", INTEGER, nullable=False),
        sa.Column("sdb", INTEGER, nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_canary_sums_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "scope", name=op.f("pk_canary_sums")),
    )
    op.create_table(
        "deployment",
        sa.Column("id", sa.String(), nullable=False),
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("direction", sa.String(), nullable=False),
        sa.Column("stage", INTEGER, nullable=False),
        sa.Column("from_sha256", sa.String(), nullable=False),
        sa.Column("to_sha256", sa.String(), nullable=False),
        sa.Column("release_id", INTEGER, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("bytes_sent", INTEGER, nullable=False),
        sa.Column("created_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("updated_at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("deadline_at", sa.DateTime(timezone=True), nullable=False),
        sa.CheckConstraint(
            "direction IN ('forward', 'back')", name=op.f("ck_deployment_direction")
        ),
        sa.CheckConstraint(
            "state IN ('offered', 'downloading', 'applied', 'activated', 'confirmed', 'refused', 'failed', 'canceled', 'rolled_back')",
            name=op.f("ck_deployment_state"),
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["device.id"], name=op.f("fk_deployment_device_id_device")
        ),
        sa.ForeignKeyConstraint(
            ["release_id"], ["release.id"], name=op.f("fk_deployment_release_id_release")
        ),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_deployment_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("id", name=op.f("pk_deployment")),
        sa.UniqueConstraint(
            "rollout_id",
            "device_id",
            "direction",
            name=op.f("uq_deployment_rollout_id_device_id_direction"),
        ),
    )
    op.create_index(op.f("ix_deployment_device_id"), "deployment", ["device_id"], unique=False)
    op.create_index(
        op.f("ix_deployment_rollout_id_state"), "deployment", ["rollout_id", "state"], unique=False
    )
    op.create_table(
        "rollout_decision",
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("seq", INTEGER, nullable=False),
        sa.Column("at", sa.DateTime(timezone=True), nullable=False),
        sa.Column("stage", INTEGER, nullable=False),
        sa.Column("decision", sa.String(), nullable=False),
        sa.Column("reason", sa.String(), nullable=False),
        sa.Column("actor", sa.String(), nullable=False),
        sa.Column("evidence", sa.JSON(), nullable=False),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_rollout_decision_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "seq", name=op.f("pk_rollout_decision")),
    )
    op.create_table(
        "stage",
        sa.Column("rollout_id", sa.String(), nullable=False),
        sa.Column("number", INTEGER, nullable=False),
        sa.Column("share_bp", INTEGER, nullable=False),
        sa.Column("soak_s", INTEGER, nullable=False),
        sa.Column("in_flight_max", INTEGER, nullable=True),
        sa.Column("in_flight", INTEGER, nullable=False),
        sa.Column("state", sa.String(), nullable=False),
        sa.Column("started_at", sa.DateTime(timezone=True), nullable=True),
        sa.CheckConstraint(
            "state IN ('waiting', 'running', 'passed', 'halted')", name=op.f("ck_stage_state")
        ),
        sa.CheckConstraint("in_flight >= 0", name=op.f("ck_stage_in_flight")),
        sa.CheckConstraint("share_bp BETWEEN 1 AND 10000", name=op.f("ck_stage_share")),
        sa.ForeignKeyConstraint(
            ["rollout_id"], ["rollout.id"], name=op.f("fk_stage_rollout_id_rollout")
        ),
        sa.PrimaryKeyConstraint("rollout_id", "number", name=op.f("pk_stage")),
    )
    op.create_table(
        "device_model",
        sa.Column("device_id", sa.String(), nullable=False),
        sa.Column("model", sa.String(), nullable=False),
        sa.Column("running_sha256", sa.String(), nullable=False),
        sa.Column("running_release", INTEGER, nullable=True),
        sa.Column("deployment_id", sa.String(), nullable=True),
        sa.Column("order_seq", INTEGER, nullable=False),
        sa.Column("order_deployment", sa.String(), nullable=True),
        sa.Column("order_body", sa.LargeBinary(), nullable=True),
        sa.Column("order_expires_at", sa.DateTime(timezone=True), nullable=True),
        sa.ForeignKeyConstraint(
            ["deployment_id"],
            ["deployment.id"],
            name=op.f("fk_device_model_deployment_id_deployment"),
        ),
        sa.ForeignKeyConstraint(
            ["device_id"], ["device.id"], name=op.f("fk_device_model_device_id_device")
        ),
        sa.ForeignKeyConstraint(
            ["model"], ["model.name"], name=op.f("fk_device_model_model_model")
        ),
        sa.ForeignKeyConstraint(
            ["running_release"],
            ["release.id"],
            name=op.f("fk_device_model_running_release_release"),
        ),
        sa.PrimaryKeyConstraint("device_id", name=op.f("pk_device_model")),
    )
    op.create_index(
        op.f("ix_device_model_model_running_release"),
        "device_model",
        ["model", "running_release"],
        unique=False,
    )
    op.create_index(
        "ix_device_model_unsigned",
        "device_model",
        ["deployment_id"],
        unique=False,
        sqlite_where=sa.text("deployment_id IS NOT NULL"),
        postgresql_where=sa.text("deployment_id IS NOT NULL"),
    )


def downgrade() -> None:
    op.drop_table("device_model")
    op.drop_table("stage")
    op.drop_table("rollout_decision")
    op.drop_table("deployment")
    op.drop_table("canary_sums")
    op.drop_table("canary_report")
    op.drop_table("rollout")
    op.drop_table("enrollment_token")
    op.drop_table("cohort_member")
    op.drop_table("event")
    op.drop_table("cohort")
