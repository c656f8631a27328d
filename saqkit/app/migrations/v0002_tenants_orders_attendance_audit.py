"""Tenants and institutions, orders, attendance, audit; tenants that have people or events are known."""

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
        " SELECT tenant, '', CAST(:now AS DOUBLE PRECISION)"
        " FROM (SELECT tenant FROM users UNION SELECT tenant FROM events) AS found WHERE tenant <> ''"
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
        sa.Column("key", sa.Text, nullable=False),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("subject", sa.Text, nullable=False),
        sa.Column("amount_cents", sa.BigInteger, nullable=False),
        sa.Column("currency", sa.Text, nullable=False),
        sa.Column("payment", sa.Text, nullable=False),
        sa.Column("payment_reference", sa.Text, nullable=False),
        sa.Column("payment_error", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("settled_at", sa.Double),
        sa.UniqueConstraint("tenant", "key"),
        sa.CheckConstraint("payment IN ('pending', 'paid', 'declined')", name="orders_payment"),
        sa.CheckConstraint("amount_cents > 0", name="orders_amount"),
        sqlite_autoincrement=True,
    )
    op.create_index("orders_by_user", "orders", ["tenant", "user_id", "id"])
    charged = sa.text("payment_reference <> ''")
    op.create_index(
        "orders_payment_reference",
        "orders",
        ["tenant", "payment_reference"],
        unique=True,
        sqlite_where=charged,
        postgresql_where=charged,
    )
    pending = sa.text("payment = 'pending'")
    op.create_index("orders_open", "orders", ["created_at"], sqlite_where=pending, postgresql_where=pending)
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
