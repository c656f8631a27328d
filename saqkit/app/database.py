"""Opening a database: its address, its rules for transactions, its errors as one line, and its tables."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar, cast

from filelock import AsyncFileLock
from filelock import Timeout as LockTimeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, inspect, make_url, text
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

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
Result = TypeVar("Result")


class Database:
    """Connections to a migrated database. A transaction is a function of a connection: `read(function)`, or
    `write(function)`, which commits when the function returns, or not at all.

    On SQLite a function runs in a thread from beginning to end, so that nobody holds the only writer's place while the
    event loop is busy with something else. One thread writes: our own writers queue there, because SQLite's own waiting
    is a poll that sleeps for up to 100 ms. BEGIN IMMEDIATE waits for the other processes before anything was read, so
    a transaction cannot fail half-way with "database is locked". Whoever is cancelled does not stop the thread.
    """

    def __init__(self, engine: Engine | AsyncEngine, pool_size: int) -> None:
        self.dialect: Dialect = "sqlite" if isinstance(engine, Engine) else "postgresql"
        self.where = str(engine.url.database) if isinstance(engine, Engine) else engine.url.render_as_string()
        self._engine = engine
        self._writer = ThreadPoolExecutor(1, "saqkit-writer")  # without a thread until it is used
        self._readers = ThreadPoolExecutor(max(pool_size - 1, 1), "saqkit-reader")
        self._failures = _failures(self.dialect)

    @classmethod
    async def open(cls, url: str, *, pool_size: int = 5) -> Database:
        """Connect to `url` and bring its tables up to date.

        `sqlite:///FILE` (the file is made if need be, its folder is not) or `postgresql://USER:PASSWORD@HOST/NAME`;
        the async drivers may be named too. Raises `StoreError`.
        """
        database = cls(_engine(url, pool_size), pool_size)
        try:
            await database._migrate()
        except BaseException:
            await database.close()
            raise
        return database

    async def close(self) -> None:
        """Waits for transactions that have begun, also for those whose callers were cancelled."""
        if isinstance(self._engine, AsyncEngine):
            await self._engine.dispose()
            return
        for threads in (self._readers, self._writer):
            await asyncio.to_thread(threads.shutdown)
        self._engine.dispose()

    async def read(self, function: Callable[[Connection], Result]) -> Result:
        """What `function` reads; each of its statements sees what was committed before it."""
        return await self._run(self._readers, function)

    async def write(self, function: Callable[[Connection], Result]) -> Result:
        """What `function` returns once its changes are committed."""
        return await self._run(self._writer, function)

    async def _run(self, threads: ThreadPoolExecutor, function: Callable[[Connection], Result]) -> Result:
        try:
            if isinstance(self._engine, AsyncEngine):
                async with self._engine.begin() as connection:
                    return await connection.run_sync(function)
            loop = asyncio.get_running_loop()
            return await loop.run_in_executor(threads, _in_thread, self._engine, threads is self._writer, function)
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
                mode = await self.read(lambda reader: reader.exec_driver_sql("PRAGMA journal_mode = WAL").scalar())
                if mode != "wal":
                    raise StoreError(f"{self.where}: SQLite cannot use WAL here ({mode}); use a local disk")
            await self.write(partial(_upgrade, where=self.where))

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


def _engine(url: str, pool_size: int) -> Engine | AsyncEngine:
    known = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        address = make_url(url)
    except exc.ArgumentError as error:
        raise StoreError(f'"{url}" is not the address of a database: {known}') from error
    match address.drivername:
        case "sqlite" | "sqlite+aiosqlite":
            return _sqlite_engine(address.set(drivername="sqlite"), pool_size)
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return _postgresql_engine(address.set(drivername="postgresql+asyncpg"), pool_size)
        case other:
            raise StoreError(f'databases of kind "{other}" are not supported: {known}')


def _sqlite_engine(address: URL, pool_size: int) -> Engine:
    if not address.database or ":memory:" in address.database:
        raise StoreError("a database in memory cannot be shared by processes: name a file, sqlite:///FILE")
    path = Path(address.database)
    if not path.absolute().parent.is_dir():
        raise StoreError(f"{path}: the folder {path.absolute().parent} does not exist; make it first")
    if path.is_dir():
        raise StoreError(f"{path}: is a folder; name a file in it")
    # Python's sqlite3 would else begin transactions by itself, deferred ones.
    driver = {"timeout": BUSY_TIMEOUT_S, "isolation_level": None}
    engine = create_engine(address, pool_size=pool_size, max_overflow=0, connect_args=driver)

    @event.listens_for(engine, "connect")
    def on_connect(connection: sqlite3.Connection, _record: object) -> None:
        connection.executescript("PRAGMA synchronous = NORMAL; PRAGMA foreign_keys = ON")

    return engine


def _in_thread(engine: Engine, writes: bool, function: Callable[[Connection], Result]) -> Result:
    with engine.begin() as connection:
        if writes:
            connection.exec_driver_sql("BEGIN IMMEDIATE")
        return function(connection)


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
    if connection.dialect.name == "postgresql":
        connection.execute(text("SELECT pg_advisory_xact_lock(:key)"), {"key": _ADVISORY_LOCK})
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
