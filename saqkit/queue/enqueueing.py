"""How jobs get into the line: what is enqueued in one turn of the loop shares a script call, bulk goes in chunks."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from typing import TYPE_CHECKING, Any

from saq.job import Job
from saq.utils import now_seconds

from saqkit.errors import UsageError
from saqkit.queue.job import QueuedJob, as_dict, compact
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.queue.stored import LEVELS
from saqkit.spec.topology import Priority

if TYPE_CHECKING:
    from saqkit.queue.queue import Queue

CHUNK = 500
AHEAD = 2
"""Chunks of a bulk that are on their way at once."""
_PAUSES_S = (0.02, 0.2)
_NORMAL = int(Priority.NORMAL)

Words = tuple[Any, ...]


class Enqueuer:
    """Serves the `enqueue` calls of one process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[tuple[Words, asyncio.Future[bool]]] = []
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    async def one(self, job: Job) -> bool:
        """Enqueue a job, together with those of others that are enqueued meanwhile; whether it was accepted."""
        words = self._words(job)
        if not self._busy:
            self._busy = True
            try:
                return (await self._send([words]))[0]
            finally:
                self._busy = False
                if self._waiting:
                    self._begin()
        future: asyncio.Future[bool] = asyncio.get_running_loop().create_future()
        self._waiting.append((words, future))
        return await future

    async def many(self, jobs: Iterable[Job], chunk: int) -> list[bool]:
        """Enqueue jobs; returns for each whether it was accepted."""
        left = iter(jobs)

        async def chunks() -> AsyncIterator[list[Words]]:
            while batch := list(islice(left, chunk)):
                for job in batch:
                    await self._queue.prepare(job)
                yield [self._words(job) for job in batch]

        return await self._all(chunks())

    async def _all(self, chunks: AsyncIterator[list[Words]]) -> list[bool]:
        """Send chunks, each in a round trip; the next ones are written while the server works on the last."""
        accepted: list[bool] = []
        under_way: deque[asyncio.Task[list[bool]]] = deque()
        try:
            async for chunk in chunks:
                if len(under_way) == AHEAD:
                    accepted += await under_way.popleft()
                under_way.append(asyncio.create_task(self._send(chunk), name="saqkit-enqueue"))
                await asyncio.sleep(0)  # it is on its way before the next chunk is made
        finally:
            await asyncio.gather(*under_way, return_exceptions=True)
        for sent in under_way:
            accepted += sent.result()
        return accepted

    async def each(
        self, function: str, arguments: Iterable[Mapping[str, Any]], keys: Iterable[str] | None, chunk: int,
        properties: Mapping[str, Any],
    ) -> list[str | None]:  # fmt: skip
        """Enqueue a job for each of some arguments; returns the keys, None where one was not accepted."""
        queue, prefix = self._queue, secrets.token_hex(8)
        named = zip(arguments, keys, strict=True) if keys is not None else None
        pairs = iter(named or ((kwargs, f"{prefix}:{n}") for n, kwargs in enumerate(arguments)))
        used: list[str] = []

        def jobs() -> Iterator[Job]:
            for kwargs, key in pairs:
                used.append(key)
                yield QueuedJob(function=function, kwargs=dict(kwargs), key=key, **properties)

        if not queue.plain:
            accepted = await self.many(jobs(), chunk)
        else:
            model = QueuedJob(function=function, key="", **properties)
            await queue.prepare(model)
            alike = self._words(model)[2:]
            stored = as_dict(model)
            for name in ("key", "queue", "status"):
                stored.pop(name, None)
            head = compact(stored)[:-1]

            def words(kwargs: Mapping[str, Any], key: str) -> Words:
                used.append(key)
                body = f'{head},"key":{compact(key)},"kwargs":{compact(kwargs)}}}'
                return key, self._fits(body, key, function), *alike[:2], _weight(kwargs), alike[3]

            async def chunks() -> AsyncIterator[list[Words]]:
                while batch := [words(kwargs, key) for kwargs, key in islice(pairs, chunk)]:
                    yield batch

            accepted = await self._all(chunks())
        return [key if one else None for key, one in zip(used, accepted, strict=True)]

    def _words(self, job: Job) -> Words:
        queue = self._queue
        level = job.priority or _NORMAL
        if level not in LEVELS:
            raise UsageError(f"priority {job.priority} of job {job.key}: 1 critical, 2 high, 3 normal, 4 low")
        if job.function in queue.policies:
            job.retries = queue.policies[job.function].max_attempts
        body = self._fits(queue.serialize(job), job.key, job.function)
        return (job.key, body, level, float(job.scheduled) if job.scheduled else 0, _weight(job.kwargs or {}),
                float(job.meta.get("keep_key_s") or 0) or 0)  # fmt: skip

    def _fits(self, body: str | bytes, key: str, function: str) -> str | bytes:
        most = self._queue.max_body_bytes
        if most and len(body) > most:
            raise UsageError(
                f"job {key} ({function}): its body of {len(body):,} bytes is longer than max_body_bytes of queue "
                f"{self._queue.name}, {most:,} (pass ids or where the data lie, not the data)"
            )
        return body

    def _begin(self) -> None:
        self._busy = True
        self._task = asyncio.create_task(self._run(), name="saqkit-enqueue")

    async def _run(self) -> None:
        try:
            await self._send_waiting()
        finally:
            self._busy = False
            if self._waiting:
                self._begin()

    async def _send_waiting(self) -> None:
        while self._waiting:
            batch, self._waiting = self._waiting[:CHUNK], self._waiting[CHUNK:]
            try:
                said = await self._send([words for words, _ in batch])
            except (Exception, asyncio.CancelledError) as error:
                for _, future in batch:
                    if not future.done():
                        future.cancel() if isinstance(error, asyncio.CancelledError) else future.set_exception(error)
                if isinstance(error, asyncio.CancelledError):
                    raise
                continue
            for (_, future), accepted in zip(batch, said, strict=True):
                if not future.done():
                    future.set_result(accepted)

    async def _send(self, words: Sequence[Words]) -> list[bool]:
        # A call whose reply was lost is known by its name: sent again, it reports success.
        queue = self._queue
        args: list[Any] = [queue.tick_s, secrets.token_hex(4), now_seconds()]
        alike = words[0][2:]
        if all(one[2:] == alike for one in words):
            args += ("", *alike)
            for one in words:
                args += one[:2]
        else:
            for one in words:
                args += one
        for pause_s in _PAUSES_S:
            try:
                return [bool(said) for said in await queue.run_script("enqueue", *args)]
            except AWAY:
                await asyncio.sleep(pause_s)
        return [bool(said) for said in await queue.run_script("enqueue", *args)]


def _weight(kwargs: Mapping[str, Any]) -> int:
    users = kwargs.get("users")
    return len(users) if isinstance(users, list | tuple) else 0
