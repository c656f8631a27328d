"""Courses, enrolments, profiles, how far synchronisations have come, and codes that somebody has to enter."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0003"
down_revision = "0002"


def upgrade(op: Operations) -> None:
    op.create_table(
        "courses",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("tenant", sa.Text, nullable=False),
        sa.Column("source_id", sa.Text, nullable=False),
        sa.Column("title", sa.Text, nullable=False),
        sa.Column("next_lesson_at", sa.Double),
        sa.Column("changed_at", sa.Double, nullable=False),
        sa.UniqueConstraint("tenant", "source_id"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "enrolments",
        sa.Column("id", sa.Integer, primary_key=True),
        sa.Column("user_id", sa.Integer, nullable=False),
        sa.Column("course_id", sa.Integer),
        sa.Column("event_id", sa.Integer),
        sa.Column("order_id", sa.Integer),
        sa.Column("origin", sa.Text, nullable=False),
        sa.Column("state", sa.Text, nullable=False),
        sa.Column("created_at", sa.Double, nullable=False),
        sa.Column("completed_at", sa.Double),
        sa.UniqueConstraint("user_id", "course_id"),
        sa.UniqueConstraint("event_id", "user_id"),
        sa.CheckConstraint("origin IN ('here', 'source')", name="enrolments_origin"),
        sa.CheckConstraint("state IN ('pending', 'completed')", name="enrolments_state"),
        sqlite_autoincrement=True,
    )
    op.create_table(
        "profiles",
        sa.Column("user_id", sa.Integer, primary_key=True, autoincrement=False),
        sa.Column("data", sa.Text, nullable=False),
        sa.Column("changed_at", sa.Double, nullable=False),
    )
    op.create_table(
        "sync_cursors",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("kind", sa.Text, primary_key=True),
        sa.Column("cursor", sa.Text, nullable=False),
        sa.Column("finished_event", sa.Integer, nullable=False),
    )
    op.create_table(
        "codes",
        sa.Column("tenant", sa.Text, primary_key=True),
        sa.Column("email", sa.Text, primary_key=True),
        sa.Column("purpose", sa.Text, primary_key=True),
        sa.Column("salt", sa.Text, nullable=False),
        sa.Column("digest", sa.Text, nullable=False),
        sa.Column("tries", sa.Integer, nullable=False),
        sa.Column("expires_at", sa.Double, nullable=False),
    )
    op.create_index("codes_by_expiry", "codes", ["expires_at"])
