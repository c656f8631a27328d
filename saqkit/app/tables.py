"""The tables of the reference application, and the version of their shape."""

from __future__ import annotations

from sqlalchemy import (
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Raised by every change of a table, together with a step in database.UPGRADES that carries an older database over.
VERSION = 1

metadata = MetaData()

schema = Table("saqkit_schema", metadata, Column("version", Integer, nullable=False))

# AUTOINCREMENT: an id is never given to somebody else, so that a ledger row keeps meaning the same person.
users = Table(
    "users",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("email", Text, nullable=False),
    Column("name", Text, nullable=False),
    Column("role", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("active", Boolean, nullable=False),
    UniqueConstraint("tenant", "email"),
    sqlite_autoincrement=True,
)

events = Table(
    "events",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("key", Text),
    Column("topic", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("body", Text, nullable=False),
    Column("audience", Text, nullable=False),
    Column("tenant", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    UniqueConstraint("tenant", "key"),
    sqlite_autoincrement=True,
)

outbox = Table(
    "outbox",
    metadata,
    Column("event_id", ForeignKey(events.c.id), primary_key=True),
    Column("created_at", Double, nullable=False),
    Column("delivered_at", Double),
)
# The relay looks for what is left: a handful of rows, however many were ever delivered.
Index(
    "outbox_undelivered",
    outbox.c.event_id,
    sqlite_where=text("delivered_at IS NULL"),
    postgresql_where=text("delivered_at IS NULL"),
)

fan_outs = Table(
    "fan_outs",
    metadata,
    Column("event_id", ForeignKey(events.c.id), primary_key=True),
    Column("job_type", Text, primary_key=True),
    Column("cursor", Integer, nullable=False),
    Column("batches", Integer, nullable=False),
    Column("users", Integer, nullable=False),
    Column("finished_at", Double),
)

# The ledger. No foreign key to users: what was sent stays known when the person is gone. None to events either:
# PostgreSQL would look up and lock the one event row for each of a million notifications. WITHOUT ROWID stores a batch
# in one place of one tree: a page or two per transaction instead of two hundred scattered ones.
notifications = Table(
    "notifications",
    metadata,
    Column("event_id", Integer, primary_key=True, autoincrement=False),
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("channel", Text, primary_key=True),
    Column("status", Text, nullable=False),
    Column("message_id", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("sent_at", Double),
    CheckConstraint("status IN ('pending', 'sent', 'failed')", name="notifications_status"),
    sqlite_with_rowid=False,
)
