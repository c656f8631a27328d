"""Strict priorities, and first in first out inside a level."""

from __future__ import annotations

import time
from collections.abc import Callable
from itertools import pairwise

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.testing import advance


async def order(queue: Queue, number: int) -> list[str]:
    jobs = [await queue.dequeue(timeout=5) for _ in range(number)]
    return [job.key for job in jobs if job is not None]


@given(levels=st.lists(st.integers(0, 4), min_size=1, max_size=30), free=st.integers(1, 7))
@settings(max_examples=25, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@pytest.mark.row("002.3", "004.6")
async def test_jobs_leave_by_level_and_then_by_age(
    make_queue: Callable[..., Queue], levels: list[int], free: int
) -> None:
    queue = make_queue()
    try:
        await queue.redis.flushall()
        await queue.enqueue_many(Job("f", key=str(n), priority=level) for n, level in enumerate(levels))
        taken: list[bytes] = []
        while len(taken) < len(levels):
            _, _, _, *rows = await queue.run_script("take", free, "w", 5, 0, 1, "jobs", "x", len(taken), "")
            assert len(rows) == min(free, len(levels) - len(taken))
            taken += [row[0] for row in rows]
        assert [int(key) for key in taken] == sorted(range(len(levels)), key=lambda n: (levels[n] or 3, n))
    finally:
        await queue.disconnect()


async def test_a_retried_job_joins_the_end_and_a_released_one_keeps_its_place(queue: Queue) -> None:
    await queue.enqueue_many(Job("f", key=key, retries=3) for key in "abcd")
    first, second = await queue.dequeue(), await queue.dequeue()
    assert first is not None
    assert second is not None
    await queue.retry(first, "ValueError: no")
    await queue.release(second)
    assert await order(queue, 4) == ["b", "c", "d", "a"]


async def test_promoted_jobs_join_the_end(queue: Queue) -> None:
    await queue.enqueue("f", key="late", scheduled=int(time.time()) + 3600)
    await queue.enqueue("f", key="early")
    await advance(queue, 3601)
    assert await order(queue, 2) == ["early", "late"]


async def test_a_level_that_does_not_exist_is_refused(queue: Queue) -> None:
    with pytest.raises(UsageError, match="1 critical"):
        await queue.enqueue("f", priority=5)


async def test_many_jobs_stay_in_line(queue: Queue) -> None:
    await queue.enqueue_many((Job("f", key=f"{n:05}") for n in range(1_200)), chunk=500)
    keys = []
    for _ in range(1_200):
        job = await queue.dequeue()
        assert job is not None
        keys.append(job.key)
        await queue.finish(job, Status.COMPLETE)
    assert all(a < b for a, b in pairwise(keys))
