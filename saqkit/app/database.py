"""Opening a database or its replica: its address, its rules for transactions, its errors as one line."""

from __future__ import annotations

import asyncio
import sqlite3
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from contextlib import AsyncExitStack
from functools import partial
from pathlib import Path
from typing import Literal, TypeVar

from filelock import AsyncFileLock
from filelock import Timeout as LockTimeout
from sqlalchemy import URL, Connection, Engine, create_engine, event, exc, make_url
from sqlalchemy.ext.asyncio import AsyncEngine, create_async_engine

from saqkit.app import migrations, tables
from saqkit.errors import StoreError

# A writer holds SQLite for milliseconds; a wait of seconds means that somebody else holds it by hand.
BUSY_TIMEOUT_S = 10.0
# One process migrates, the others wait for it this long.
MIGRATION_TIMEOUT_S = 60.0
# A replica may hear of a migration later than who has just waited for it.
REPLICA_LAG_S = 10.0

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

    @classmethod
    async def open_replica(cls, url: str, main: Database, *, pool_size: int = 5) -> Database:
        """Connect to a replica of `main`, for reading: its server refuses to write for these connections.

        Both have to be PostgreSQL. Raises `StoreError`, also if the replica does not have the tables of `main`.
        """
        if main.dialect == "sqlite":
            raise StoreError(f"{main.where}: SQLite has no replicas; unset SAQKIT_REPLICA_URL, or use PostgreSQL")
        replica = cls(_engine(url, pool_size, reads_only=True), pool_size)
        try:
            if replica.dialect == "sqlite":
                raise StoreError(f"{replica.where}: a SQLite file is no replica of {main.where}: name a PostgreSQL")
            began = time.monotonic()
            while (found := await replica.read(migrations.version)) != tables.VERSION:
                if time.monotonic() - began > REPLICA_LAG_S:
                    has = "no tables of saqkit" if found is None else f"schema {found}"
                    raise StoreError(
                        f"{replica.where}: has {has}, {main.where} has schema {tables.VERSION}: it is not its replica,"
                        " or far behind"
                    )
                await asyncio.sleep(0.1)
        except BaseException:
            await replica.close()
            raise
        return replica

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
        if await self.read(_is_current):
            return
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
            await self.write(partial(migrations.bring_up_to_date, where=self.where))

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


def _is_current(connection: Connection) -> bool:
    """Whether nothing has to be done, as at almost every start; to know it takes no lock."""
    if connection.dialect.name == "sqlite" and connection.exec_driver_sql("PRAGMA journal_mode").scalar() != "wal":
        return False
    return migrations.version(connection) == tables.VERSION


def _engine(url: str, pool_size: int, *, reads_only: bool = False) -> Engine | AsyncEngine:
    known = "sqlite:///FILE or postgresql://USER:PASSWORD@HOST/NAME"
    try:
        address = make_url(url)
    except exc.ArgumentError as error:
        raise StoreError(f'"{url}" is not the address of a database: {known}') from error
    match address.drivername:
        case "sqlite" | "sqlite+aiosqlite":
            return _sqlite_engine(address.set(drivername="sqlite"), pool_size)
        case "postgresql" | "postgres" | "postgresql+asyncpg":
            return _postgresql_engine(address.set(drivername="postgresql+asyncpg"), pool_size, reads_only)
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


def _postgresql_engine(address: URL, pool_size: int, reads_only: bool) -> AsyncEngine:
    driver = {"server_settings": {"default_transaction_read_only": "on"}} if reads_only else {}
    try:
        return create_async_engine(address, pool_size=pool_size, max_overflow=0, connect_args=driver)
    except ModuleNotFoundError as error:
        raise StoreError("PostgreSQL needs asyncpg, which is not installed: pip install saqkit[postgresql]") from error


def _failures(dialect: Dialect) -> tuple[type[Exception], ...]:
    """What a database that is gone, full, locked or refusing raises; asyncpg's own errors come when it connects."""
    common: tuple[type[Exception], ...] = (exc.SQLAlchemyError, OSError, TimeoutError)
    if dialect == "sqlite":
        return (*common, sqlite3.Error)
    import asyncpg

    return (*common, asyncpg.PostgresError, asyncpg.InterfaceError)
