"""The producer of a measured run: it takes events in at their times, saves them, and starts their jobs."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence

from redis.exceptions import RedisError
from saq.job import Job

from saqkit.app.announcing import new_job, topic_of
from saqkit.app.audience import Audience
from saqkit.app.store import EventRow, Store
from saqkit.errors import RunError
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival

PATIENCE_S = 600.0
"""One job per user takes its time."""
AT_ONCE = 8
"""So many groups of events are being enqueued at the same time, at most."""
MARK_EVERY_S = 0.1
"""Outbox rows are marked together: what is marked late, a relay would enqueue again, and that changes nothing."""
LARGE = 200
"""An event of more users keeps no other one waiting: it is enqueued on its own."""


class Producer:
    """Takes in events as they happen, however fast: those that happen while a transaction is under way share the next.

    An event's id in the database is its number, so that the draws are the same whatever the order of the writes.
    `relayed`: the broker will be away, and the workers' relay enqueues what could not be enqueued from here.
    """

    def __init__(self, topology: Topology, store: Store, queues: Mapping[str, Queue], relayed: bool) -> None:
        self.users = 0
        self._topology, self._store, self._queues, self._relayed = topology, store, queues, relayed
        self._happened: list[tuple[Arrival, float]] = []
        self._news, self._free = asyncio.Event(), asyncio.Semaphore(AT_ONCE)
        self._tasks: set[asyncio.Task[None]] = set()
        self._enqueued: list[int] = []
        self._closed = False

    def happens(self, arrival: Arrival) -> None:
        """The event happens now; `take_in` does the rest."""
        self.users += arrival.users
        self._happened.append((arrival, time.time()))
        self._news.set()

    async def follow(self, arrivals: Sequence[Arrival], started_at: float) -> None:
        """Let `arrivals` happen at their times, the first at `started_at` (Unix seconds), and start their jobs."""
        taking_in = asyncio.create_task(self.take_in(), name="saqkit-producer")
        try:
            for arrival in arrivals:
                await asyncio.sleep(started_at + arrival.at_s - arrivals[0].at_s - time.time())
                self.happens(arrival)
                if taking_in.done():
                    break  # it has failed
        except BaseException:
            taking_in.cancel()
            await asyncio.wait([taking_in])
            raise
        self.close()
        await taking_in

    def close(self) -> None:
        """Nothing happens any more: `take_in` ends after what has happened."""
        self._closed = True
        self._news.set()

    async def take_in(self) -> None:
        """Save and enqueue what happens, until `close`. Raises `RunError` if the broker does not take it."""
        marking = asyncio.create_task(self._mark(), name="saqkit-outbox")
        try:
            while self._happened or not self._closed:
                if not self._happened:
                    self._news.clear()
                    await self._news.wait()
                    continue
                taken, self._happened = self._happened, []
                rows = [(arrival, self._row(arrival, at)) for arrival, at in taken]
                await self._store.add_events([row for _, row in rows])
                for group in _groups(rows):
                    await self._free.acquire()
                    self._tasks.add(asyncio.create_task(self._start(group), name="saqkit-announce"))
                for task in [task for task in self._tasks if task.done()]:
                    self._tasks.discard(task)
                    task.result()
            await asyncio.gather(*self._tasks)
        finally:
            for task in (marking, *self._tasks):
                task.cancel()
            await asyncio.wait((marking, *self._tasks))
        await self._store.mark_delivered(self._enqueued)

    async def _mark(self) -> None:
        """Mark the outbox rows of what was enqueued, some at a time."""
        while True:
            await asyncio.sleep(MARK_EVERY_S)
            if self._enqueued:
                marked = self._enqueued[:]
                await self._store.mark_delivered(marked)
                del self._enqueued[: len(marked)]

    @staticmethod
    def _row(arrival: Arrival, created_at: float) -> EventRow:
        entry = arrival.entry
        return EventRow(arrival.event, None, topic_of(entry), f"Event {arrival.event}", "",
                        Audience.first(arrival.users), entry.tenant, created_at)  # fmt: skip

    async def _start(self, group: list[tuple[Arrival, EventRow]]) -> None:
        """Enqueue what these events start."""
        try:
            async with asyncio.timeout(PATIENCE_S):
                for name, queue in self._queues.items():
                    await queue.enqueue_many(self._jobs(group, name))
            self._enqueued += [row.id for _, row in group]
        except (TimeoutError, RedisError, *AWAY) as error:
            if not self._relayed:
                reason = str(error) or f"no answer within {PATIENCE_S:g} s"
                raise RunError(f"event {group[0][1].id} could not be enqueued: {reason}") from error
        finally:
            self._free.release()

    def _jobs(self, group: Iterable[tuple[Arrival, EventRow]], queue: str) -> Iterator[Job]:
        """The entry jobs of some events in one queue; the users of a measured run are numbered from 1."""
        for arrival, row in group:
            for name in self._topology.starts(arrival.entry):
                spec = self._topology.job_types[name]
                if spec.queue != queue:
                    continue
                level = int(arrival.entry.priority or spec.priority)
                if spec.fan_out is not None or not arrival.users:
                    yield new_job(self._topology, name, f"{name}:{row.id}", row, priority=level)
                else:
                    for user in range(1, arrival.users + 1):
                        yield new_job(self._topology, name, f"{name}:{row.id}:{user}", row, [user], level)


def _groups(rows: list[tuple[Arrival, EventRow]]) -> list[list[tuple[Arrival, EventRow]]]:
    """Small events together, in order, and each large one alone."""
    small = [row for row in rows if row[0].users <= LARGE]
    return [*([small] if small else []), *([row] for row in rows if row[0].users > LARGE)]
