"""Opening a database: its address, its rules for transactions, its errors as one line, and its tables."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, asynccontextmanager
from pathlib import Path
from typing import Any, Literal, cast

from filelock import AsyncFileLock
from filelock import Timeout as LockTimeout
from sqlalchemy import URL, AdaptedConnection, Connection, event, exc, inspect, make_url, text
from sqlalchemy.ext.asyncio import AsyncConnection, AsyncEngine, create_async_engine

from saqkit.app import tables
from saqkit.errors import StoreError

# A writer holds SQLite for milliseconds; a wait of seconds means that somebody else holds it by hand.
BUSY_TIMEOUT_S = 10.0
# One process migrates, the others wait for it this long.
MIGRATION_TIMEOUT_S = 60.0
_ADVISORY_LOCK = 0x5A90_4B17

# UPGRADES[n] carries a database from version n to n + 1. Version 1 is the first that exists.
UPGRADES: Mapping[int, Callable[[Connection], None]] = {}

Dialect = Literal["sqlite", "postgresql"]


class Database:
    """A pool of connections to a migrated database, with `reading()` and `writing()` transactions.

    On SQLite a writing transaction is BEGIN IMMEDIATE: it waits for its turn before it has read anything, so it can
    never fail half-way with "database is locked". The writers of one process queue in turn for a lock of their own,
    because SQLite's own waiting is a poll that sleeps for up to 100 ms.
    """

    def __init__(self, engine: AsyncEngine, dialect: Dialect, where: str) -> None:
        self.dialect: Dialect = dialect
        self.where = where
        self._engine = engine
        self._writer = engine.execution_options(saqkit_writes=True)
        self._turn = asyncio.Lock() if dialect == "sqlite" else None
        self._failures = _failures(dialect)

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 5) -> Database:
        """Connect to `url` and bring its tables up to date.

        `sqlite:///FILE` (the file is made if need be, its folder is not) or `postgresql://USER:PASSWORD@HOST/NAME`;
        the async drivers may be named too. Raises `StoreError`.
        """
        address = _address(url)
        if address.get_backend_name() == "sqlite":
            database = cls(_sqlite_engine(address, pool_size), "sqlite", str(address.database))
        else:
            database = cls(_postgresql_engine(address, pool_size), "postgresql", address.render_as_string())
        try:
            await database._migrate()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        await self._engine.dispose()

    @asynccontextmanager
    async def reading(self) -> AsyncIterator[AsyncConnection]:
        """A connection to read from; each statement sees what was committed before it."""
        try:
            async with self._engine.connect() as connection:
                yield connection
        except self._failures as error:
            raise self._explained(error) from error

    @asynccontextmanager
    async def writing(self) -> AsyncIterator[AsyncConnection]:
        """A transaction that commits at the end of the block, or not at all."""
        try:
            async with AsyncExitStack() as stack:
                if self._turn is not None:
                    await stack.enter_async_context(self._turn)
                yield await stack.enter_async_context(self._writer.begin())
        except self._failures as error:
            raise self._explained(error) from error

    async def _migrate(self) -> None:
        """Create the tables or carry them over, by one process at a time; refuse what a newer saqkit has made."""
        async with AsyncExitStack() as stack:
            if self.dialect == "sqlite":
                lock = AsyncFileLock(f"{self.where}.lock", timeout=MIGRATION_TIMEOUT_S)
                try:
                    await stack.enter_async_context(lock)
                except LockTimeout as error:
                    raise StoreError(f"{self.where}: another process has been migrating it for a minute") from error
                except OSError as error:
                    raise self._explained(error) from error
                async with self.reading() as connection:
                    mode = (await connection.exec_driver_sql("PRAGMA journal_mode = WAL")).scalar()
                if mode != "wal":
                    raise StoreError(f"{self.where}: SQLite cannot use WAL here ({mode}); use a local disk")
            connection = await stack.enter_async_context(self.writing())
            if self.dialect == "postgresql":
                await connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
            await connection.run_sync(_upgrade, self.where)

    def _explained(self, error: BaseException) -> StoreError:
        cause = getattr(error, "orig", None) or error
        if self.dialect == "postgresql":  # SQLAlchemy puts the class into the text; the server's words are underneath
            cause = cause.__cause__ or cause
        reason = (str(cause).strip() or type(cause).__name__).splitlines()[0]
        if "database is locked" in reason:
            reason = f"locked by another process for more than {BUSY_TIMEOUT_S:g} s"
        elif "file is not a database" in reason:
            reason = "is not an SQLite database"
        elif isinstance(error, OSError | TimeoutError) and self.dialect == "postgresql":
            reason = f"is not reachable: {reason}"
        return StoreError(f"{self.where}: {reason}")


def _address(url: str) -> URL:
    known = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        address = make_url(url)
    except exc.ArgumentError as error:
        raise StoreError(f'"{url}" is not the address of a database: {known}') from error
    match address.drivername:
        case "sqlite" | "sqlite+aiosqlite":
            return address.set(drivername="sqlite+aiosqlite")
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return address.set(drivername="postgresql+asyncpg")
        case other:
            raise StoreError(f'databases of kind "{other}" are not supported: {known}')


def _sqlite_engine(address: URL, pool_size: int) -> AsyncEngine:
    if not address.database or ":memory:" in address.database:
        raise StoreError("a database in memory cannot be shared by processes: name a file, sqlite:///FILE")
    path = Path(address.database)
    if not path.absolute().parent.is_dir():
        raise StoreError(f"{path}: the folder {path.absolute().parent} does not exist; make it first")
    if path.is_dir():
        raise StoreError(f"{path}: is a folder; name a file in it")
    engine = create_async_engine(address, pool_size=pool_size, max_overflow=0, connect_args={"timeout": BUSY_TIMEOUT_S})

    @event.listens_for(engine.sync_engine, "connect")
    def on_connect(connection: Any, _record: Any) -> None:
        # Python's sqlite3 would begin transactions by itself, deferred ones.
        connection.isolation_level = None
        for pragma in ("synchronous = NORMAL", "foreign_keys = ON"):
            cursor = connection.cursor()
            cursor.execute(f"PRAGMA {pragma}")
            cursor.close()

    @event.listens_for(engine.sync_engine, "begin")
    def on_begin(connection: Connection) -> None:
        if connection.get_execution_options().get("saqkit_writes"):
            # Through the driver: one crossing to its thread, where a statement of SQLAlchemy's takes three.
            cast("AdaptedConnection", connection.connection.dbapi_connection).run_async(
                lambda driver: driver.execute("BEGIN IMMEDIATE")
            )

    return engine


def _postgresql_engine(address: URL, pool_size: int) -> AsyncEngine:
    try:
        return create_async_engine(address, pool_size=pool_size, max_overflow=0)
    except ModuleNotFoundError as error:
        raise StoreError("PostgreSQL needs asyncpg, which is not installed: pip install saqkit[postgresql]") from error


def _failures(dialect: Dialect) -> tuple[type[Exception], ...]:
    """What a database that is gone, full, locked or refusing raises; asyncpg's own errors come when it connects."""
    common: tuple[type[Exception], ...] = (exc.SQLAlchemyError, OSError, TimeoutError)
    if dialect == "sqlite":
        return (*common, sqlite3.Error)
    import asyncpg

    return (*common, asyncpg.PostgresError, asyncpg.InterfaceError)


def _upgrade(connection: Connection, where: str) -> None:
    present = set(inspect(connection).get_table_names())
    if tables.schema.name not in present:
        if foreign := sorted(present & set(tables.metadata.tables)):
            raise StoreError(f'{where}: has a table "{foreign[0]}" that saqkit did not make; use a database of its own')
        tables.metadata.create_all(connection)
        connection.execute(tables.schema.insert(), {"version": tables.VERSION})
        return
    version = cast("int", connection.execute(tables.schema.select()).scalar_one())
    if version > tables.VERSION:
        raise StoreError(
            f"{where}: was made by a newer saqkit (schema {version}, this one knows {tables.VERSION}); update saqkit"
        )
    for step in range(version, tables.VERSION):
        UPGRADES[step](connection)
    if version < tables.VERSION:
        connection.execute(tables.schema.update(), {"version": tables.VERSION})
