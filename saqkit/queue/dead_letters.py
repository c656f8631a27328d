"""Dead letters: jobs that will not be tried again by themselves. They can be read, replayed and purged."""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable
from dataclasses import dataclass
from typing import Any

from saqkit.queue.queue import Queue


@dataclass(frozen=True)
class DeadLetter:
    """A dead job: what it was, why it died (`error` is a stack trace or a reason), after how many attempts and crashes.

    `died_at` and `queued_at` are epoch seconds of the broker's clock.
    """

    key: str
    queue: str
    function: str
    kwargs: dict[str, Any]
    error: str
    attempts: int
    crashes: int
    queued_at: float
    died_at: float


async def dead_letters(queue: Queue, limit: int = 100) -> AsyncIterator[DeadLetter]:
    """The dead letters of a queue, oldest first."""
    rows = await queue.redis.zrange(queue.namespace("dead"), 0, limit - 1, withscores=True)
    async with queue.redis.pipeline(transaction=False) as pipe:
        for raw, _ in rows:
            pipe.hmget(queue.key_of(raw.decode()), ["body", "att", "crash", "at_q", "err"])
        found = await pipe.execute()
    for (raw, died_at), (body, attempts, crashes, queued_at, error) in zip(rows, found, strict=True):
        if body is None:
            continue
        try:
            job = queue.deserialize(body)
        except Exception:  # it is here because nobody can read it
            job = None
        yield DeadLetter(
            key=raw.decode(),
            queue=queue.name,
            function=job.function if job else "",
            kwargs=(job.kwargs or {}) if job else {},
            error=error.decode() if error else (job.error or "") if job else "",
            attempts=int(attempts or 0),
            crashes=int(crashes or 0),
            queued_at=float(queued_at),
            died_at=died_at,
        )


async def replay(queue: Queue, keys: Iterable[str]) -> list[bool]:
    """Queue dead letters again with all their attempts before them; returns for each whether it was one."""
    return [bool(said) for said in await queue.run_script("replay", *keys)]


async def purge(queue: Queue, keys: Iterable[str]) -> int:
    """Remove dead letters for good; returns how many there were."""
    return int(await queue.run_script("forget", -1, *keys))
