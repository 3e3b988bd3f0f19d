"""Organisations, roles, second factor, sign-on, key scopes, password resets, lesions, rate counts and the audit chain."""

import sqlalchemy as sa
from alembic import op

from dermserve.errors import StartupError

revision = "0002"
down_revision = "0001"

_TIME = sa.DateTime(timezone=True)
_TEXTS: sa.ARRAY[str] = sa.ARRAY(sa.Text())


def upgrade() -> None:
    op.create_table(
        "organisations",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("retention_days", sa.Integer()),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_organisations"),
        sa.UniqueConstraint("name", name="uq_organisations_name"),
    )
    op.add_column("users", sa.Column("role", sa.Text(), server_default="clinician", nullable=False))
    op.execute("UPDATE users SET role = 'admin' WHERE is_admin")
    op.execute("UPDATE users SET role = 'hospital' WHERE email LIKE 'service:%'")
    op.drop_column("users", "is_admin")
    op.add_column("users", sa.Column("organisation_id", sa.Uuid()))
    op.add_column("users", sa.Column("totp_secret", sa.LargeBinary()))
    op.add_column("users", sa.Column("totp_since", _TIME))
    op.add_column("users", sa.Column("totp_last_step", sa.BigInteger()))
    op.add_column("users", sa.Column("issuer", sa.Text()))
    op.add_column("users", sa.Column("subject", sa.Text()))
    op.add_column("users", sa.Column("disabled_at", _TIME))
    op.create_foreign_key(
        "fk_users_organisation_id", "users", "organisations", ["organisation_id"], ["id"], ondelete="SET NULL"
    )
    op.create_index("ix_users_organisation_id", "users", ["organisation_id"])
    op.create_unique_constraint("uq_users_issuer_subject", "users", ["issuer", "subject"])

    op.add_column(
        "web_sessions", sa.Column("id", sa.Uuid(), server_default=sa.text("gen_random_uuid()"), nullable=False)
    )
    op.add_column("web_sessions", sa.Column("agent", sa.Text(), server_default="", nullable=False))
    op.create_unique_constraint("uq_web_sessions_id", "web_sessions", ["id"])
    op.add_column(
        "api_keys", sa.Column("scopes", _TEXTS, server_default=sa.text("'{predict,read,delete}'"), nullable=False)
    )
    op.add_column("api_keys", sa.Column("expires_at", _TIME))

    op.create_table(
        "password_resets",
        sa.Column("token_sha256", sa.LargeBinary(), nullable=False),
        sa.Column("user_id", sa.Uuid(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("token_sha256", name="pk_password_resets"),
        sa.ForeignKeyConstraint(["user_id"], ["users.id"], name="fk_password_resets_user_id", ondelete="CASCADE"),
    )
    op.create_index("ix_password_resets_user_id", "password_resets", ["user_id"])

    op.create_table(
        "audit",
        sa.Column("number", sa.BigInteger(), autoincrement=False, nullable=False),
        sa.Column("at", _TIME, nullable=False),
        sa.Column("actor", sa.Uuid()),
        sa.Column("action", sa.Text(), nullable=False),
        sa.Column("object", sa.Text(), nullable=False),
        sa.Column("hash", sa.LargeBinary(), nullable=False),
        sa.PrimaryKeyConstraint("number", name="pk_audit"),
    )
    op.create_index("ix_audit_actor", "audit", ["actor"])
    op.execute(
        "CREATE FUNCTION audit_refuse() RETURNS trigger LANGUAGE plpgsql AS "
        "$$ BEGIN RAISE EXCEPTION 'the audit is append-only' USING ERRCODE = 'insufficient_privilege'; END $$"
    )
    op.execute(
        "CREATE TRIGGER audit_append_only BEFORE UPDATE OR DELETE OR TRUNCATE ON audit "
        "FOR EACH STATEMENT EXECUTE FUNCTION audit_refuse()"
    )

    op.create_table(
        "rate_counts",
        sa.Column("key", sa.Text(), nullable=False),
        sa.Column("count", sa.Integer(), nullable=False),
        sa.Column("expires_at", _TIME, nullable=False),
        sa.PrimaryKeyConstraint("key", name="pk_rate_counts"),
    )
    op.create_index("ix_rate_counts_expires_at", "rate_counts", ["expires_at"])

    op.create_table(
        "lesions",
        sa.Column("id", sa.Uuid(), nullable=False),
        sa.Column("owner_id", sa.Uuid(), nullable=False),
        sa.Column("name", sa.Text(), nullable=False),
        sa.Column("body_site", sa.Text()),
        sa.Column("created_at", _TIME, server_default=sa.func.now(), nullable=False),
        sa.PrimaryKeyConstraint("id", name="pk_lesions"),
        sa.UniqueConstraint("owner_id", "name", name="uq_lesions_owner_id_name"),
        sa.ForeignKeyConstraint(["owner_id"], ["users.id"], name="fk_lesions_owner_id", ondelete="CASCADE"),
    )
    op.add_column("predictions", sa.Column("lesion_id", sa.Uuid()))
    op.add_column("predictions", sa.Column("body_site", sa.Text()))
    op.add_column("predictions", sa.Column("note", sa.Text()))
    op.create_foreign_key(
        "fk_predictions_lesion_id", "predictions", "lesions", ["lesion_id"], ["id"], ondelete="SET NULL"
    )
    op.create_index("ix_predictions_lesion_id", "predictions", ["lesion_id"])


_BARRED = {
    "disabled accounts": "SELECT count(*) FROM users WHERE disabled_at IS NOT NULL",
    "accounts with a second factor": "SELECT count(*) FROM users WHERE totp_since IS NOT NULL",
    "keys in use with an end or for part of the scopes": (
        "SELECT count(*) FROM api_keys WHERE revoked_at IS NULL "
        "AND (expires_at IS NOT NULL OR NOT scopes @> '{predict,read,delete}')"
    ),
}
"""What the older schema cannot hold, so that it would open again: counted before anything is dropped."""


def downgrade() -> None:
    """Raises StartupError while there is something that the older schema would open again."""
    found = {what: op.get_bind().execute(sa.text(query)).scalar_one() for what, query in _BARRED.items()}
    if any(found.values()):
        counts = ", ".join(f"{count} {what}" for what, count in found.items() if count)
        raise StartupError(f"The older schema would open what is barred: {counts}. Delete, end or revoke them first.")
    for column in ("lesion_id", "body_site", "note"):
        op.drop_column("predictions", column)
    for table in ("lesions", "rate_counts", "audit", "password_resets"):
        op.drop_table(table)
    op.execute("DROP FUNCTION audit_refuse()")
    for table, columns in (("api_keys", ("scopes", "expires_at")), ("web_sessions", ("id", "agent"))):
        for column in columns:
            op.drop_column(table, column)
    op.add_column("users", sa.Column("is_admin", sa.Boolean(), server_default="false", nullable=False))
    op.execute("UPDATE users SET is_admin = (role = 'admin')")
    for column in (
        "role", "organisation_id", "totp_secret", "totp_since", "totp_last_step", "issuer", "subject", "disabled_at"
    ):  # fmt: skip
        op.drop_column("users", column)
    op.drop_table("organisations")
