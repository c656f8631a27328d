"""An operator who does everything that can be done to a queue, all the time, and notes when what held."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable, Container
from contextlib import suppress
from dataclasses import dataclass
from random import Random
from typing import Any

from a_worker_of_chaos import insist
from accounting import Promise
from everything import CHANGES, KEPT, SWEPT, UNWANTED
from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.configuring import QueueSettings
from saqkit.queue.dead_letters import Filter, dead_letters, replay
from saqkit.queue.live_jobs import LIVE, LiveJob, Which, live_jobs
from saqkit.queue.queue import Queue

UNTOUCHED_S = 1.0
"""For so long everything that a queue is started with holds."""


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
        self._over, self._all_done = asyncio.Event(), asyncio.Event()
        self.reigns: list[Reign] = []
        self.pauses: list[tuple[float, float]] = []
        """From when to when, by the server's clock, the queue was paused for certain."""
        self.promoted: set[str] = set()
        self.did: Counter[str] = Counter()
        """How often each of `acts` was done to a job or to the queue."""
        self.acts: dict[str, Callable[[], Awaitable[object]]] = {
            "pause": self._pause, "configure": self._configure, "cancel": self._cancel, "promote": self._promote,
            "cancel running": self._cancel_running, "prioritise": self._prioritise, "replay": self._replay,
            "retry failed": self._retry_failed, "slots": self._slots, "clear": self._clear, "clean": self._clean,
        }  # fmt: skip

    def stop(self) -> None:
        """Finish what is under way, and let jobs be taken."""
        self._over.set()

    async def all_done(self) -> None:
        """Wait until each act has been done at least once."""
        async with asyncio.timeout(20):
            await self._all_done.wait()

    async def begin(self) -> None:
        """Note what holds before anything is taken."""
        self.reigns.append(Reign(await self.queue.settings(), 0.0))

    async def run(self) -> None:
        """Operate. What has not been done to anything yet is tried more often; at first what was set up holds."""
        usual = [*self.acts, "configure", "cancel", "cancel", "prioritise"]
        began = time.monotonic()
        while not self._over.is_set():
            name = self._random.choice([*usual, *3 * [name for name in self.acts if name not in self.did]])
            if name == "configure" and time.monotonic() < began + UNTOUCHED_S:
                continue
            with suppress(UsageError):  # it runs by now, or has ended
                if await self.acts[name]() is not False:
                    self.did[name] += 1
            if self.did.keys() == self.acts.keys():
                self._all_done.set()
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
        await self._change(self._random.choice((*CHANGES, None, None)))

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
        key = f"h{len(self._promises)}"
        self._promises[key] = Promise(cancelled=True)
        job = Job("hold", key=key, ttl=0, timeout=0, retries=3, meta={"tenant": UNWANTED, **KEPT})
        await insist(self.queue.enqueue_many, [job])
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

    async def _retry_failed(self) -> bool:
        """Letters of jobs that failed, which no unique job does as often as that."""
        return bool((await insist(self.queue.retry_failed, 2, Filter(error_class="RuntimeError"))).done > 0)

    async def _clear(self) -> bool:
        """Some jobs, of which workers may take the first; only those that wait are cancelled, and then forgotten."""
        jobs = [Job("work", key=f"s{len(self._promises)}:{n}", ttl=0, retries=3, meta={"tenant": SWEPT},
                    kwargs={"ms": 5}, scheduled=60 * (n > 2)) for n in range(5)]  # fmt: skip
        self._promises.update({job.key: Promise(swept=True) for job in jobs})
        for job in jobs:
            job.scheduled += int(await self.now()) if job.scheduled else 0
        await insist(self.queue.enqueue_many, jobs)
        await asyncio.sleep(self._random.uniform(0.0, 0.1))
        return bool((await insist(self.queue.clear, Which(tenant=SWEPT))).done)

    async def _clean(self) -> bool:
        """The done jobs of which no key is kept."""
        return bool((await insist(self.queue.clean, "done", self._random.choice([0.0, 0.2]))).done)

    async def _slots(self) -> None:
        await insist(self.queue.set_slots, self._random.choice([None, 3, 6, 20]))

    async def _some(self, *states: str, of: Container[str] | None = None) -> list[LiveJob]:
        """A few jobs in some states, if of some keys, of the first that are met."""

        async def listed() -> list[LiveJob]:
            found = live_jobs(self.queue, Which(states=states), 200)
            return [job async for job in found if of is None or job.key in of]

        found = await insist(listed)
        return self._random.sample(found, min(3, len(found)))
