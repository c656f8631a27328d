"""How jobs get into the line: what is enqueued in one turn of the loop shares a script call, bulk goes in chunks."""

from __future__ import annotations

import asyncio
import secrets
from collections import deque
from collections.abc import AsyncIterator, Iterable, Iterator, Mapping, Sequence
from itertools import islice
from math import isfinite
from typing import TYPE_CHECKING, Any

from saq.job import Job
from saq.utils import now_seconds

from saqkit.errors import UsageError
from saqkit.queue.fields import refuse_odd_fields, refuse_odd_policy
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
Said = int | bytes
"""1 accepted, 0 refused because of its key, or the key of the job that has its unique id."""


class Enqueuer:
    """Serves the `enqueue` calls of one process."""

    def __init__(self, queue: Queue) -> None:
        self._queue = queue
        self._waiting: list[tuple[Words, asyncio.Future[Said]]] = []
        self._busy = False
        self._task: asyncio.Task[None] | None = None

    async def one(self, job: Job) -> bool:
        """Enqueue a job, together with those of others that are enqueued meanwhile; whether it was accepted."""
        words = self.words(job)
        if not self._busy:
            self._busy = True
            try:
                return _accepted(job, (await self._send([words]))[0])
            finally:
                self._busy = False
                if self._waiting:
                    self._begin()
        future: asyncio.Future[Said] = asyncio.get_running_loop().create_future()
        self._waiting.append((words, future))
        return _accepted(job, await future)

    async def many(self, jobs: Iterable[Job], chunk: int, batch: str = "") -> list[bool]:
        """Enqueue jobs, as members of a batch if one is named; returns for each whether it was accepted."""
        left, unique = enumerate(jobs), list[tuple[int, Job]]()

        async def chunks() -> AsyncIterator[list[Words]]:
            while batch := list(islice(left, chunk)):
                for n, job in batch:
                    await self._queue.prepare(job)
                    if "unique" in job.__dict__:
                        unique.append((n, job))
                yield [self.words(job) for _, job in batch]

        said = await self._all(chunks(), batch)
        for n, job in unique:
            _accepted(job, said[n])
        return [one == 1 for one in said]

    async def fire(self, call: str, jobs: Sequence[Job]) -> list[bool]:
        """Enqueue the firings of a schedule, if `call` says what its script expects; else nothing is returned."""
        for job in jobs:
            await self._queue.prepare(job)
        return [said == 1 for said in await self._send([self.words(job) for job in jobs], call)]

    async def _all(self, chunks: AsyncIterator[list[Words]], batch: str = "") -> list[Said]:
        """Send chunks, each in a round trip; the next ones are written while the server works on the last."""
        accepted: list[Said] = []
        under_way: deque[asyncio.Task[list[Said]]] = deque()
        try:
            async for chunk in chunks:
                if len(under_way) == AHEAD:
                    accepted += await under_way.popleft()
                under_way.append(asyncio.create_task(self._send(chunk, batch=batch), name="saqkit-enqueue"))
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
                key = key or secrets.token_hex(16)
                used.append(key)
                yield QueuedJob(function=function, kwargs=dict(kwargs), key=key, **properties)

        if not queue.plain or (queue.payload is not None and queue.payload.sealed(function)):
            accepted: Sequence[Said] = await self.many(jobs(), chunk)
        else:
            model = QueuedJob(function=function, key="", **properties)
            await queue.prepare(model)
            alike = self.words(model)[2:]
            stored = as_dict(model)
            for name in ("key", "queue", "status"):
                stored.pop(name, None)
            head = compact(stored)[:-1]

            def words(kwargs: Mapping[str, Any], key: str | None) -> Words:
                key = _key(key, function) if key else secrets.token_hex(16)
                used.append(key)
                try:
                    body = f'{head},"key":{compact(key)},"kwargs":{compact(kwargs)}}}'
                except (TypeError, ValueError, RecursionError) as error:
                    raise not_json(key, function, kwargs, error) from error
                return key, self._fits(body, key, function), *alike[:2], _weight(kwargs), alike[3]

            async def chunks() -> AsyncIterator[list[Words]]:
                while batch := [words(kwargs, key) for kwargs, key in islice(pairs, chunk)]:
                    yield batch

            accepted = await self._all(chunks())
        return [key if one == 1 else None for key, one in zip(used, accepted, strict=True)]

    def words(self, job: Job) -> Words:
        """What `enqueue.lua` is told of a job: key, body, priority, due, users, keep."""
        queue, known = self._queue, job.__dict__
        level = job.priority or _NORMAL
        if isinstance(level, bool) or level not in LEVELS:
            raise UsageError(f"priority {job.priority} of job {job.key}: 1 critical, 2 high, 3 normal, 4 low")
        refuse_odd_fields(job)
        _key(job.key, job.function)
        if "unique" in known:
            _writable(known["unique"].id, job.function)
        if (policy := queue.policy_of(job)) is not None:
            job.retries = policy.max_attempts
        if queue.payload is not None:
            queue.payload.refuse_elsewhere(job)
        refuse_odd_policy(job)  # whose error shows it: by now it has nothing that is to be sealed
        try:
            text = queue.serialize(job)
        except (TypeError, ValueError, RecursionError) as error:
            raise not_json(job.key, job.function, {**(job.kwargs or {}), "meta": job.meta}, error) from error
        body = self._fits(text, job.key, job.function)
        due = f"={known['fixed']:.6f}" if "fixed" in known else float(job.scheduled) if job.scheduled else 0
        keep: object = _kept_s(job)
        if "unique" in known:
            keep = known["unique"].words(keep)
        return job.key, body, int(level), due, _weight(job.kwargs or {}), keep

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

    async def _send(self, words: Sequence[Words], call: str = "", batch: str = "") -> list[Said]:
        # A call whose reply was lost is known by its name: sent again, it reports success.
        queue = self._queue
        call = call or secrets.token_hex(4)
        args: list[Any] = [queue.tick_s, f"batch {batch} {call}" if batch else call, 0.0]
        alike = words[0][2:] if words else ()
        if words and all(one[2:] == alike for one in words):
            args += ("", *alike)
            for one in words:
                args += one[:2]
        else:
            for one in words:
                args += one
        for pause_s in _PAUSES_S:
            try:
                return await self._run_script(args)
            except AWAY:
                await asyncio.sleep(pause_s)
        return await self._run_script(args)

    async def _run_script(self, args: list[Any]) -> list[Said]:
        args[2] = now_seconds()  # of this try: the server takes it for the present when it reckons due times
        said: list[Said] = await self._queue.run_script("enqueue", *args)
        if not said and args[1].startswith("batch "):
            batch = args[1].split()[1]
            raise UsageError(f"batch {batch} of queue {self._queue.name} is closed, or not known (open another one)")
        return said


