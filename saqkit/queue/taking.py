"""How the slots of a process get their jobs: one script call for as many as are free, one blocking wait for all."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from typing import TYPE_CHECKING

from saq.job import Job

from saqkit.queue.scripts_of_queue import AWAY, Backoff, refusals

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

LONGEST_BLOCK_S = 1.0
"""An idle process asks at least this often, so a wake-up lost with another process delays a job by no more.

It also asks every third of a lease, as those that hold jobs do: see `contact` in `scripts/keys.lua`.
"""


class Taker:
    """Serves the `dequeue` calls of one process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[asyncio.Future[Job]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._call: asyncio.Task[float] | None = None
        self._backoff = Backoff(f"queue {queue.name}")
        self._who = f"{os.getpid():x}.{secrets.token_hex(4)}"
        self._request = 0
        patience_s = queue.redis.connection_pool.connection_kwargs.get("socket_timeout") or float("inf")
        self._longest_block_s = min(LONGEST_BLOCK_S, queue.lease_s / 3, patience_s / 2)
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
        for future in self._waiting:
            future.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        if self._call is not None:  # it may be claiming jobs at this moment: they must not be forgotten
            done, _ = await asyncio.wait([self._call], timeout=5)
            for call in done:
                call.cancelled() or call.exception()  # the broker is away: nothing was taken that anybody knows of

    def _free(self) -> int:
        self._waiting = deque(future for future in self._waiting if not future.done())
        return len(self._waiting)

    async def _run(self) -> None:
        while free := self._free():
            try:
                self._call = asyncio.create_task(self._take(free), name="saqkit-take-call")
                pause_s = await asyncio.shield(self._call)
                self._backoff.over()
                if pause_s > 0 and self._free():
                    await self._wait(pause_s)
            except AWAY as error:
                await self._backoff.wait(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.exception("queue %s: taking jobs failed", self._queue.name)
                await self._backoff.wait(error)

    async def ask(self, free: int, key: str = "") -> tuple[float, float, float, list[Job]]:
        """Claim up to `free` jobs (`key`: this one alone).

        Returns the server's clock, in how many seconds something is due and in how many the rate limit admits more
        (-1: nothing, no limit), and the jobs. The number of a request changes when it has been answered, so that the
        jobs of a lost reply are given again.
        """
        queue, limit = self._queue, self._queue.rate_limit
        rate = (limit.limit, limit.period_s, limit.unit) if limit else (0, 1, "jobs")
        who, request = (secrets.token_hex(6), 0) if key else (self._who, self._request)
        at, due, blocked, *rows = await queue.run_script(
            "take", free, queue.worker_name, queue.lease_s, *rate, who, request, key
        )
        if not key:
            self._request += 1
        jobs = []
        for row in rows:
            try:
                jobs.append(queue.claimed(row, float(at)))
            except Exception as error:  # one that nobody can read must not take its neighbours with it
                logger.exception("queue %s: job %s cannot be read", queue.name, row[0])
                await queue.bury_unreadable(row, error)
        return float(at), float(due), float(blocked), jobs

    async def _take(self, free: int) -> float:
        """Take up to `free` jobs and give them to the slots; returns how long to wait before the next call."""
        asked, asked_on = time.time(), time.monotonic()
        at, due_s, blocked_s, jobs = await self.ask(free)
        round_trip = time.monotonic() - asked_on
        self._best_round_trip_s *= 1.01  # clocks drift: an old answer must not count for ever
        if round_trip <= self._best_round_trip_s:  # the quickest answer knows the clock best
            self._best_round_trip_s = round_trip
            self.clock_offset_s = at - asked - round_trip / 2
        for job in jobs:
            while self._waiting:
                future = self._waiting.popleft()
                if not future.done():
                    future.set_result(job)
                    break
            else:  # its slot went away meanwhile
                await self._queue.release(job)
        if len(jobs) >= free:
            return 0.0
        pauses = [pause_s for pause_s in (due_s, blocked_s) if pause_s >= 0]
        return max(0.001, min([self._longest_block_s, *pauses]))

    async def _wait(self, pause_s: float) -> None:
        """Until something is enqueued, but no longer than `pause_s` (the server's timer is no finer than 10 ms)."""
        if pause_s < 0.01:
            await asyncio.sleep(pause_s)
        else:
            with refusals():
                await self._queue.redis.blpop([self._queue.namespace("wake")], timeout=pause_s)  # type: ignore[misc]
