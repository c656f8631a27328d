"""Dead letters: jobs that will not be tried again by themselves. They are listed, grouped, replayed, purged, exported.

Reading goes in pages of `PAGE`, so that memory stays bounded whatever their number. It ends with those that were dead
when it began: what is replayed and dies again meanwhile is not met twice.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from heapq import heapify, heappop, heapreplace
from typing import TYPE_CHECKING, Any

from saqkit.errors import UsageError
from saqkit.queue.letter import DeadLetter, Filter
from saqkit.queue.queue import Queue
from saqkit.queue.replaying import PAGE, purge, relay, replay

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["Chosen", "DeadLetter", "Filter", "Group", "dead_letters", "dead_letters_frame", "get", "get_all", "groups",
           "purge", "purge_all", "relay", "replay", "replay_all"]  # fmt: skip

_ALL = Filter()
_FIELDS = ["body", "prio", "att", "crash", "at_q", "at_t", "err", "worker"]
_BY = ("error_class", "message", "function", "queue", "tenant")


@dataclass(frozen=True)
class Group:
    """Dead letters that have something in common: `by` says what (see `groups`); `example` is the key of the latest."""

    by: dict[str, str]
    count: int
    first_died_at: float
    last_died_at: float
    example: str


@dataclass(frozen=True)
class Chosen:
    """What was done to the dead letters of a filter: how many were `found`, and of how many it is `done`."""

    found: int
    done: int


async def dead_letters(
    queues: Queue | Iterable[Queue],
    limit: int | None = 100,
    *,
    where: Filter = _ALL,
    offset: int = 0,
    newest_first: bool = False,
) -> AsyncIterator[DeadLetter]:
    """The dead letters of a queue, or of several, in order of death, the oldest first.

    At most `limit` (None: any number) of those that `where` means, after the first `offset` of them.
    """
    streams = [_read(queue, where, newest_first) for queue in ([queues] if isinstance(queues, Queue) else queues)]
    number = 0
    async for letter in _merged(streams, newest_first):
        if limit is not None and number >= offset + limit:
            return
        if number >= offset:
            yield letter
        number += 1


async def get(queue: Queue, key: str) -> DeadLetter | None:
    """The dead letter of a key, None if there is none."""
    return (await get_all(queue, [key]))[0]


async def get_all(queue: Queue, keys: Sequence[str]) -> list[DeadLetter | None]:
    """The dead letters of keys, None where there is none."""
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.zscore(queue.namespace("dead"), key)
        died = await pipe.execute()
    rows = [(key, at) for key, at in zip(keys, died, strict=True) if at is not None]
    found = {letter.key: letter for letter in await _letters(queue, rows)}
    return [found.get(key) for key in keys]


async def groups(
    queues: Queue | Iterable[Queue], by: Sequence[str] = ("error_class", "message"), *, where: Filter = _ALL
) -> list[Group]:
    """Count the dead letters that agree in all of `by`, the largest group first.

    `by` are some of error_class, message (without numbers, ids, addresses and quoted words), function, queue, tenant.
    """
    if unknown := [name for name in by if name not in _BY]:
        raise UsageError(f"dead letters cannot be grouped by {', '.join(unknown)} (use {', '.join(_BY)})")
    found: dict[tuple[str, ...], Group] = {}
    async for letter in dead_letters(queues, None, where=where):
        values = tuple(str(getattr(letter, name)) for name in by)
        old = found.get(values)
        first, number = (old.first_died_at, old.count) if old else (letter.died_at, 0)
        found[values] = Group(dict(zip(by, values, strict=True)), number + 1, first, letter.died_at, letter.key)
    return sorted(found.values(), key=lambda group: (-group.count, -group.last_died_at))


async def replay_all(
    queues: Queue | Iterable[Queue],
    where: Filter = _ALL,
    *,
    kwargs: Mapping[str, Any] | None = None,
    to: Queue | str | None = None,
    before: Callable[[list[DeadLetter]], Awaitable[None]] | None = None,
    dry_run: bool = False,
    limit: int | None = None,
) -> Chosen:
    """Replay (see `replay`) the dead letters that `where` means, in chunks; `before` is called with each chunk first.

    At most `limit` of them (None: all), those that died first, whichever of the queues they are of. What a chunk has of
    a queue is one atomic step. With `dry_run` they are only counted.
    """
    of = {queue.name: queue for queue in ([queues] if isinstance(queues, Queue) else queues)}
    found = done = 0
    async for chunk in _in_chunks(dead_letters(of.values(), limit, where=where)):
        found += len(chunk)
        if not dry_run:
            if before is not None:
                await before(chunk)
            for name in dict.fromkeys(letter.queue for letter in chunk):
                letters = [letter for letter in chunk if letter.queue == name]
                done += sum(await replay(of[name], letters, kwargs=kwargs, to=to))
    return Chosen(found, done)


async def purge_all(queue: Queue, where: Filter = _ALL, *, dry_run: bool = False) -> Chosen:
    """Remove the dead letters that `where` means for good; with `dry_run` they are only counted."""
    found = done = 0
    async for chunk in _in_chunks(dead_letters(queue, None, where=where)):
        found += len(chunk)
        if not dry_run:
            done += await purge(queue, chunk)
    return Chosen(found, done)


async def dead_letters_frame(
    queues: Queue | Iterable[Queue], limit: int | None = None, *, where: Filter = _ALL
) -> pd.DataFrame:
    """The dead letters as a table, in order of death, with the columns `saqkit.queue.tables.DEAD_LETTERS`."""
    import json

    from saqkit.queue.tables import DEAD_LETTERS, typed_frame

    rows = []
    async for letter in dead_letters(queues, limit, where=where):
        row = {name: getattr(letter, name) for name in DEAD_LETTERS}
        for name in ("kwargs", "meta"):
            row[name] = json.dumps(row[name], default=repr, ensure_ascii=False)
        rows.append(row)
    return typed_frame(rows, DEAD_LETTERS)


async def _in_chunks(letters: AsyncIterator[DeadLetter]) -> AsyncIterator[list[DeadLetter]]:
    chunk: list[DeadLetter] = []
    async for letter in letters:
        chunk.append(letter)
        if len(chunk) == PAGE:
            yield chunk
            chunk = []
    if chunk:
        yield chunk


async def _merged(streams: Sequence[AsyncIterator[DeadLetter]], newest_first: bool) -> AsyncIterator[DeadLetter]:
    sign = -1 if newest_first else 1
    heads = [(sign * letter.died_at, n, letter) for n, one in enumerate(streams) async for letter in _first(one)]
    heapify(heads)
    while heads:
        _, n, letter = heads[0]
        yield letter
        following = await anext(streams[n], None)
        if following is None:
            heappop(heads)
        else:
            heapreplace(heads, (sign * following.died_at, n, following))


async def _first(stream: AsyncIterator[DeadLetter]) -> AsyncIterator[DeadLetter]:
    if (letter := await anext(stream, None)) is not None:
        yield letter


async def _read(queue: Queue, where: Filter, newest_first: bool) -> AsyncIterator[DeadLetter]:
    """Pages begin where the last one ended, so that what is removed meanwhile makes nobody be left out."""
    name, (seconds, micros) = queue.namespace("dead"), await queue.redis.time()
    low, high = where.since or 0.0, min(where.until or float("inf"), seconds + micros / 1e6)
    seen: set[bytes] = set()
    while True:
        number = PAGE + len(seen)
        if newest_first:
            rows = await queue.redis.zrevrangebyscore(name, high, low, start=0, num=number, withscores=True)
        else:
            rows = await queue.redis.zrangebyscore(name, low, high, start=0, num=number, withscores=True)
        fresh = [(key.decode(), at) for key, at in rows if key not in seen]
        if not fresh:
            return
        last = fresh[-1][1]
        seen = {key for key, at in rows if at == last}
        low, high = (low, last) if newest_first else (last, high)
        for letter in await _letters(queue, fresh):
            if where.admits(letter):
                yield letter


async def _letters(queue: Queue, rows: Sequence[tuple[str, float]]) -> list[DeadLetter]:
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key, _ in rows:
            pipe.hmget(queue.key_of(key), _FIELDS)
        found = await pipe.execute()
    return [_letter(queue, key, died, f) for (key, died), f in zip(rows, found, strict=True) if f[0] is not None]


def _letter(queue: Queue, key: str, died_at: float, fields: Sequence[bytes | None]) -> DeadLetter:
    body, priority, attempts, crashes, queued_at, taken_at, error, worker = fields
    try:
        job = queue.deserialize(body)
    except Exception:  # it is here because nobody can read it
        job = None
    if job is not None and not isinstance(job.function, str):
        job = None
    return DeadLetter(
        key=key,
        queue=queue.name,
        function=job.function if job else "",
        kwargs=queue.shown(job) if job else {},
        meta=job.meta if job and isinstance(job.meta, dict) else {},
        priority=int(priority or 0),
        error=error.decode() if error else (job.error or "") if job else "",
        attempts=int(attempts or 0),
        crashes=int(crashes or 0),
        queued_at=float(queued_at or "nan"),
        started_at=float(taken_at or "nan"),
        died_at=died_at,
        worker=worker.decode() if worker else "",
    )
