"""A run under way: events happen at their times, faults are carried out, and all is waited for until it is drained."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Callable, Coroutine, Sequence
from contextlib import suppress
from typing import Any, TypeVar

from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.clients import Clients
from saqkit.errors import RunError
from saqkit.producing import Producer
from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival, BrokerRestart, ClosedLoop, Fault, KillWorker, ProviderOutage, Workload
from saqkit.worker.launcher import Launcher
from saqkit.worker.recording import Row, read

T = TypeVar("T")
Progress = Callable[[int, int, str], None]
"""Called with (users served so far, users in all, what is going on)."""

STALLED_S = 60.0
"""A run in which nothing moves for so long, beyond the longest job timeout, is given up."""
OUTAGES_KNOWN_S = 0.3
"""Workers look for the times of outages every 0.1 s: the first event waits until all of them know."""
POLL_S = 0.05
_GATHER_S = 0.5
_ANSWERS = 10


class Firing:
    """One run on started workers; `rows` are the attempts that have been read back so far."""

    def __init__(
        self,
        topology: Topology,
        store: Store,
        queues: dict[str, Queue],
        launcher: Launcher,
        private: PrivateBroker | None,
        name: str,
        progress: Progress,
    ) -> None:
        self.rows: list[Row] = []
        self.started_at = 0.0
        self._topology, self._store, self._queues, self._launcher = topology, store, queues, launcher
        self._private, self._name, self._progress = private, name, progress
        self._read = dict.fromkeys(queues, 0)
        self._redis = next(iter(queues.values())).redis
        self._clock_offset_s = 0.0

    async def carry_out(self, workload: Workload, events: Sequence[Arrival], seed: int) -> None:
        """Let all events happen at their times and carry the faults out; returns when everything is drained."""
        faults = workload.faults
        self._clock_offset_s = await self._offset()
        self.started_at = time.time()
        self._announce_outages([fault for fault in faults if isinstance(fault, ProviderOutage)])
        troubles = asyncio.create_task(self._disturb(faults), name="saqkit-faults")
        relayed = any(isinstance(fault, BrokerRestart) for fault in faults)
        producer = Producer(self._topology, self._store, self._queues, relayed)
        if isinstance(workload.arrivals, ClosedLoop):
            clients = Clients(workload.arrivals, self._topology, seed, producer)
            producing = clients.send(self.started_at, self._news)
        else:
            producing = producer.follow(events, self.started_at)
        try:
            await self._unless_failed(troubles, producing)
            await self._unless_failed(troubles, self._drained(producer.users))
        finally:
            troubles.cancel()
            await asyncio.wait([troubles])

    async def _offset(self) -> float:
        """What this clock lacks of the broker's; of several answers the quickest is the surest."""
        found: list[tuple[float, float]] = []
        for _ in range(_ANSWERS):
            asked = time.time()
            seconds, microseconds = await self._redis.time()
            answered = time.time()
            found.append((answered - asked, seconds + microseconds / 1e6 - (asked + answered) / 2))
        return min(found)[1]

    def _announce_outages(self, faults: Sequence[ProviderOutage]) -> None:
        """Tell the workers when providers are out of service, and leave them the time to notice."""
        if not faults:
            return
        self.started_at += OUTAGES_KNOWN_S
        outages: dict[str, list[tuple[float, float]]] = {}
        for fault in faults:
            begins = self.started_at + fault.at_s
            outages.setdefault(fault.provider, []).append((begins, begins + fault.duration_s))
        part = self._launcher.folder / "outages.part"
        part.write_text(json.dumps(outages), encoding="utf-8")
        part.rename(self._launcher.folder / "outages.json")

    async def _disturb(self, faults: Sequence[Fault]) -> None:
        for fault in sorted(faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(self.started_at + fault.at_s - time.time())
            if isinstance(fault, KillWorker):
                self._launcher.kill(fault.worker)
            elif isinstance(fault, BrokerRestart) and self._private is not None:
                await in_thread(self._private.restart, fault.down_s)

    @staticmethod
    async def _unless_failed(troubles: asyncio.Task[None], work: Coroutine[Any, Any, None]) -> None:
        """Await `work`, but give up as soon as a fault could not be carried out."""
        task = asyncio.create_task(work)
        try:
            await asyncio.wait({task, troubles}, return_when=asyncio.FIRST_COMPLETED)
            if troubles.done() and (error := troubles.exception()) is not None:
                raise RunError(f"a fault could not be carried out: {error}") from error
            await task
        finally:
            task.cancel()
            await asyncio.wait([task])

    async def _drained(self, users: int) -> None:
        """Wait until no event is undelivered and no job is queued, delayed or active."""
        ended, moved_on, gathered_on = -1, time.monotonic(), 0.0
        patience_s = STALLED_S + max(job.timeout_s for job in self._topology.job_types.values())
        while True:
            await asyncio.sleep(POLL_S)
            heed_cancellation()
            try:
                left, delayed, now_ended = await self._counts()
                # In this order: an event is marked as delivered after its jobs are queued.
                if not left and not await self._store.undelivered(1) and not (await self._counts())[0]:
                    return await self.gather()
                if time.monotonic() - gathered_on > _GATHER_S:
                    await self.gather()
                    served = sum(row["users_done"] + row["users_failed"] for row in self.rows)
                    self._progress(min(users, served), users, "running")
                    gathered_on = time.monotonic()
            except AWAY:
                moved_on = time.monotonic()
                continue
            if now_ended != ended or delayed:
                ended, moved_on = now_ended, time.monotonic()
            elif time.monotonic() - moved_on > patience_s:
                words = "; ".join(self._launcher.last_words(n) for n in range(len(self._launcher.processes)))
                raise RunError(f"nothing moved for {patience_s:.0f} s, {left} jobs are left; workers say: {words}")

    async def _counts(self) -> tuple[int, int, int]:
        """(jobs that have not ended, those of them that are delayed, attempts that have ended), of one moment."""
        places = ["incomplete", "leases", "outgoing", *(f"queued:{level}" for level in range(1, 5))]
        async with self._redis.pipeline(transaction=True) as pipe:
            for queue in self._queues.values():
                for place in places:
                    pipe.zcard(queue.namespace(place))
                pipe.llen(queue.namespace("trace"))
            found = await pipe.execute()
        each = [found[n : n + len(places) + 1] for n in range(0, len(found), len(places) + 1)]
        return sum(sum(row[:-1]) for row in each), sum(row[0] for row in each), sum(row[-1] for row in each)

    async def _news(self) -> Sequence[Row]:
        """The attempts that were recorded since the last time; none while the broker is away."""
        known = len(self.rows)
        with suppress(*AWAY):
            await self.gather()
        return self.rows[known:]

    async def gather(self) -> None:
        """Read the attempts that were recorded since the last time."""
        for name, queue in self._queues.items():
            found = await queue.redis.lrange(queue.namespace("trace"), self._read[name], -1)  # type: ignore[misc]  # typed for both clients
            self._read[name] += len(found)
            self.rows += [read(record, name, self._name, self._clock_offset_s) for record in found]


async def in_thread(function: Callable[..., T], *args: Any) -> T:
    """`asyncio.to_thread` that leaves no call behind: when cancelled, it ends after the call has returned."""
    call = asyncio.ensure_future(asyncio.to_thread(function, *args))
    try:
        return await asyncio.shield(call)
    except asyncio.CancelledError:
        await asyncio.wait([call])
        raise
