"""The worker: all queues in one event loop, each with its own slots; leaves as soon as it is idle when told to stop."""

from __future__ import annotations

import asyncio
import logging
import traceback
from collections.abc import Awaitable, Callable, Mapping
from contextlib import suppress
from typing import Any

from saq.job import Job, Status
from saq.utils import now as now_ms

from saqkit.queue.queue import Queue

logger = logging.getLogger("saqkit")
Function = Callable[..., Awaitable[Any]]

CANCELLATION_S = 1.0
"""How long a function that was cancelled may take to end before its slot goes on without it."""
GIVING_BACK_S = 2.0
"""How long giving a job back may take; with the broker away for longer, the job comes back when its lease expires."""


class Worker:
    """Runs jobs of several queues.

    `slots`: jobs of each queue at once. `grace_s`: how long running jobs may go on once the worker is told to stop;
    what is not done by then is cancelled and given back, without the attempt being counted. `after_process` is called
    with a job's context when an attempt of it has ended, as SAQ's worker does.
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
        self._context, self._after_process = dict(context or {}), after_process
        self._stopping = asyncio.Event()
        self._idle: set[asyncio.Task[None]] = set()
        self._running: dict[asyncio.Task[Any], Job] = {}

    def stop(self) -> None:
        """Take no more jobs; `run` returns as soon as the running ones are done, or the grace is over."""
        self._stopping.set()
        for slot in list(self._idle):
            slot.cancel()

    async def run(self) -> None:
        """Serve until `stop`."""
        slots = [
            asyncio.create_task(self._slot(queue), name=f"slot-{name}-{n}")
            for name, queue in self.queues.items()
            for n in range(self.slots[name])
        ]
        for queue in self.queues.values():
            queue.worker_name = self.name
        watch = asyncio.create_task(self._watch(), name="watch")
        try:
            await self._stopping.wait()
            _, late = await asyncio.wait(slots, timeout=self.grace_s)
            if late:
                logger.warning(
                    "%d jobs are not done after the grace of %g s and are given back", len(late), self.grace_s
                )
        finally:
            watch.cancel()
            for slot in slots:
                slot.cancel()
            await asyncio.wait([watch, *slots])

    async def _slot(self, queue: Queue) -> None:
        me = asyncio.current_task()
        assert me is not None
        while not self._stopping.is_set():
            self._idle.add(me)
            try:
                job = await queue.dequeue()
            finally:
                self._idle.discard(me)
            if job is None:
                continue
            try:
                await self._execute(queue, job)
            except Exception:  # whatever a job did, its slot lives on; its lease ends with its timeout
                logger.exception("job %s: how it ended could not be told", job.key)

    async def _execute(self, queue: Queue, job: Job) -> None:
        self.jobs += 1
        job.attempts += 1
        job.started, job.worker_id = now_ms(), self.name
        function = self.functions.get(job.function)
        if function is None:
            await queue.finish(job, Status.FAILED, error=f"UnknownFunction: this worker has no {job.function}")
            return
        context = {**self._context, "worker": self, "queue": queue, "job": job}
        task = asyncio.create_task(_called(function, context, job.kwargs or {}))
        self._running[task] = job
        try:
            done, _ = await asyncio.wait({task}, timeout=job.timeout or None)
        except asyncio.CancelledError:
            await _cancel(task)
            with suppress(TimeoutError):
                async with asyncio.timeout(GIVING_BACK_S):
                    await queue.release(job)
            raise
        finally:
            del self._running[task]
        if not done:
            await _cancel(task)
            await self._failed(queue, job, f"TimeoutError: not done within {job.timeout} s")
        elif task.cancelled() and (claim := queue.claim_of(job)) is not None and claim.lost:
            logger.warning("job %s was cancelled, or recovered by another worker, while it ran here", job.key)
            await queue.finish_abort(job)
        elif task.cancelled():
            await self._failed(queue, job, "CancelledError: the function cancelled itself")
        elif (error := task.exception()) is not None:
            await self._failed(queue, job, "".join(traceback.format_exception(error)))
        else:
            await queue.finish(job, Status.COMPLETE, result=task.result())
        if self._after_process is not None:
            await self._after_process(context)

    async def _failed(self, queue: Queue, job: Job, error: str) -> None:
        last_line = error.strip().rsplit("\n", 1)[-1]
        logger.info("job %s failed in attempt %d of %d: %s", job.key, job.attempts, job.retries, last_line)
        if job.retryable:
            await queue.retry(job, error)
        else:
            await queue.finish(job, Status.FAILED, error=error)

    async def _watch(self) -> None:
        """Stop working on jobs that this process no longer holds, and tell the web page that the worker lives."""
        while True:
            for queue in self.queues.values():
                with suppress(Exception):
                    await queue.worker_info(self.name, queue_key=queue.name, ttl=30)
            for _ in range(20):
                await asyncio.sleep(0.5)
                for task, job in list(self._running.items()):
                    claim = job.__dict__.get("claim")
                    if claim is not None and claim.lost:
                        task.cancel()


async def _called(function: Function, context: Mapping[str, Any], kwargs: Mapping[str, Any]) -> Any:
    """Call a job's function: arguments that do not fit it are the job's failure, not its slot's."""
    return await function(context, **kwargs)


async def _cancel(task: asyncio.Task[Any]) -> None:
    task.cancel()
    _, stuck = await asyncio.wait({task}, timeout=CANCELLATION_S)
    if stuck:
        logger.warning("a function does not end although it was cancelled; its slot goes on without it")
