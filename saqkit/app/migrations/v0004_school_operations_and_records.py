"""From version 3 to version 4: what a school's jobs have done, and its academic records."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0004"
down_revision = "0003"


def upgrade(op: Operations) -> None:
    """Add two tables."""
    op.create_table(
        "school_operations",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("key", sa.Text, primary_key=True),
        sa.Column("institution", sa.Text, nullable=False),
        sa.Column("kind", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("result", sa.Text, nullable=False),
        sa.Column("done_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
    )
    op.create_table(
        "school_records",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("institution", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("name", sa.Text, primary_key=True),
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
        sqlite_with_rowid=False,
    )
