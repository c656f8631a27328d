"""What a queue's jobs do now, what they have done, and how long they wait and take."""

from __future__ import annotations

import math
import sys
from collections import Counter
from dataclasses import asdict, dataclass, field
from itertools import islice
from typing import TYPE_CHECKING, Any

from saqkit.queue.live_jobs import LIVE, live_jobs
from saqkit.queue.operating import MOST_RECORDED, Pause
from saqkit.queue.recorded import attempts_of, read
from saqkit.queue.stored import LEVELS
from saqkit.spec.lifecycle import State

if TYPE_CHECKING:
    import pandas as pd

    from saqkit.queue.queue import Queue

TIMES = ("wait_p50_s", "wait_p95_s", "wait_p99_s", "service_p50_s", "service_p95_s", "service_p99_s")
"""Percentiles of the recorded attempts: wait = started - ready, service = finished - started, in seconds."""

_SHARES = (0.5, 0.95, 0.99)
_PAGE = 20_000


@dataclass(frozen=True)
class Group:
    """The jobs of a priority level or a tenant.

    `oldest_s`: how long the one that waits longest could have been taken (NaN: none waits). `dead`: letters there are
    now. `completed`, `failed` (became dead letters): of the `attempts` that are recorded, not since the queue exists,
    for the queue itself counts by neither level nor tenant; the percentiles of `times` (by the names of `TIMES`, NaN
    without any) stand on them too. None where it was not counted: `completed` and `failed` without a record, `delayed`
    and `dead` of a level unless tenants were asked for.
    """

    waiting: int
    delayed: int | None
    active: int | None
    completed: int | None
    failed: int | None
    dead: int | None
    oldest_s: float
    attempts: int
    times: dict[str, float]


@dataclass(frozen=True)
class Statistics:
    """A queue, at one moment of the broker's clock (`at`, epoch seconds).

    Now: `waiting`, `active`, `delayed` (with retries that wait for their delay), `dead` letters, letters that are
    `outgoing`; `paused`; `oldest_s`: how long the job that waits longest could have been taken (NaN: none waits);
    `active_s`: for how long each job that is active has been so since it was taken, the longest first.
    Since the queue exists: `completed`, `failed` (became dead letters), `retried`, `cancelled`, attempts `lost` with
    their workers; dead letters that nobody looked after, `dead_dropped` by the cap or `dead_expired`. `workers` that
    were heard of in the last 30 s; `slots` of each, where an operator has set them. `recording`: how many attempts are
    kept (0: none is recorded, 1: all); the percentiles of `times` stand on `attempts` of them. `priorities`: by level;
    `tenants`: by tenant, None unless they were asked for.
    """

    queue: str
    at: float
    waiting: int
    active: int
    delayed: int
    dead: int
    outgoing: int
    completed: int
    failed: int
    retried: int
    cancelled: int
    lost: int
    dead_dropped: int
    dead_expired: int
    workers: int
    slots: int | None
    paused: Pause | None
    oldest_s: float
    active_s: tuple[float, ...] = field(repr=False)
    recording: int
    attempts: int
    times: dict[str, float]
    priorities: dict[int, Group]
    tenants: dict[str, Group] | None

    @property
    def longest_active_s(self) -> float:
        """For how long the job that is active for longest has been so (NaN: none is)."""
        return max(self.active_s, default=math.nan)

    def to_dict(self) -> dict[str, Any]:
        """The same as plain data, the percentiles beside the counts; of the active jobs the longest time only."""
        plain = _flat(asdict(self))
        del plain["active_s"]
        plain["longest_active_s"] = self.longest_active_s
        plain["priorities"] = {level: _flat(group) for level, group in plain["priorities"].items()}
        if plain["tenants"] is not None:
            plain["tenants"] = {name: _flat(group) for name, group in plain["tenants"].items()}
        return plain


async def statistics(queue: Queue, *, tenants: bool = False, times: bool = True) -> Statistics:
    """Count a queue's jobs, in one step of the server; since when those that are active are so is read after it.

    With `tenants` every job that has not ended, and every dead letter, is read as well, in pages: the groups then may
    differ from the counts by what moved meanwhile. Without `times` what is recorded is not read. Percentiles are
    pandas' (linear) of the attempts table, see `recorded_attempts`; without a record they are NaN.
    """
    said = await queue.run_script("overview")
    at, paused, slots, recording = float(said[0]), Pause.of(said[1]), said[2], int(said[3] or 0)
    delayed, active, dead, outgoing = (int(number) for number in said[4:8])
    waiting = dict(zip(LEVELS, map(int, said[8:16:2]), strict=True))
    oldest = {level: at - float(since) if since else math.nan
              for level, since in zip(LEVELS, said[9:16:2], strict=True)}  # fmt: skip
    counted = {name.decode(): int(number) for name, number in zip(said[16::2], said[17::2], strict=True)}
    workers = (await queue.info())["workers"]
    attempts = await recorded_attempts(queue) if recording and times else None
    running = await _running(queue, at)
    found = await _read_jobs(queue, at) if tenants else None
    by_level = Counter(level for _, level in running)
    return Statistics(
        queue=queue.name,
        at=at,
        waiting=sum(waiting.values()),
        active=active,
        delayed=delayed,
        dead=dead,
        outgoing=outgoing,
        completed=counted.get("complete", 0),
        failed=counted.get("failed", 0),
        retried=counted.get("retried", 0),
        cancelled=counted.get("aborted", 0),
        lost=counted.get("lost", 0),
        dead_dropped=counted.get("dead_dropped", 0),
        dead_expired=counted.get("dead_expired", 0),
        workers=len(workers),
        slots=int(slots) if slots else None,
        paused=paused,
        oldest_s=_longest(oldest.values()),
        active_s=tuple(sorted((age for age, _ in running), reverse=True)),
        recording=recording,
        attempts=0 if attempts is None else len(attempts),
        times=times_of(attempts),
        priorities={
            level: _group(attempts, found, "priority", level, oldest[level], waiting[level], by_level[level])
            for level in LEVELS
        },
        tenants=None if found is None else {
            name: _group(attempts, found, "tenant", name, found.oldest.get(name, math.nan))
            for name in sorted({*found.tenants, *(() if attempts is None else attempts["tenant"])})
        },
    )  # fmt: skip


