"""How the slots of a process get their jobs: one script call for as many as are free, one blocking wait for all."""

from __future__ import annotations

import asyncio
import logging
import os
import secrets
import time
from collections import deque
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from saq.job import Job

from saqkit.errors import BrokerError
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.flushing import Asked
from saqkit.queue.line import Line
from saqkit.queue.scripts_of_queue import AWAY, Backoff, call_all, refusals

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")

LONGEST_BLOCK_S = 5.0
"""An idle process asks at least this often, so a wake-up lost with another process delays a job by no more.

It also asks at least every 0.4 leases, so that the server's absence can be told from its own: see `contact` in
`scripts/keys.lua`.
"""


@dataclass(frozen=True)
class Question:
    """A call of `take.lua`: its words and future, for how many slots, and when it was put (Unix, monotonic)."""

    words: Asked
    free: int
    asked_at: float
    asked_on: float


EARLY_S = 0.11
"""A wait for the rate limit on the server ends so much before its time, and the rest is a timer's of the process."""
SLOW_S = 2.0
"""A call that is under way when a timeout ends is waited for this long: it may bring a job."""


class Taker:
    """Serves the `dequeue` calls of one process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: deque[asyncio.Future[Job]] = deque()
        self._task: asyncio.Task[None] | None = None
        self._line = Line(queue.redis)
        self._unanswered = False
        self._pause_s = 0.0
        self._early_s = 0.0
        self._free_slots: Callable[[], int] | None = None
        self._question: Question | None = None
        self._backoff = Backoff(f"queue {queue.name}")
        self._who = _new_name()
        self._request = 0
        patience_s = queue.redis.connection_pool.connection_kwargs.get("socket_timeout") or float("inf")
        self._longest_block_s = min(LONGEST_BLOCK_S, queue.lease_s * 0.4, patience_s / 2)
        self._best_round_trip_s = float("inf")
        self.clock_offset_s = 0.0

    @property
    def waits(self) -> bool:
        """Whether somebody waits for jobs here, so that due ones are found."""
        return (self._task is not None and not self._task.done()) or self._free_slots is not None

    @property
    def asks(self) -> bool:
        """Whether a question is under way, if only one that waits for jobs: then the server hears of this process."""
        return self._unanswered

    async def take(self, timeout: float) -> Job | None:
        """The next job for one slot, or None after `timeout` seconds (0: wait as long as it takes)."""
        future: asyncio.Future[Job] = asyncio.get_running_loop().create_future()
        self._waiting.append(future)
        self._begin()
        try:
            if not timeout:
                return await future
            await asyncio.wait([future], timeout=timeout)
            if not future.done() and self._question is not None:  # what is there is taken, however slow the broker
                await asyncio.wait([self._question.words[2]], timeout=SLOW_S)
                for _ in range(5):  # until it has been handed out
                    await asyncio.sleep(0)
            return future.result() if future.done() else None
        except asyncio.CancelledError:
            if future.done() and not future.cancelled():
                await self._queue.release(future.result())
            raise
        finally:
            future.cancel()
            if not self._slots_waiting() and self._task is not None:
                self._task.cancel()  # nobody waits any more: what it would take is not wanted

    async def take_many(self, free: Callable[[], int]) -> list[Job]:
        """Jobs for the slots of a worker that are free, at least one; `free` tells how many, whenever it asks.

        From the first call to `stop_taking` whatever is said of jobs that have ended takes the next question with it.
        """
        self._free_slots = free
        return await self._next(free)

    async def stop_taking(self) -> None:
        """Take no more for `take_many`; what is under way is given back."""
        self._free_slots = None
        await self._give_up()

    def more(self) -> Asked | None:
        """The question that goes with what is about to be said: the next jobs, if there were more than slots."""
        if self._free_slots is None or self._question is not None or self._pause_s > 0 or self._free_slots() <= 0:
            return None
        self._question = self._put(self._free_slots())
        return self._question.words

    async def close(self) -> None:
        """Stop taking. A call that is under way is waited for, and what it brings is given back."""
        for future in self._waiting:
            future.cancel()
        if self._task is not None and not self._task.done():
            self._task.cancel()
            await asyncio.wait([self._task])
        await self._give_up()
        await self._line.close()

    def _begin(self) -> None:
        if self._task is None or self._task.done():
            self._task = asyncio.create_task(self._run(), name="saqkit-take")
            self._task.add_done_callback(self._begin_again)

    def _begin_again(self, task: asyncio.Task[None]) -> None:
        if self._slots_waiting():  # somebody came while it ended
            self._begin()

    def _slots_waiting(self) -> int:
        """How many slots wait."""
        self._waiting = deque(future for future in self._waiting if not future.done())
        return len(self._waiting)

    async def _run(self) -> None:
        """Serve the slots of `take` as long as any waits."""
        try:
            while self._slots_waiting():
                for job in await self._next(self._slots_waiting):
                    while self._waiting:
                        future = self._waiting.popleft()
                        if not future.done():
                            future.set_result(job)
                            break
                    else:  # its slot went away meanwhile
                        self._queue.give_back(job)
        except asyncio.CancelledError:
            self._pause_s = 0.0  # a timeout has cut a pause short: whoever comes next must not wait for all of it again
            raise
        finally:
            await self._give_up()

    async def _next(self, free: Callable[[], int]) -> list[Job]:
        """Jobs for the free slots, at least one; or none when no slot is free any more."""
        while True:
            try:
                pause_s = self._pause_s if self._question is None else 0.0
                short = pause_s < 0.01 + self._early_s  # the server's timer is no finer
                if short and pause_s > 0:
                    await asyncio.sleep(pause_s)
                if self._question is None and free() <= 0:
                    return []
                if short:
                    jobs = await self._ask(free)
                else:
                    jobs = await self._wait_and_ask(free, pause_s - self._early_s)
                self._backoff.over()
                try:
                    heed_cancellation()
                except asyncio.CancelledError:
                    for job in jobs:
                        self._queue.give_back(job)
                    raise
                if jobs:
                    return jobs
            except AWAY as error:
                self._pause_s = 0.0
                await self._backoff.wait(error)
            except BrokerError as error:  # no right to
                await self._backoff.wait(error)
            except asyncio.CancelledError:
                raise
            except Exception as error:
                logger.exception("queue %s: taking jobs failed", self._queue.name)
                await self._backoff.wait(error)

    async def _ask(self, free: Callable[[], int]) -> list[Job]:
        """Take now, behind whatever is being said of jobs that have ended."""
        if self._question is None:
            self._question = self._put(free())
            self._queue.flusher.ask(*self._question.words)
        question = self._question
        try:
            with refusals():
                said = await asyncio.shield(question.words[2])
        except Exception:  # a cancelled caller leaves it open: what it brings has to be given back
            self._question = None
            raise
        self._question = None
        return self._taken(question, said)

    async def _wait_and_ask(self, free: Callable[[], int], pause_s: float) -> list[Job]:
        """Wait until something is enqueued, or for the pause, and take: one round trip."""
        queue, question = self._queue, self._put(free())
        wake = (queue.namespace("wake"), pause_s)
        try:
            (said,) = await call_all(self._line, queue.keys, [question.words[:2]], wait=wake)
        except asyncio.CancelledError:
            self._line.drop()
            raise
        if isinstance(said, Exception):
            with refusals():
                raise said
        return self._taken(question, said, waited=True)

    def _put(self, free: int) -> Question:
        self._unanswered = True
        words = self._words(free, self._who, self._request, "")
        future: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        return Question(("take", words, future), free, time.time(), time.monotonic())

    def _taken(self, question: Question, said: list[Any], waited: bool = False) -> list[Job]:
        """What a question brought. Its number changes when it is answered: the jobs of a lost reply are given again."""
        at, due_s, blocked_s, *rows = said
        self._request, self._unanswered = self._request + 1, False
        at, round_trip = float(at), time.monotonic() - question.asked_on
        if not waited:
            self._best_round_trip_s *= 1.01  # clocks drift: an old answer must not count for ever
            if round_trip <= self._best_round_trip_s:  # the quickest answer knows the clock best
                self._best_round_trip_s = round_trip
                self.clock_offset_s = at - question.asked_at - round_trip / 2
        if len(rows) >= question.free:
            self._pause_s = 0.0
            if float(due_s) == 0.0:
                self._queue.promoter.begin()
        else:
            pauses = [pause_s for pause_s in (float(due_s), float(blocked_s)) if pause_s >= 0]
            self._pause_s = max(0.001, min([self._longest_block_s, *pauses]))
            # The server ends a wait up to a tenth of a second late, and what a rate limit loses so never comes back.
            self._early_s = EARLY_S if float(blocked_s) == self._pause_s else 0.0
        return self._claimed(rows, at)

    async def _give_up(self) -> None:
        """Give back what an open question brings, or has brought without our knowing; then ask under another name.

        Where the broker is away this is left undone: what was taken comes back when its lease expires.
        """
        if self._question is None and not self._unanswered:
            return
        jobs: list[Job] = []
        with suppress(*AWAY, BrokerError):
            async with asyncio.timeout(5):
                if self._question is not None:
                    with suppress(*AWAY, BrokerError):
                        jobs = await self._ask(lambda: 0)
                if self._unanswered:
                    words = self._words(-1, self._who, self._request, "")
                    at, _, _, *rows = await self._queue.run_script("take", *words)
                    jobs += self._claimed(rows, float(at))
                await asyncio.gather(*(self._queue.release(job) for job in jobs))
        self._who, self._unanswered, self._question = _new_name(), False, None

    async def seize(self, key: str) -> float | None:
        """Claim this very job, wherever it waits; returns the server's time, None where it does not wait."""
        at, _, _, *rows = await self._queue.run_script("take", *self._words(1, _new_name(), 0, key))
        return float(at) if self._claimed(rows, float(at)) else None

    def _words(self, free: int, who: str, request: int, key: str) -> tuple[Any, ...]:
        queue, limit = self._queue, self._queue.rate_limit
        rate = (limit.limit, limit.period_s, limit.unit) if limit else (0, 1, "jobs")
        words = (free, queue.worker_name, queue.lease_s, *rate, who, request, key, queue.tick_s)
        return (*words, queue.rules) if queue.rules else words

    def _claimed(self, rows: list[list[Any]], at: float) -> list[Job]:
        jobs = []
        for row in rows:
            try:
                jobs.append(self._queue.claimed(row, at))
            except Exception as error:  # one that nobody can read must not take its neighbours with it
                logger.exception("queue %s: job %s cannot be read", self._queue.name, row[0])
                self._queue.bury_unreadable(row, error)
        return jobs


def _new_name() -> str:
    return f"{os.getpid():x}.{secrets.token_hex(4)}"
