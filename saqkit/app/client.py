"""What an application needs that is no worker: a topology's database and queues, opened and closed in order."""

from __future__ import annotations

import asyncio
import logging
from collections.abc import Mapping
from contextlib import AsyncExitStack, suppress
from pathlib import Path
from types import TracebackType
from typing import TYPE_CHECKING, Self

from saqkit import broker
from saqkit.app.announcing import Announcer
from saqkit.app.location import database_url, replica_url
from saqkit.app.store import Store
from saqkit.errors import UsageError
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.topology import Topology, load

if TYPE_CHECKING:
    from saqkit.app.emails.calls import Emails
    from saqkit.app.publishing import Publisher
    from saqkit.app.school.calls import School
    from saqkit.app.shop.checkout import Checkout

logger = logging.getLogger("saqkit")
PATIENCE_S = 1.0
"""So long the start waits for a broker that may be away."""


class Client:
    """The queues and the database of `topology`, and the calls that announce, publish, send, sell and record with them.

    Used by `async with`; an application with hooks of its own for its start and its end awaits `start()` and `stop()`
    there. `redis`, `database` and `replica` are addresses; without them the environment says which, as it does for
    workers (docs/environment.md). Without `redis` and a word of the environment it is the embedded broker.

    It starts with the broker's address and the database, then connects the queues, and ends the other way round: queues
    before the database. A broker that is away stops no start: what is announced or published is saved, and follows.
    `where` is the broker's address, without its password, once it is started.
    """

    def __init__(
        self,
        topology: Topology | str | Path,
        *,
        redis: str | None = None,
        database: str | None = None,
        replica: str | None = None,
    ) -> None:
        self.topology = topology if isinstance(topology, Topology) else load(topology)
        self._redis, self._database, self._replica = redis, database, replica
        self._opened: AsyncExitStack | None = None
        self._store: Store | None = None
        self._queues: dict[str, Queue] = {}
        self.where = ""

    async def start(self) -> None:
        """Open and connect all. Raises `StoreError` or `BrokerError`, one line, and leaves nothing open."""
        if self._opened is not None:
            raise UsageError("this client is started already")
        async with AsyncExitStack() as stack:
            url = await asyncio.to_thread(broker.resolve, self._redis)
            self.where = broker.redact(url)
            replica = self._replica or (None if self._database else replica_url())
            self._store = await Store.open(database_url(self._database), replica_url=replica)
            stack.push_async_callback(self._close_database, self._store)
            logger.info("database opened")
            self._queues = build_queues(self.topology, url)
            stack.push_async_callback(self._disconnect)
            there = await self._connect()
            logger.info("queues %s: %s %s", ", ".join(self._queues),
                        "connected to" if there else "made; nobody answers at", self.where)  # fmt: skip
            self._opened = stack.pop_all()

    async def stop(self) -> None:
        """Disconnect the queues, then close the database; once, however often it is called."""
        opened, self._opened = self._opened, None
        if opened is not None:
            await opened.aclose()

    async def __aenter__(self) -> Self:
        await self.start()
        return self

    async def __aexit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        await self.stop()

    # --- what it has -------------------------------------------------------------------------------------------------

    @property
    def store(self) -> Store:
        """The database."""
        if self._opened is None or self._store is None:
            raise UsageError("this client is not started: `async with` it, or await its start()")
        return self._store

    @property
    def queues(self) -> Mapping[str, Queue]:
        """The queues by name."""
        _ = self.store  # says so if it is not started
        return self._queues

    @property
    def announcer(self) -> Announcer:
        """Announces events to audiences."""
        return Announcer(self.topology, self.store, self.queues)

    @property
    def publisher(self) -> Publisher:
        """Publishes events on the bus."""
        from saqkit.app.publishing import Publisher

        return Publisher(self.announcer)

    @property
    def emails(self) -> Emails:
        """Queues single emails."""
        from saqkit.app.emails.calls import Emails

        return Emails(self.topology, self.queues)

    @property
    def checkout(self) -> Checkout:
        """Takes orders in."""
        from saqkit.app.shop.checkout import Checkout

        return Checkout(self.announcer)

    @property
    def school(self) -> School:
        """Marks attendance, asks for reports, keeps academic records."""
        from saqkit.app.school.calls import School

        return School(self.topology, self.store, self.queues)

    # --- opening and closing -----------------------------------------------------------------------------------------

    async def _connect(self) -> bool:
        with suppress(TimeoutError, *AWAY):
            async with asyncio.timeout(PATIENCE_S):
                for queue in self._queues.values():
                    await queue.redis.ping()  # type: ignore[misc]  # typed for both kinds of client
                return True
        return False

    async def _disconnect(self) -> None:
        await asyncio.gather(*(queue.disconnect() for queue in self._queues.values()))
        logger.info("queues closed")

    async def _close_database(self, store: Store) -> None:
        await store.close()
        logger.info("database closed")