async def recorded_attempts(queue: Queue) -> pd.DataFrame:
    """The attempts table (`saqkit.spec.trace`) of what is recorded, see `Queue.record_attempts`; at most 100,000 rows.

    Times are seconds since the first event of the table. Attempts that end while it is read may be missing; of the
    others none is, unless newer ones have pushed it out meanwhile.
    """
    name = queue.namespace("trace")
    records: dict[bytes, None] = {}
    # From the newest back: what ends meanwhile pushes records into the next page, where they are met again.
    for end in range(0, sys.maxsize, _PAGE):
        page = await queue.redis.lrange(name, -end - _PAGE, -end - 1)  # type: ignore[misc]  # typed for both clients
        records |= dict.fromkeys(reversed(page))
        if len(page) < _PAGE or len(records) >= MOST_RECORDED:
            break
    return attempts_of(read(record, queue.name, "") for record in islice(records, MOST_RECORDED))


def times_of(attempts: pd.DataFrame | None) -> dict[str, float]:
    """The percentiles of an attempts table by the names of `TIMES`, as `Series.quantile` computes them."""
    if attempts is None or attempts.empty:
        return dict.fromkeys(TIMES, math.nan)
    wait = attempts["started_at"] - attempts["ready_at"]
    service = attempts["finished_at"] - attempts["started_at"]
    return dict(zip(TIMES, [*map(float, wait.quantile(_SHARES)), *map(float, service.quantile(_SHARES))], strict=True))


async def _running(queue: Queue, at: float) -> list[tuple[float, int]]:
    """For how long each active job has been so, in seconds, and its level; no more than all workers have slots."""
    keys = await queue.redis.zrange(queue.namespace("leases"), 0, -1)
    async with queue.redis.pipeline(transaction=False) as pipe:
        for key in keys:
            pipe.hmget(queue.key_of(queue.key_from(key)), ["at_t", "prio", "state"])
        found = await pipe.execute() if keys else []
    return [(max(0.0, at - float(taken)), int(level or 0)) for taken, level, state in found
            if taken and state and int(state) == State.ACTIVE]  # fmt: skip


@dataclass
class _Jobs:
    counts: Counter[tuple[str, str | int, str]]
    oldest: dict[str, float]
    tenants: set[str]


async def _read_jobs(queue: Queue, at: float) -> _Jobs:
    from saqkit.queue.dead_letters import dead_letters

    found = _Jobs(Counter(), {}, set())
    async for job in live_jobs(queue):
        assert job.state in LIVE
        found.tenants.add(job.tenant)
        found.counts["tenant", job.tenant, job.state] += 1
        found.counts["priority", job.priority, job.state] += 1
        if job.state == "waiting":
            found.oldest[job.tenant] = max(found.oldest.get(job.tenant, 0.0), at - job.ready_at)
    async for letter in dead_letters(queue, None):
        found.tenants.add(letter.tenant)
        found.counts["tenant", letter.tenant, "dead"] += 1
        found.counts["priority", letter.priority, "dead"] += 1
    return found


def _group(
    attempts: pd.DataFrame | None, jobs: _Jobs | None, by: str, value: str | int, oldest_s: float,
    waiting: int | None = None, active: int | None = None,
) -> Group:  # fmt: skip
    those = None if attempts is None else attempts[attempts[by] == value]
    number = (lambda state: jobs.counts[by, value, state]) if jobs else (lambda _: None)
    ended = (lambda outcome: int((those["outcome"] == outcome).sum())) if those is not None else (lambda _: None)
    return Group(
        waiting=number("waiting") or 0 if waiting is None else waiting,
        delayed=number("delayed"),
        active=number("active") if active is None else active,
        completed=ended("done"),
        failed=ended("dead"),
        dead=number("dead"),
        oldest_s=oldest_s,
        attempts=0 if those is None else len(those),
        times=times_of(those),
    )


def _longest(ages: Any) -> float:
    return max((age for age in ages if not math.isnan(age)), default=math.nan)


def _flat(group: dict[str, Any]) -> dict[str, Any]:
    times = group.pop("times")
    return {**group, **times}
