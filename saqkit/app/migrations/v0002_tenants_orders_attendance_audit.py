"""Tenants and institutions, orders, attendance, audit; tenants that have people are known."""

from __future__ import annotations

import time

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0002"
down_revision = None


def upgrade(op: Operations) -> None:
    op.create_table(
        "tenants",
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    known = sa.text(
        "INSERT INTO tenants (name, title, created_at)"
        " SELECT DISTINCT tenant, '', CAST(:now AS DOUBLE PRECISION) FROM users WHERE tenant <> ''"
    )
    op.get_bind().execute(known, {"now": time.time()})
    op.create_table(
        "institutions",
        sa.Column("tenant", sa.Text, sa.ForeignKey("tenants.name"), primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
    )
    op.create_index("users_by_tenant", "users", ["tenant", "id"])
    op.create_table(
        "orders",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("key", sa.Text),
        sa.Column("event_id", sa.Integer, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("job_type", sa.Text, nullable=False),
        sa.Column("amount_minor", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("charge_key", sa.Text, nullable=False, unique=True),
        sa.Column("charge_id", sa.Text, nullable=False),
        sa.Column("error", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("asked_at", sa.Double),
        sa.Column("settled_at", sa.Double),
        sa.Column("settled_by", sa.Text, nullable=False),
        sa.UniqueConstraint("tenant", "key"),
        sa.UniqueConstraint("event_id", "user_id"),
        sa.CheckConstraint("state IN ('new', 'charging', 'paid', 'declined')", name="orders_state"),
        sqlite_autoincrement=True,
    )
    charging, confirmed = sa.text("state = 'charging'"), sa.text("settled_by = 'confirmation'")
    op.create_index("orders_charging", "orders", ["asked_at"], sqlite_where=charging, postgresql_where=charging)
    op.create_index("orders_confirmed", "orders", ["settled_at"], sqlite_where=confirmed, postgresql_where=confirmed)
    op.create_table(
        "attendance",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("institution", sa.Text, primary_key=True),
        sa.Column("day", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("status", sa.Text, nullable=False),
        sa.Column("marked_by", sa.Text, nullable=False),
        sa.Column("marked_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
        sa.CheckConstraint("status IN ('present', 'absent', 'late', 'excused')", name="attendance_status"),
        sqlite_with_rowid=False,
    )
    op.create_table(
        "audit",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("at", sa.Double, nullable=False),
        sa.Column("actor", sa.Text, nullable=False),
        sa.Column("action", sa.Text, nullable=False),
        sa.Column("target", sa.Text, nullable=False),
        sa.Column("detail", sa.Text, nullable=False),
        sqlite_autoincrement=True,
    )
    op.create_index("audit_by_tenant", "audit", ["tenant", "id"])
