"""In no window is more admitted than the limit, over all processes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from saq.job import Job, Status

from saqkit.queue.queue import Queue
from saqkit.spec.topology import RateLimit

PERIOD_S = 0.3


async def admitted(queue: Queue) -> list[tuple[float, int]]:
    """(when it was taken, its weight) of every job taken, by the server's clock."""
    found = []
    async for key in queue.redis.scan_iter(match=queue.key_of("*")):
        at, users = await queue.redis.hmget(key, ["at_t", "users"])  # type: ignore[misc]
        if at is not None:
            found.append((float(at), int(users or 1)))
    return sorted(found)


def heaviest_window(taken: list[tuple[float, int]], weigh: Callable[[int], int]) -> int:
    return max(sum(weigh(users) for other, users in taken if at <= other < at + PERIOD_S - 2e-6) for at, _ in taken)


@pytest.mark.parametrize(("unit", "limit", "sizes"), [("jobs", 5, [1]), ("users", 10, [1, 4, 10, 3])])
@pytest.mark.row("000.8", "002.7")
async def test_two_processes_together_keep_the_limit(
    make_queue: Callable[..., Queue],
    start_worker: Callable[..., subprocess.Popen[bytes]],
    until: Callable[..., Awaitable[float]],
    unit: Literal["jobs", "users"],
    limit: int,
    sizes: list[int],
) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=limit, period_s=PERIOD_S, unit=unit))
    number, weight = 24, 0
    jobs = []
    for n in range(number):
        users = list(range(sizes[n % len(sizes)]))
        weight += len(users)
        jobs.append(Job("f", key=str(n), kwargs={"users": users}))
    start_worker("take", str(limit), unit)
    start_worker("take", str(limit), unit)
    await queue.enqueue_many(jobs[: number // 2])
    await asyncio.sleep(PERIOD_S / 2)  # arrivals in two heaps
    await queue.enqueue_many(jobs[number // 2 :])

    async def all_done() -> bool:
        return await queue.count("incomplete") == 0

    await until(all_done, 20)
    taken = await admitted(queue)
    assert len(taken) == number
    used = heaviest_window(taken, (lambda users: users) if unit == "users" else (lambda users: 1))
    assert limit // 2 < used <= limit
    assert taken[-1][0] - taken[0][0] < 10


async def test_a_job_heavier_than_the_limit_waits_for_an_empty_window_and_then_blocks(
    make_queue: Callable[..., Queue],
) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=10, period_s=0.2, unit="users"))
    sizes = {"light": 1, "heavy": 30, "after": 1}
    await queue.enqueue_many(Job("f", key=key, kwargs={"users": [0] * size}) for key, size in sizes.items())
    times: dict[str, float] = {}
    for _ in range(3):
        job = await queue.dequeue(timeout=10)
        assert job is not None
        await queue.finish(job, Status.COMPLETE)
        times[job.key] = float(await queue.redis.hget(queue.key_of(job.key), "at_t"))  # type: ignore[misc,arg-type]
    assert times["heavy"] - times["light"] >= 0.2 - 1e-5
    assert times["after"] - times["heavy"] >= 30 / 10 * 0.2 - 1e-5


async def test_a_fan_out_weighs_one_and_limited_jobs_hold_no_slot(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=3, period_s=60, unit="users"))
    await queue.enqueue_many(Job("f", key=str(n), kwargs={"event": 1}) for n in range(5))
    taken: list[Any] = await asyncio.gather(*(queue.dequeue(timeout=0.5) for _ in range(5)))
    assert sorted(job.key for job in taken if job) == ["0", "1", "2"]
    assert (await queue.count("active"), await queue.count("queued")) == (3, 2)


async def test_a_light_job_of_a_higher_level_passes_a_heavy_one_that_waits(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=10, period_s=60, unit="users"))
    for key, size in (("first", 5), ("heavy", 8)):
        await queue.enqueue("f", key=key, users=[0] * size)
    assert (first := await queue.dequeue(timeout=5)) is not None
    assert first.key == "first"
    waiting = asyncio.create_task(queue.dequeue(timeout=10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await queue.enqueue("f", key="urgent", users=[0], priority=1)
    assert (job := await waiting) is not None
    assert job.key == "urgent"
    assert time.monotonic() - began < 0.9
