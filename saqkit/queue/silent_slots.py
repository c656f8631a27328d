"""Jobs whose slot ends without a word."""

from __future__ import annotations

import asyncio
import logging
from functools import partial
from typing import TYPE_CHECKING, Any

from saq.job import Job, Status

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue


logger = logging.getLogger("saqkit")


class SilentSlots:
    """SAQ's worker says nothing of a function that cancels itself: without this the job would never end."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._failing: set[asyncio.Task[None]] = set()

    def watch(self, job: Job) -> None:
        """Fail `job` if the slot of SAQ's worker that this is called in ends and has said nothing."""
        slot = asyncio.current_task()
        if slot is not None and slot.get_name() == "process":
            slot.add_done_callback(partial(self._ended, job))

    def close(self) -> None:
        """Leave alone what has not been failed yet."""
        for task in self._failing:
            task.cancel()

    def _ended(self, job: Job, slot: asyncio.Task[Any]) -> None:
        claim, queue = self._queue.claim_of(job), self._queue
        if claim is None or claim.said is not None or slot.cancelling():
            return

        async def fail() -> None:
            await asyncio.sleep(1)  # it may be an abort, of which the worker speaks later
            if claim.said is None and not claim.lost:
                error = "CancelledError: the function cancelled itself"
                try:
                    await (queue.retry(job, error) if job.retryable else queue.finish(job, Status.FAILED, error=error))
                except Exception:  # whatever its function has made of it: it comes back when its lease expires
                    logger.exception("job %s: how it ended could not be told", job.key)
                    queue.disown(job)

        task = asyncio.create_task(fail(), name="saqkit-fail")
        self._failing.add(task)
        task.add_done_callback(self._failing.discard)
