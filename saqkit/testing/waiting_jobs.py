"""What waits on a queue to be run: to be looked at, or asserted."""

from __future__ import annotations

from typing import Any

from saq.job import Job

from saqkit.queue.queue import Queue
from saqkit.queue.stored import LEVELS


async def enqueued(queue: Queue, function: str | None = None, /, **properties: Any) -> list[Job]:
    """The jobs that wait: by level, and in their lines inside a level; then the delayed ones, by due time.

    That is the order in which they are taken, unless the queue has weights, fairness or limits: these decide when
    somebody asks.

    `function` and `properties` narrow them down, and are what `queue.enqueue` takes: `enqueued(queue, "greet", user=3)`
    finds the jobs of `greet` whose argument `user` is 3, whatever other arguments they have; `key`, `priority` and the
    like are compared with the job's own. Jobs that run or have ended are not among them.
    """
    async with queue.redis.pipeline(transaction=True) as pipe:
        for name in (*(f"queued:{level}" for level in LEVELS), "incomplete"):
            pipe.zrange(queue.namespace(name), 0, -1)
        keys = [queue.key_from(key) for line in await pipe.execute() for key in line]
    found = [job for job in await queue.jobs(keys) if job is not None]
    return [job for job in found if function in (None, job.function) and _has(job, properties)]


async def assert_enqueued(queue: Queue, function: str, /, **properties: Any) -> Job:
    """The one job that waits and is so (see `enqueued`); raises `AssertionError`, which lists what waits, otherwise."""
    found = await enqueued(queue, function, **properties)
    if len(found) != 1:
        waiting = ", ".join(_described(job) for job in (await enqueued(queue))[:10]) or "nothing"
        given = ", ".join([function, *(f"{name}={value!r}" for name, value in properties.items())])
        raise AssertionError(f"{len(found)} jobs wait that are {given}, not one; there waits: {waiting}")
    return found[0]


def _has(job: Job, properties: dict[str, Any]) -> bool:
    arguments = job.kwargs or {}
    return all(
        getattr(job, name) == value
        if name in Job.__dataclass_fields__
        else name in arguments and arguments[name] == value
        for name, value in properties.items()
    )


def _described(job: Job) -> str:
    return f"{job.function}({', '.join(f'{name}={value!r}' for name, value in (job.kwargs or {}).items())})"
