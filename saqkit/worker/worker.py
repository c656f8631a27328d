"""The worker: all queues in one event loop, each with its own slots; leaves as soon as it is idle when told to stop."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any

from saq.job import Job, Status
from saq.utils import now as now_ms

from saqkit.queue.cancelling import heed_cancellation
from saqkit.queue.letter import ids_of, tenant_of
from saqkit.queue.payload import hide, secrets_of
from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")
Function = Callable[..., Awaitable[Any]]

CANCELLATION_S = 1.0
"""How long a function that was cancelled may take to end before its slot goes on without it."""
FOLLOW_S = 5.0
"""How often a worker asks whether operators want another number of slots: each time costs an idle one a command."""
TELL_S = 15.0
"""How often a worker says that it lives; what it says is kept for twice as long. Each time costs six commands."""
GIVING_BACK_S = 2.0
"""How long giving jobs back may take; with the broker away for longer, they come back when their leases expire."""


@dataclass(eq=False)
class Slots:
    """The slots of one queue: how many there are and are free, and an event that is set while one is.

    Where operators have taken some away, less than none may be free: so many jobs have to end first.
    """

    queue: Queue
    number: int
    free: int = field(init=False)
    room: asyncio.Event = field(default_factory=asyncio.Event)

    def __post_init__(self) -> None:
        self.free = self.number
        self.room.set()

    def taken(self) -> None:
        """One slot has got a job."""
        self.free -= 1
        if self.free <= 0:
            self.room.clear()

    def left(self) -> None:
        """One slot is free again."""
        self.free += 1
        if self.free > 0:
            self.room.set()

    def resize(self, number: int) -> None:
        """Have so many slots from now on; what runs beyond them ends first."""
        self.number, self.free = number, self.free + number - self.number
        self.room.set() if self.free > 0 else self.room.clear()


@dataclass(eq=False)
class Running:
    """A job whose function runs: in which slot, with what context, until when, and why it was cancelled if it was."""

    job: Job
    slots: Slots
    context: dict[str, Any]
    deadline: asyncio.TimerHandle | None = None
    cancelled_for: str = ""


class Worker:
    """Runs jobs of several queues.

    `slots`: jobs of each queue at once. `grace_s`: how long running jobs may go on once the worker is told to stop;
    what is not done by then is cancelled and given back, without the attempt being counted. `after_process` is called
    with a job's context when an attempt of it has ended, as SAQ's worker does.

    A slot is free as soon as its function has ended: how it ended is said in the same round trip that asks for the next
    jobs, in that order, so that the server never sees more jobs active than there are slots.
    """

    def __init__(
        self,
        queues: Mapping[str, Queue],
        functions: Mapping[str, Function],
        slots: Mapping[str, int],
        *,
        context: Mapping[str, Any] | None = None,
        after_process: Function | None = None,
        name: str = "",
        grace_s: float = 30.0,
    ) -> None:
        self.queues, self.functions, self.slots = queues, functions, slots
        self.name, self.grace_s = name, grace_s
        self.jobs = 0
        self.metadata: dict[str, Any] = {}
        """What `info` and the web page show of this worker beside its counts."""
        self._context, self._after_process = dict(context or {}), after_process
        self._stopping = asyncio.Event()
        self.of_queues: dict[str, Slots] = {}
        self._feeders: list[asyncio.Task[None]] = []
        self._running: dict[asyncio.Task[Any], Running] = {}
        self._hooks: set[asyncio.Task[None]] = set()

    def running(self) -> list[str]:
        """The names of the functions that run now."""
        return [running.job.function for running in list(self._running.values())]

    def stop(self) -> None:
        """Take no more jobs; `run` returns as soon as the running ones are done, or the grace is over."""
        self._stopping.set()
        for feeder in self._feeders:
            if not feeder.cancelling():  # a second time would tear it out of giving back what is on its way
                feeder.cancel()

    async def run(self) -> None:
        """Serve until `stop`. Raises what has ended the serving of a queue, once the others have ended too."""
        for name, queue in self.queues.items():
            queue.worker_name = self.name
            self.of_queues[name] = Slots(queue, self.slots[name])
        with suppress(Exception):  # the broker may be away
            async with asyncio.timeout(1.0):
                await self._ask_for_slots()
        self._feeders = [
            asyncio.create_task(self._feed(slots), name=f"feed-{name}") for name, slots in self.of_queues.items()
        ]
        for feeder in self._feeders:
            feeder.add_done_callback(self._feeder_ended)
        watch = asyncio.create_task(self._watch(), name="watch")
        follow = asyncio.create_task(self._follow(), name="follow")
        try:
            await self._stopping.wait()
            self.stop()  # also those that were made after it was first called
            await asyncio.wait(self._feeders)
            if self._running or self._hooks:
                await asyncio.wait([*self._running, *self._hooks], timeout=self.grace_s)
        finally:
            watch.cancel()
            follow.cancel()
            self.stop()
            await asyncio.wait([watch, follow, *self._feeders])
            await self._give_up()
        for feeder in self._feeders:
            if not feeder.cancelled():
                feeder.result()

    def _feeder_ended(self, feeder: asyncio.Task[None]) -> None:
        """A process that serves a queue no longer ends, so that whoever watches it starts another."""
        if not feeder.cancelled() and (error := feeder.exception()) is not None:
            logger.error("%s has died, the worker stops", feeder.get_name(), exc_info=error)
            self.stop()

    async def _feed(self, slots: Slots) -> None:
        """Keep the slots of a queue busy."""
        try:
            while True:
                await slots.room.wait()
                for job in await slots.queue.dequeue_many(lambda: slots.free):
                    if slots.free > 0:
                        self._begin(slots, job)
                    else:  # there are fewer slots than when it was asked for
                        slots.queue.give_back(job)
        finally:
            await slots.queue.stop_taking()

    def _begin(self, slots: Slots, job: Job) -> None:
        self.jobs += 1
        running = Running(job, slots, {**self._context, "worker": self, "queue": slots.queue, "job": job})
        slots.taken()
        try:
            self._start(running)
        except Exception as error:  # whatever a job is, it fails alone: its queue is served on
            logger.exception("job %s could not be started", job.key)
            why = f"{type(error).__name__}: {error}"
            self._tell_end(running, lambda: self._failed(slots.queue, job, why))
            self._leave(running)

    def _start(self, running: Running) -> None:
        job = running.job
        job.attempts += 1
        job.started, job.worker_id = now_ms(), self.name
        function = self.functions.get(job.function)
        if function is None:
            error = f"UnknownFunction: this worker has no {job.function}"
            running.slots.queue.conclude(job, Status.FAILED, error=error)
            self._leave(running)
            return
        loop = asyncio.get_running_loop()
        ends_at = loop.time() + job.timeout if job.timeout else None
        task = loop.create_task(_called(function, running.context, job.kwargs or {}))
        self._running[task] = running
        task.add_done_callback(self._ended)
        if ends_at is not None:
            why = f"TimeoutError: not done within {job.timeout} s"
            running.deadline = loop.call_at(ends_at, self._cancel, task, why)

    def _cancel(self, task: asyncio.Task[Any], why: str) -> None:
        running = self._running[task]
        running.cancelled_for = why
        task.cancel()
        if running.deadline is not None:
            running.deadline.cancel()
        running.deadline = asyncio.get_running_loop().call_later(CANCELLATION_S, self._abandon, task)

    def _abandon(self, task: asyncio.Task[Any]) -> None:
        if task in self._running:
            logger.warning("a function does not end although it was cancelled; its slot goes on without it")
            self._ended(task)

    def _ended(self, task: asyncio.Task[Any]) -> None:
        running = self._running.pop(task, None)
        if running is None:  # abandoned before
            if not task.cancelled():
                task.exception()
            return
        if running.deadline is not None:
            running.deadline.cancel()
        self._tell_end(running, lambda: self._conclude(task, running))
        self._leave(running)

    def _tell_end(self, running: Running, tell: Callable[[], None]) -> None:
        try:
            tell()
        except Exception:  # whatever a job did, its slot lives on; it comes back when its lease expires
            logger.exception("job %s: how it ended could not be told", running.job.key)
            running.slots.queue.disown(running.job)

    def _conclude(self, task: asyncio.Task[Any], running: Running) -> None:
        queue, job = running.slots.queue, running.job
        claim = queue.claim_of(job)
        if claim is None:
            return  # an operator ended it through this very process
        done = task.done() and not task.cancelled() and task.exception() is None
        if claim.lost:
            logger.warning("job %s was cancelled, or recovered by another worker, while it ran here", job.key)
            queue.conclude(job, Status.ABORTED, error=job.error)
        elif running.cancelled_for and running.cancelled_for != _STOPPED:
            self._failed(queue, job, running.cancelled_for)
        elif done:
            queue.conclude(job, Status.COMPLETE, result=task.result())
        elif running.cancelled_for:
            queue.give_back(job)
        elif task.cancelled():
            self._failed(queue, job, "CancelledError: the function cancelled itself")
        else:
            self._failed(queue, job, "".join(traceback.format_exception(task.exception())))

    def _failed(self, queue: Queue, job: Job, error: str) -> None:
        if logger.isEnabledFor(logging.INFO):
            error = hide(error, secrets_of(job))
            last_line = error.strip().rsplit("\n", 1)[-1]
            ids = {"job": job.key, "attempt": job.attempts, "queue": queue.name, "tenant": tenant_of(job.meta),
                   **ids_of(job.meta)}  # fmt: skip
            logger.info("job %s failed in attempt %d of %d: %s", job.key, job.attempts, job.retries, last_line,
                        extra={name: value for name, value in ids.items() if value})  # fmt: skip
        if job.retryable:
            queue.conclude_retry(job, error)
        else:
            queue.conclude(job, Status.FAILED, error=error)

    def _leave(self, running: Running) -> None:
        """Free the slot, once what is to happen after the job has happened."""
        if self._after_process is None:
            running.slots.left()
            return
        hook = asyncio.get_running_loop().create_task(self._after(running))
        self._hooks.add(hook)
        hook.add_done_callback(self._hooks.discard)

    async def _after(self, running: Running) -> None:
        assert self._after_process is not None
        try:
            await self._after_process(running.context)
        except Exception:
            logger.exception("job %s: what is to happen after it failed", running.job.key)
        finally:
            running.slots.left()

    async def _give_up(self) -> None:
        """Cancel what still runs, and give it back."""
        if self._running:
            logger.warning("%d jobs are not done after the grace of %g s and are given back", len(self._running),
                           self.grace_s)  # fmt: skip
        for task, running in list(self._running.items()):
            if not running.cancelled_for:  # else it is ending, and what it was cancelled for is how it ends
                self._cancel(task, _STOPPED)
        while self._running:
            await asyncio.wait(list(self._running), timeout=0.05)
        with suppress(TimeoutError):
            async with asyncio.timeout(GIVING_BACK_S):
                for queue in self.queues.values():
                    await queue.flusher.over()
                if self._hooks:
                    await asyncio.wait(list(self._hooks))

    async def _watch(self) -> None:
        """Stop working on jobs that this process no longer holds, and tell the web page that the worker lives."""
        while True:
            for slots in self.of_queues.values():
                with suppress(Exception):
                    await self._tell(slots)
            heed_cancellation()
            for _ in range(round(TELL_S / 0.5)):
                await asyncio.sleep(0.5)
                for task, running in list(self._running.items()):
                    claim = running.slots.queue.claim_of(running.job)
                    if running.cancelled_for or claim is None:
                        continue
                    if claim.lost:
                        self._cancel(task, "lost")
                    elif claim.overdue():
                        self._cancel(task, f"HeartbeatError: no heartbeat for {running.job.heartbeat} s")

    async def _tell(self, slots: Slots) -> None:
        told = {**self.metadata, "slots": slots.number, "running": slots.number - slots.free}
        await slots.queue.worker_info(self.name, queue_key=slots.queue.name, metadata=told, ttl=round(2 * TELL_S))

    async def _follow(self) -> None:
        """Have as many slots as operators want."""
        while True:
            await asyncio.sleep(FOLLOW_S)
            with suppress(Exception):  # while the broker is away they stay as they are
                await self._ask_for_slots()
            heed_cancellation()

    async def _ask_for_slots(self) -> None:
        for name, slots in self.of_queues.items():
            wanted = await slots.queue.slots() or self.slots[name]
            if wanted != slots.number:
                logger.warning("queue %s: %d slots, there were %d", name, wanted, slots.number)
                slots.resize(wanted)
                await self._tell(slots)


_STOPPED = "the worker stops"


async def _called(function: Function, context: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a job's function: arguments that do not fit it are the job's failure, not its slot's."""
    return await function(context, **kwargs)
