"""Hospital streams: DICOM instances, who may send them and is told what is stored, where results go, and the outbox."""

import sqlalchemy as sa
from alembic import op

revision = "0004"
down_revision = "0003"

_TIME = sa.DateTime(timezone=True)


def upgrade() -> None:
    op.add_column(
        "organisations", sa.Column("keeps_patients", sa.Boolean(), server_default=sa.text("false"), nullable=False)
    )
    op.create_table(
        "instances",
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("sop_class_uid", sa.Text(), nullable=False),
        sa.Column("sop_instance_uid", sa.Text(), nullable=False),
        sa.Column("study_uid", sa.Text(), nullable=False),
        sa.Column("series_uid", sa.Text(), nullable=False),
        sa.Column("frame", sa.Integer(), nullable=False),
        sa.Column("frames", sa.Integer(), nullable=False),
        sa.Column("patient", sa.LargeBinary()),
        sa.PrimaryKeyConstraint("prediction_id", name="pk_instances"),
        sa.ForeignKeyConstraint(
            ["prediction_id"], ["predictions.id"], name="fk_instances_prediction_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_instances_owner_id", ondelete="CASCADE"),
        sa.UniqueConstraint(
            "owner_id", "sop_instance_uid", "frame", name="uq_instances_owner_id_sop_instance_uid_frame"
        ),
    )
    op.create_table(
        "senders",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.Column("networks", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("host", sa.Text()),
        sa.Column("port", sa.Integer()),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_senders"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_senders_owner_id", ondelete="CASCADE"),
        sa.UniqueConstraint("ae_title", name="uq_senders_ae_title"),
    )
    op.create_index("ix_senders_owner_id", "senders", ["owner_id"])
    op.create_table(
        "commitments",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("ae_title", sa.Text(), nullable=False),
        sa.Column("transaction_uid", sa.Text(), nullable=False),
        sa.Column("classes", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("instances", sa.ARRAY(sa.Text()), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("due_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_commitments"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_commitments_owner_id", ondelete="CASCADE"),
        sa.UniqueConstraint("ae_title", "transaction_uid", name="uq_commitments_ae_title_transaction_uid"),
    )
    op.create_index("ix_commitments_owner_id", "commitments", ["owner_id"])
    op.create_index("ix_commitments_due_at", "commitments", ["due_at"])
    op.create_table(
        "destinations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("organisation_id", sa.Uuid(), nullable=False),
        sa.Column("kind", sa.Text(), nullable=False),
        sa.Column("address", sa.Text(), nullable=False),
        sa.Column("secret", sa.LargeBinary()),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_destinations"),
        sa.ForeignKeyConstraint(
            ["organisation_id"], ["organisations.id"], name="fk_destinations_organisation_id", ondelete="CASCADE"
        ),
    )
    op.create_index("ix_destinations_organisation_id", "destinations", ["organisation_id"])
    op.create_table(
        "outbox",
        sa.Column("id", sa.BigInteger(), sa.Identity(), nullable=False),
        sa.Column("prediction_id", sa.Uuid(), nullable=False),
        sa.Column("destination_id", sa.Uuid(), nullable=False),
        sa.Column("attempts", sa.Integer(), server_default="0", nullable=False),
        sa.Column("since", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("due_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.Column("delivered_at", _TIME),
        sa.Column("failed_at", _TIME),
        sa.Column("error", sa.Text()),
        sa.PrimaryKeyConstraint("id", name="pk_outbox"),
        sa.ForeignKeyConstraint(
            ["prediction_id"], ["predictions.id"], name="fk_outbox_prediction_id", ondelete="CASCADE"
        ),
        sa.ForeignKeyConstraint(
            ["destination_id"], ["destinations.id"], name="fk_outbox_destination_id", ondelete="CASCADE"
        ),
        sa.UniqueConstraint("prediction_id", "destination_id", name="uq_outbox_prediction_id_destination_id"),
    )
    op.create_index("ix_outbox_destination_id", "outbox", ["destination_id"])
    op.create_index(
        "ix_outbox_due", "outbox", ["destination_id", "due_at"], postgresql_where=sa.text("delivered_at IS NULL")
    )


def downgrade() -> None:
    for table in ("outbox", "destinations", "commitments", "senders", "instances"):
        op.drop_table(table)
    op.drop_column("organisations", "keeps_patients")
