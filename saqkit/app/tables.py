"""The tables of the reference application, and the version of their shape."""

from __future__ import annotations

from sqlalchemy import (
    BigInteger,
    Boolean,
    CheckConstraint,
    Column,
    Double,
    ForeignKey,
    ForeignKeyConstraint,
    Index,
    Integer,
    MetaData,
    Table,
    Text,
    UniqueConstraint,
    text,
)

# Raised by every change of a table, together with a file in migrations/ that carries an older database over.
VERSION = 5

metadata = MetaData()

schema = Table("saqkit_schema", metadata, Column("version", Integer, nullable=False))

# Whoever has people, or was added, is a tenant; "" is a school or shop that has no tenants.
tenants = Table(
    "tenants",
    metadata,
    Column("name", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

institutions = Table(
    "institutions",
    metadata,
    Column("tenant", ForeignKey(tenants.c.name), primary_key=True),
    Column("name", Text, primary_key=True),
    Column("title", Text, nullable=False),
    Column("created_at", Double, nullable=False),
)

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
    # One of the tenant's, or "": of the tenant alone.
    Column("institution", Text, nullable=False, server_default=""),
    UniqueConstraint("tenant", "email"),
    # A page of a tenant's audience is one stretch of this; by the unique key each page would sort all of the tenant.
    Index("users_by_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)
# The same for an institution's; whoever is of none costs nothing here.
Index(
    "users_by_institution",
    users.c.tenant,
    users.c.institution,
    users.c.id,
    sqlite_where=text("institution <> ''"),
    postgresql_where=text("institution <> ''"),
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

# No foreign key to users here either: an order, a mark and an audit entry outlive the person. An order is `new`, then
# `charging` from before the provider is first asked for money until its answer is recorded, and then for ever `paid`
# or `declined`.
orders = Table(
    "orders",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("key", Text),
    Column("event_id", Integer, nullable=False),
    Column("user_id", Integer, nullable=False),
    Column("job_type", Text, nullable=False),
    Column("amount_minor", BigInteger, nullable=False),
    Column("currency", Text, nullable=False),
    Column("state", Text, nullable=False),
    # What the provider knows the payment by. Made up here, for good: an order that is charged again is charged by it.
    Column("charge_key", Text, nullable=False, unique=True),
    Column("charge_id", Text, nullable=False),
    Column("error", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("asked_at", Double),
    Column("settled_at", Double),
    Column("settled_by", Text, nullable=False),
    UniqueConstraint("tenant", "key"),
    UniqueConstraint("event_id", "user_id"),
    CheckConstraint("state IN ('new', 'charging', 'paid', 'declined')", name="orders_state"),
    sqlite_autoincrement=True,
)
# Whoever polls looks for the few whose answer is missing, however many orders there ever were.
Index(
    "orders_charging",
    orders.c.asked_at,
    sqlite_where=text("state = 'charging'"),
    postgresql_where=text("state = 'charging'"),
)
Index(
    "orders_confirmed",
    orders.c.settled_at,
    sqlite_where=text("settled_by = 'confirmation'"),
    postgresql_where=text("settled_by = 'confirmation'"),
)

# One row for each pupil and day. `day` is an ISO date, which sorts as text and needs no type of the database's own.
attendance = Table(
    "attendance",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("institution", Text, primary_key=True),
    Column("day", Text, primary_key=True),
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("status", Text, nullable=False),
    Column("marked_by", Text, nullable=False),
    Column("marked_at", Double, nullable=False),
    ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
    CheckConstraint("status IN ('present', 'absent', 'late', 'excused')", name="attendance_status"),
    sqlite_with_rowid=False,
)

# Who did what to which queue, job or setting. Rows are only ever added.
audit = Table(
    "audit",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("at", Double, nullable=False),
    Column("actor", Text, nullable=False),
    Column("action", Text, nullable=False),
    Column("target", Text, nullable=False),
    Column("detail", Text, nullable=False),
    Index("audit_by_tenant", "tenant", "id"),
    sqlite_autoincrement=True,
)

# What a platform teaches. A course that comes from elsewhere keeps the id that it has there.
courses = Table(
    "courses",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("tenant", Text, nullable=False),
    Column("source_id", Text, nullable=False),
    Column("title", Text, nullable=False),
    Column("next_lesson_at", Double),
    Column("changed_at", Double, nullable=False),
    UniqueConstraint("tenant", "source_id"),
    sqlite_autoincrement=True,
)

# Somebody's place in a course: `pending` from checkout until the payment is in, then for ever `completed`. Without a
# course in measured runs, whose users have chosen none; without an event where another system (`source`) tells of it.
enrolments = Table(
    "enrolments",
    metadata,
    Column("id", Integer, primary_key=True),
    Column("user_id", Integer, nullable=False),
    Column("course_id", Integer),
    Column("event_id", Integer),
    Column("order_id", Integer),
    Column("origin", Text, nullable=False),
    Column("state", Text, nullable=False),
    Column("created_at", Double, nullable=False),
    Column("completed_at", Double),
    UniqueConstraint("user_id", "course_id"),
    UniqueConstraint("event_id", "user_id"),
    CheckConstraint("origin IN ('here', 'source')", name="enrolments_origin"),
    CheckConstraint("state IN ('pending', 'completed')", name="enrolments_state"),
    sqlite_autoincrement=True,
)

# What another system says of a person, as it says it.
profiles = Table(
    "profiles",
    metadata,
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("data", Text, nullable=False),
    Column("changed_at", Double, nullable=False),
)

# How far a synchronisation has come; `finished_event` is the event whose pass was the last to reach the end.
sync_cursors = Table(
    "sync_cursors",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("cursor", Text, nullable=False),
    Column("finished_event", Integer, nullable=False),
)

# Codes that somebody has to enter, one for each purpose; only a salted digest is kept.
codes = Table(
    "codes",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("email", Text, primary_key=True),
    Column("purpose", Text, primary_key=True),
    Column("salt", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("tries", Integer, nullable=False),
    Column("expires_at", Double, nullable=False),
    Index("codes_by_expiry", "expires_at"),
)

# What a school's jobs have done, each once: whoever repeats a job finds its key here, and what came of it. `digest` is
# of its arguments, so that a key is not taken for that of another operation.
school_operations = Table(
    "school_operations",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("key", Text, primary_key=True),
    Column("institution", Text, nullable=False),
    Column("kind", Text, nullable=False),
    Column("digest", Text, nullable=False),
    Column("result", Text, nullable=False),
    Column("done_at", Double, nullable=False),
    ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
)

# Classes, enrolments, subjects, exams, grades: as the last operation has left them. `user_id` is 0 where nobody is
# meant.
school_records = Table(
    "school_records",
    metadata,
    Column("tenant", Text, primary_key=True),
    Column("institution", Text, primary_key=True),
    Column("kind", Text, primary_key=True),
    Column("name", Text, primary_key=True),
    Column("user_id", Integer, primary_key=True, autoincrement=False),
    Column("data", Text, nullable=False),
    Column("changed_at", Double, nullable=False),
    ForeignKeyConstraint(["tenant", "institution"], ["institutions.tenant", "institutions.name"]),
    sqlite_with_rowid=False,
)
