"""How the slots of a process get their jobs: one script call for as many as are free, one blocking wait for all."""

from __future__ import annotations

import asyncio
import logging
import time
from collections import deque
from typing import TYPE_CHECKING

from saq.job import Job

from saqkit.queue.scripts_of_queue import AWAY, Backoff

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

LONGEST_BLOCK_S = 1.0
"""An idle process asks at least this often, so a wake-up lost with another process delays a job by no more."""


class Taker:
    """Serves the `dequeue` calls of one process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[asyncio.Future[Job]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._call: asyncio.Task[tuple[float, bool]] | None = None
        self._backoff = Backoff(f"queue {queue.name}")
        self._best_round_trip_s = float("inf")
        self.clock_offset_s = 0.0

    async def take(self, timeout: float) -> Job | None:
        """The next job for one slot, or None after `timeout` seconds (0: wait as long as it takes)."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="saqkit-take")
        try:
            async with asyncio.timeout(timeout or None):
                return await asyncio.shield(future)
        except TimeoutError:
            if future.done() and not future.cancelled():
                return future.result()
            future.cancel()
            return None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled() and not future.exception():
                await self._queue.release(future.result())
            future.cancel()
            raise

    async def close(self) -> None:
        """Stop taking. A call that is under way is waited for, and what it brings is given back."""
        waiting = [future for future in self._waiting if not future.done()]
        for future in waiting:
            future.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._call is not None:  # it may be claiming jobs at this moment: they must not be forgotten
            await asyncio.wait([self._call], timeout=5)

    def _free(self) -> int:
        self._waiting = deque(future for future in self._waiting if not future.done())
        return len(self._waiting)

    async def _run(self) -> None:
        while free := self._free():
            try:
                self._call = asyncio.create_task(self._take(free), name="saqkit-take-call")
                pause_s, wakeable = await asyncio.shield(self._call)
                self._backoff.over()
                if pause_s > 0 and self._free():
                    await self._wait(pause_s, wakeable)
            except AWAY as error:
                await self._backoff.wait(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.exception("queue %s: taking jobs failed", self._queue.name)
                await self._backoff.wait(error)

    async def _take(self, free: int) -> tuple[float, bool]:
        """Take up to `free` jobs; returns how long to wait before the next call, and whether a wake-up ends that."""
        queue, limit = self._queue, self._queue.rate_limit
        rate = (limit.limit, limit.period_s, limit.unit) if limit else (0, 1, "jobs")
        asked, asked_on = time.time(), time.monotonic()
        at, due, blocked, *rows = await queue.run_script("take", free, queue.worker_name, queue.lease_s, *rate)
        round_trip = time.monotonic() - asked_on
        if round_trip <= self._best_round_trip_s:  # the quickest answer knows the clock best
            self._best_round_trip_s = round_trip
            self.clock_offset_s = float(at) - asked - round_trip / 2
        for row in rows:
            job = queue.claimed(row, float(at))
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(job)
                    break
            else:  # its slot went away meanwhile
                await queue.release(job)
        if len(rows) == free:
            return 0.0, True
        if (blocked_s := float(blocked)) >= 0:
            return max(blocked_s, 0.001), False
        due_s = float(due)
        return (min(due_s, LONGEST_BLOCK_S) if due_s >= 0 else LONGEST_BLOCK_S) or 0.001, True

    async def _wait(self, pause_s: float, wakeable: bool) -> None:
        if not wakeable or pause_s < 0.01:  # the rate limit alone says when more may be taken
            await asyncio.sleep(pause_s)
        else:
            await self._queue.redis.blpop([self._queue.namespace("wake")], timeout=pause_s)  # type: ignore[misc]
