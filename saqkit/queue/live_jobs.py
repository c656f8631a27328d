"""Jobs that have not ended: waiting, delayed and active ones, read in pages, and which of them are meant.

Reading goes in pages of `PAGE`, so that neither the server is held up nor memory filled, however many there are. A job
that moves meanwhile (it is taken, it comes due) may be met in its old place, in its new one, or in none.
"""

from __future__ import annotations

from collections.abc import AsyncIterator, Iterable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any

from saqkit.errors import UsageError
from saqkit.queue.letter import Addressed
from saqkit.queue.stored import LEVELS
from saqkit.spec.base import did_you_mean
from saqkit.spec.lifecycle import State
from saqkit.spec.topology import Priority

if TYPE_CHECKING:
    from saqkit.queue.stored import StoredJobs

PAGE = 1000

WORDS = {
    State.QUEUED: "waiting",
    State.SCHEDULED: "delayed",
    State.ACTIVE: "active",
    State.DONE: "done",
    State.DEAD: "dead",
    State.CANCELLED: "cancelled",
    State.OUTGOING: "outgoing",
}
"""What operators call each state of a job."""

LIVE = ("waiting", "delayed", "active")

_STATES = {word: state for state, word in WORDS.items()}
_FIELDS = ["body", "state", "prio", "att", "crash", "at_q", "at_r", "at_t", "worker", "err", "enq"]


@dataclass(frozen=True)
class LiveJob(Addressed):
    """A job as it is stored. Times are epoch seconds of the broker's clock, NaN where there is none.

    `state`: a word of `WORDS`. `ready_at`: when it can be taken, or could be. `taken_at`: when it was taken for its
    last attempt, by `worker`; of an active job, for the one that runs. A body that nobody can read has function "".
    `call` names the call that enqueued it: a job that is enqueued later with the same key has another.
    """

    key: str
    queue: str
    state: str
    function: str
    priority: int
    attempts: int
    crashes: int
    queued_at: float
    ready_at: float
    taken_at: float
    worker: str
    error: str
    ttl: int
    call: str = field(repr=False)
    kwargs: dict[str, Any] = field(repr=False)
    meta: dict[str, Any] = field(repr=False)


@dataclass(frozen=True)
class Which:
    """Which jobs are meant: those to which all that is given applies. Without anything given: all that have not ended.

    `priority` is a level's number or name; `states` are some of "waiting", "delayed", "active". Raises `UsageError` for
    a level or state that does not exist.
    """

    function: str | None = None
    tenant: str | None = None
    priority: int | str | None = None
    states: Sequence[str] = LIVE

    def __post_init__(self) -> None:
        if unknown := [state for state in self.states if state not in LIVE]:
            raise UsageError(f'there is no state "{unknown[0]}" of a job that has not ended '
                             f"({did_you_mean(unknown[0], LIVE)})")  # fmt: skip
        if self.priority is not None:
            object.__setattr__(self, "priority", level_of(self.priority))

    def admits(self, job: LiveJob) -> bool:
        """Whether it applies to `job`."""
        return (
            job.state in self.states
            and self.function in (None, job.function)
            and self.tenant in (None, job.tenant)
            and self.priority in (None, job.priority)
        )


ALL = Which()


def level_of(priority: int | str) -> int:
    """The number of a priority level, by its number or name; `UsageError` if there is none."""
    word = str(priority)
    if word.isdecimal() and int(word) in LEVELS:
        return int(word)
    names = {level.name.lower(): int(level) for level in Priority}
    if word.lower() not in names:
        raise UsageError(f'there is no priority "{word}" (1 critical, 2 high, 3 normal, 4 low)')
    return names[word.lower()]


async def live_jobs(queue: StoredJobs, which: Which = ALL, limit: int | None = None) -> AsyncIterator[LiveJob]:
    """The jobs that `which` means and that were there when this began, at most `limit` of them (None: all).

    Active ones first, then waiting ones in the order of their lines, then delayed ones, the next due first.
    """
    seconds, micros = await queue.redis.time()
    began, number = seconds + micros / 1e6, 0
    seen: set[str] = set()
    for name in _places(which):
        async for keys in _pages(queue, name):
            for job in await stored(queue, [key for key in keys if key not in seen]):
                if not which.admits(job) or job.queued_at > began:
                    continue
                if number == limit:
                    return
                seen.add(job.key)
                number += 1
                yield job


