"""From version 4 to version 5: a user may belong to an institution; nobody does yet."""

from __future__ import annotations

import sqlalchemy as sa
from alembic.operations import Operations

revision = "0005"
down_revision = "0004"


def upgrade(op: Operations) -> None:
    """Add a column and its index."""
    op.add_column("users", sa.Column("institution", sa.Text, nullable=False, server_default=""))
    somewhere = sa.text("institution <> ''")
    op.create_index("users_by_institution", "users", ["tenant", "institution", "id"],
                    sqlite_where=somewhere, postgresql_where=somewhere)  # fmt: skip
