"""Somebody who asks again and again, with a timeout that is shorter than what a limit or a delay makes them wait."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from saq.job import Status

from saqkit.queue.queue import Queue
from saqkit.spec.topology import RateLimit


async def take_all(queue: Queue, number: int) -> None:
    taken, deadline = 0, time.monotonic() + 15
    while taken < number:
        assert time.monotonic() < deadline, f"only {taken} of {number} were taken"
        job = await queue.dequeue(timeout=0.2)
        if job is not None:
            await queue.finish(job, Status.COMPLETE)
            taken += 1


@pytest.mark.parametrize("lease_s", [5.0, 60.0])
async def test_a_rate_limit_does_not_starve_who_asks_with_a_short_timeout(
    make_queue: Callable[..., Queue], lease_s: float
) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=1, period_s=0.6), lease_s=lease_s)
    await queue.enqueue_each("f", ({} for _ in range(4)))
    await take_all(queue, 4)


async def test_nor_does_a_delay(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(lease_s=60)
    for delay_s in (0.5, 1.0):
        assert await queue.submit("f", delay_s=delay_s)
    await take_all(queue, 2)
