"""An operator who does everything that can be done to a queue, all the time, and notes when what held."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from a_worker_of_chaos import insist
from accounting import Promise
from everything import CHANGES, UNWANTED
from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.configuring import QueueSettings
from saqkit.queue.dead_letters import dead_letters, replay
from saqkit.queue.live_jobs import LIVE, LiveJob, Which, live_jobs
from saqkit.queue.queue import Queue


@dataclass
class Reign:
    """What decided who was next, for certain from one moment to another of the server's clock."""

    settings: QueueSettings
    since: float
    until: float = float("inf")


class Operator:
    """Operates a queue until `stop`; `promises` says which jobs may be cancelled, and learns which are cured."""

    def __init__(self, queue: Queue, promises: dict[str, Promise], seed: int) -> None:
        self.queue, self._promises, self._random = queue, promises, Random(seed)
        self._over = asyncio.Event()
        self.reigns: list[Reign] = []
        self.pauses: list[tuple[float, float]] = []
        """From when to when, by the server's clock, the queue was paused for certain."""
        self.promoted: set[str] = set()
        self.did: Counter[str] = Counter()

    def stop(self) -> None:
        """Finish what is under way, and let jobs be taken."""
        self._over.set()

    async def begin(self) -> None:
        """Note what holds before anything is taken."""
        self.reigns.append(Reign(await self.queue.settings(), 0.0))

    async def run(self) -> None:
        """Operate."""
        usual: list[Callable[[], Awaitable[object]]] = [
            self._pause, self._configure, self._configure, self._cancel, self._cancel, self._cancel,
            self._cancel_running, self._promote, self._prioritise, self._prioritise, self._replay, self._slots,
        ]  # fmt: skip
        while not self._over.is_set():
            action = self._random.choice(usual)
            with suppress(UsageError):  # it runs by now, or has ended
                if await action() is not False:
                    self.did[action.__name__.strip("_")] += 1
            await asyncio.sleep(self._random.uniform(0.0, 0.03))
        # Else how long the rest takes would be decided by limits, and whoever waits for nothing would not be noticed.
        await self._change({"rate_limit": None, "tenant_rate_limit": None})
        await insist(self.queue.set_slots, None)

    async def clear_up(self) -> None:
        """Cancel what would run for ever."""
        await insist(lambda: self.queue.cancel_jobs(Which(function="hold"), reason="not wanted"))

    async def now(self) -> float:
        """The server's clock."""
        seconds, micros = await insist(self.queue.redis.time)
        return float(seconds + micros / 1e6)

    async def _pause(self) -> None:
        await insist(self.queue.pause, "look", "chaos")
        since = await self.now()
        await asyncio.sleep(self._random.uniform(0.0, 0.2))
        self.pauses.append((since, await self.now()))
        await insist(self.queue.resume)

    async def _configure(self) -> None:
        await self._change(self._random.choice(CHANGES))

    async def _change(self, change: dict[str, Any] | None) -> None:
        self.reigns[-1].until = await self.now()
        settings = await insist(lambda: self.queue.configure(change))
        self.reigns.append(Reign(settings, await self.now()))

    async def _cancel(self) -> bool:
        """Jobs of keys, mostly such as have not ended yet."""
        wanted = [key for key, promise in self._promises.items() if promise.cancelled]
        if self._random.random() < 0.9:
            wanted = [job.key for job in await self._some(*LIVE, of=set(wanted))]
        key = self._random.choice([*wanted, "nobody"])
        if self._random.random() < 0.5:
            return bool((await insist(lambda: self.queue.cancel_keys([key], reason="not wanted"))).done)
        job = Job("any", key=key, ttl=0, queue=self.queue)
        await insist(lambda: self.queue.abort(job, "not wanted"))
        return job.completed > 0

    async def _cancel_running(self) -> bool:
        which = self._random.choice([Which(function="hold", states=("active",)), Which(tenant=UNWANTED)])
        return bool((await insist(lambda: self.queue.cancel_jobs(which, reason="not wanted"))).done)

    async def _promote(self) -> bool:
        delayed = await self._some("delayed")
        self.promoted.update(job.key for job in delayed)
        said = await insist(lambda: self.queue.hasten_keys([job.key for job in delayed]))
        return bool(said.done)

    async def _prioritise(self) -> bool:
        waiting = await self._some("waiting", "delayed")
        for job in waiting:
            await insist(self.queue.set_priority, job.key, self._random.randint(1, 4))
        return bool(waiting)

    async def _replay(self) -> bool:
        """Letters as they are, or so that they do not die again. Unique jobs are left: a replay is never refused."""

        async def listed() -> list[str]:
            return [letter.key async for letter in dead_letters(self.queue, 50) if "unique" not in letter.kwargs]

        letters = await insist(listed)
        some = self._random.sample(letters, min(2, len(letters)))
        cured = self._random.random() < 0.5
        if cured:
            for key in some:
                self._promises.setdefault(key, Promise()).cured = True
        return any(await insist(lambda: replay(self.queue, some, kwargs={"fails": 0} if cured else None)))

    async def _slots(self) -> None:
        await insist(self.queue.set_slots, self._random.choice([None, 3, 6, 20]))

    async def _some(self, *states: str, of: Container[str] | None = None) -> list[LiveJob]:
        """A few jobs in some states, if of some keys, of the first that are met."""

        async def listed() -> list[LiveJob]:
            found = live_jobs(self.queue, Which(states=states), 200)
            return [job async for job in found if of is None or job.key in of]

        found = await insist(listed)
        return self._random.sample(found, min(3, len(found)))
