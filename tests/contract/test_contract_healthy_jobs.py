"""C4: whatever is held by a process that lives is never swept, and runs once."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from saq.job import Job

from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]
LONG = [pytest.mark.chaos, pytest.mark.timeout(600)]


@asynccontextmanager
async def sweeping(queue: Queue, every_s: float = 0.02) -> AsyncIterator[None]:
    """Sweep without pause while something else goes on."""

    async def sweep() -> None:
        while True:
            assert await queue.sweep() == []
            await asyncio.sleep(every_s)

    task = asyncio.create_task(sweep())
    try:
        yield
    finally:
        if task.done():
            task.result()
        task.cancel()
        with contextlib.suppress(asyncio.CancelledError):
            await task


def ended(queue: Queue, counts: Counts, jobs: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return (await counts(queue)).get("complete", 0) >= jobs

    return check


@pytest.mark.parametrize("starts", [2, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_worker_that_starts_on_a_backlog_with_an_empty_script_cache_runs_each_job_once(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, sound: Sound,
    kind: str, starts: int,
) -> None:  # fmt: skip
    queue = make_queue()
    for start in range(starts):
        await queue.enqueue_many(Job("brief", key=f"{start}.{n}", kwargs={"seconds": 0.05}) for n in range(40))
        await queue.redis.script_flush()
        async with sweeping(queue):
            worker = workers.start(worker=kind, slots=10, lease_s=2.0, sweep_s=0.05)
            await until(ended(queue, counts, 40 * (start + 1)), 30)
            assert await workers.end(worker) == 0
    assert await runs(queue) == {f"{start}.{n}": 1 for start in range(starts) for n in range(40)}
    assert await counts(queue) == {"complete": 40 * starts}
    await sound(queue)


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_pause_between_taking_a_job_and_running_it_is_no_reason_to_sweep_it(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually,
    kind: str, times: int,
) -> None:  # fmt: skip
    queue = make_queue()
    worker = workers.start(worker=kind, slots=8, lease_s=1.0, sweep_s=0.05, before_s=2.0)  # twice the lease
    async with sweeping(queue):
        for turn in range(times):
            await queue.enqueue_many(Job("brief", key=f"{turn}.{n}", kwargs={"seconds": 0}) for n in range(8))
            await until(ended(queue, counts, 8 * (turn + 1)), 30)
    assert await workers.end(worker) == 0
    assert await runs(queue) == {f"{turn}.{n}": 1 for turn in range(times) for n in range(8)}
    assert await counts(queue) == {"complete": 8 * times}


@pytest.mark.parametrize("jobs", [5_000, pytest.param(100_000, marks=LONG)])
async def test_short_jobs_under_a_sweep_every_second_are_never_swept(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, sound: Sound,
    jobs: int,
) -> None:  # fmt: skip
    queue = make_queue(sweep_s=1.0)
    await queue.enqueue_many(Job("brief", key=str(n), kwargs={"seconds": 0.002}, ttl=-1) for n in range(jobs))
    started = [workers.start(worker=kind, slots=20, sweep_s=1.0) for kind in ("saq", "saqkit")]
    began = time.monotonic()
    async with sweeping(queue, every_s=0.1):
        await until(ended(queue, counts, jobs), 20 + jobs / 200)
    assert time.monotonic() - began > 1.0, "no sweep of a worker fell into this"
    for worker in started:
        assert await workers.end(worker) == 0
    found = await runs(queue)
    assert (len(found), set(found.values())) == (jobs, {1})
    assert await counts(queue) == {"complete": jobs}
    await sound(queue)


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_job_that_holds_up_its_worker_beyond_its_timeout_comes_back_in_time(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, until: Eventually, kind: str
) -> None:
    """Its worker cannot end it at its timeout; it is renewed for one lease more, and then no longer."""
    lease_s, sweep_s, timeout_s = 1.0, 0.5, 1
    queue = make_queue(lease_s=lease_s, sweep_s=sweep_s)
    worker = workers.start(worker=kind, slots=1, lease_s=lease_s, sweep_s=sweep_s)
    await queue.enqueue("block", key="hangs", seconds=8.0, timeout=timeout_s, retries=2)

    async def begun() -> bool:
        return "hangs" in await runs(queue)

    await until(begun, 20)
    taken = time.monotonic()
    assert await queue.dequeue(timeout=20) is not None
    back_s = time.monotonic() - taken
    assert timeout_s + lease_s < back_s < timeout_s + 2 * lease_s + sweep_s + 2.0  # (a busy machine)
    worker.kill()
