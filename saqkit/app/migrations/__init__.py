"""Which shape a database has, and bringing it up to date.

A fresh database is made in its latest shape. One of an earlier saqkit is carried over by the files beside this one, in
the order that Alembic reads from them: revision `0002` carries version 1 to version 2, and so on. Each file defines
`revision`, `down_revision` and `upgrade(op)`, where `op` are Alembic's operations; there is no way back but a backup.
"""

from __future__ import annotations

from pathlib import Path
from typing import cast

from sqlalchemy import Connection, inspect, text

from saqkit.app import tables
from saqkit.errors import StoreError

_ADVISORY_LOCK = 0x5A90_4B17


def version(connection: Connection) -> int | None:
    """The version of the tables, None if they are not there."""
    if not inspect(connection).has_table(tables.schema.name):
        return None
    return cast("int", connection.execute(tables.schema.select()).scalar_one())


def bring_up_to_date(connection: Connection, where: str) -> None:
    """Create the tables, or carry them over, in the transaction of `connection`.

    Raises `StoreError` if a newer saqkit has made them, or somebody else's are in their place.
    """
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
    match version(connection):
        case None:
            present = set(inspect(connection).get_table_names())
            if foreign := sorted(present & set(tables.metadata.tables)):
                raise StoreError(
                    f'{where}: has a table "{foreign[0]}" that saqkit did not make; use a database of its own'
                )
            tables.metadata.create_all(connection)
            connection.execute(tables.schema.insert(), {"version": tables.VERSION})
        case newer if newer > tables.VERSION:
            raise StoreError(
                f"{where}: was made by a newer saqkit (schema {newer}, this one knows {tables.VERSION}); update saqkit"
            )
        case older if older < tables.VERSION:
            _carry_over(connection, older)
            connection.execute(tables.schema.update(), {"version": tables.VERSION})


def _carry_over(connection: Connection, older: int) -> None:
    # Alembic takes longer to import than all the rest, and is needed once in the life of a database.
    from alembic.migration import MigrationContext
    from alembic.operations import Operations
    from alembic.script import ScriptDirectory

    folder = Path(__file__).parent
    steps = ScriptDirectory(folder, version_locations=[folder])
    base = "base" if older == 1 else f"{older:04}"
    operations = Operations(MigrationContext.configure(connection))
    for step in reversed(list(steps.iterate_revisions(f"{tables.VERSION:04}", base))):
        step.module.upgrade(operations)