def not_json(key: str, function: str, kwargs: Mapping[str, Any], error: Exception) -> UsageError:
    """The error that says which argument of a job cannot be written down."""
    for name, value in kwargs.items():
        try:
            compact(value)
        except (TypeError, ValueError, RecursionError):
            what = f"its {name} is a {type(value).__name__} that JSON cannot hold"
            return UsageError(f"job {key} ({function}): {what} (pass texts, numbers, lists and tables of them)")
    return UsageError(f"job {key} ({function}): cannot be written as JSON: {error}")


def _accepted(job: Job, said: Said) -> bool:
    if isinstance(said, bytes):
        job.__dict__["twin"] = said.decode()
    return said == 1


def _key(key: Any, function: str) -> str:
    """A job's key, if it can be one."""
    if not isinstance(key, str):
        raise UsageError(f"job {key!r} ({function}): its key is a {type(key).__name__} (give a text)")
    if key.startswith(">"):  # `>QUEUE>KEY` is what is on its way there
        raise UsageError(f"job {key} ({function}): keys that begin with > are the queue's own (take another sign)")
    _writable(key, function)
    return key


def _writable(text: str, function: str) -> None:
    try:
        text.encode()
    except UnicodeEncodeError:
        raise UsageError(f"job {text!a} ({function}): half a character in its key or unique id cannot be written "
                         "(a file's name that is not UTF-8? use os.fsencode(name).hex())") from None  # fmt: skip


def _kept_s(job: Job) -> float:
    if job.key.startswith("cron:"):  # SAQ's workers enqueue the next firing under the same key
        return 0
    meta: object = job.meta
    said = meta.get("keep_key_s") or 0 if isinstance(meta, dict) else 0
    if not isinstance(said, int | float) or not isfinite(said):
        raise UsageError(f"job {job.key} ({job.function}): keep_key_s {said!r} (give seconds)")
    return said


def _weight(kwargs: Mapping[str, Any]) -> int:
    users = kwargs.get("users")
    return len(users) if isinstance(users, list | tuple) else 0