async def stored(queue: StoredJobs, keys: Sequence[str]) -> list[LiveJob]:
    """What is stored of the jobs of some keys, in whatever state; those that are absent are left out."""
    found: list[LiveJob] = []
    for first in range(0, len(keys), PAGE):
        page = keys[first : first + PAGE]
        async with queue.redis.pipeline(transaction=False) as pipe:
            for key in page:
                pipe.hmget(queue.key_of(key), _FIELDS)
            rows = await pipe.execute()
        found += [_job(queue, key, row) for key, row in zip(page, rows, strict=True) if row[1] is not None]
    return found


async def ended_jobs(queue: StoredJobs, state: str) -> AsyncIterator[list[tuple[LiveJob, float]]]:
    """Pages of the jobs that are "done" or "cancelled".

    Each with when it ended (epoch seconds, NaN: unknown). There is no list of them: this looks through all jobs of the
    queue.
    """
    wanted = _STATES[state]
    async for keys in stored_keys(queue):
        async with queue.redis.pipeline(transaction=False) as pipe:
            for key in keys:
                pipe.hmget(queue.key_of(key), [*_FIELDS, "at_e"])
            rows = await pipe.execute()
        page = []
        for key, row in zip(keys, rows, strict=True):
            if row[1] is not None and int(row[1]) == wanted:
                *fields, ended = row
                job = _job(queue, key, fields)
                ended_at = float(ended) if ended is not None else _completed(queue, fields[0])
                page.append((job, ended_at))
        if page:
            yield page


async def stored_keys(queue: StoredJobs) -> AsyncIterator[list[str]]:
    """Pages of the keys of all jobs of a queue, whatever their state; one may be met twice.

    This looks through all keys of the server. Every job that is there from beginning to end is met.
    """
    cursor, prefix = 0, len(queue.key_of("").encode())
    while True:
        cursor, names = await queue.redis.scan(cursor=cursor, match=f"{_literal(queue.key_of(''))}*", count=PAGE)
        if names:
            yield [name[prefix:].decode() for name in names]
        if cursor <= 0:
            return


def _places(which: Which) -> Iterable[str]:
    if "active" in which.states:
        yield "leases"
    if "waiting" in which.states:
        levels = LEVELS if which.priority is None else [int(which.priority)]
        yield from (f"queued:{level}" for level in levels)
    if "delayed" in which.states:
        yield "incomplete"


async def _pages(queue: StoredJobs, place: str) -> AsyncIterator[list[str]]:
    """The keys of a sorted set; pages begin where the last one ended, so that who leaves makes nobody be left out."""
    name, low, seen = queue.namespace(place), float("-inf"), set[bytes]()
    while True:
        rows = await queue.redis.zrangebyscore(name, low, "+inf", start=0, num=PAGE + len(seen), withscores=True)
        fresh = [(key, score) for key, score in rows if key not in seen]
        if fresh:
            yield [queue.key_from(key) for key, _ in fresh]
        if len(fresh) < PAGE:
            return
        low = fresh[-1][1]
        seen = {key for key, score in rows if score == low}


def _job(queue: StoredJobs, key: str, fields: Sequence[bytes | None]) -> LiveJob:
    body, state, priority, attempts, crashes, queued_at, ready_at, taken_at, worker, error, call = fields
    try:
        job = queue.deserialize(body)
    except Exception:  # nobody can read it; whoever takes it makes it a dead letter
        job = None
    return LiveJob(
        key=key,
        queue=queue.name,
        state=WORDS[State(int(state or 0))],
        function=job.function if job else "",
        priority=int(priority or 0),
        attempts=int(attempts or 0),
        crashes=int(crashes or 0),
        queued_at=float(queued_at or "nan"),
        ready_at=float(ready_at or queued_at or "nan"),
        taken_at=float(taken_at or "nan"),
        worker=worker.decode() if worker else "",
        error=error.decode() if error else (job.error or "") if job else "",
        ttl=job.ttl if job else 600,
        call=call.decode() if call else "",
        kwargs=queue.shown(job) if job else {},
        meta=job.meta if job and isinstance(job.meta, dict) else {},
    )


def _completed(queue: StoredJobs, body: bytes | None) -> float:
    try:
        job = queue.deserialize(body)
    except Exception:
        return float("nan")
    return job.completed / 1000 if job and job.completed else float("nan")


def _literal(text: str) -> str:
    """A pattern of `SCAN` that means this text."""
    return "".join(f"\\{letter}" if letter in "*?[]\\" else letter for letter in text)
