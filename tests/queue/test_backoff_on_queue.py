"""Retries wake exactly on the tick: never early, and so many as the policy says."""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
from saq.job import Job, Status

from saqkit.queue.queue import Queue
from saqkit.spec.backoff import Retry
from saqkit.testing import delays

TICK_S = 0.1


@pytest.mark.row("000.5", "000.6", "002.4")
async def test_three_attempts_use_two_delays(make_queue: Callable[..., Queue]) -> None:
    policy = Retry(max_attempts=3, backoff="list", delays_s=(0.13, 0.35, 99))
    queue = make_queue(tick_s=TICK_S, policies={"f": policy})
    await queue.enqueue("f", key="k")
    waits = []
    for attempt in (1, 2, 3):
        job = await queue.dequeue(timeout=5)
        assert job is not None
        job.attempts += 1
        assert job.attempts == attempt
        first, ready, taken = await queue.redis.hmget(queue.key_of("k"), ["at_q", "at_r", "at_t"])  # type: ignore[misc]
        assert 0 <= float(taken) - float(ready or first) < 1.0
        if attempt < 3:
            assert job.retryable
            before = (await queue.redis.time())[0:2]
            await queue.retry(job, "ValueError: no")
            after = (await queue.redis.time())[0:2]
            wakes = float(await queue.redis.hget(queue.key_of("k"), "at_r"))  # type: ignore[misc,arg-type]
            due = await queue.redis.zscore(queue.namespace("incomplete"), queue.job_id("k"))
            assert due is not None
            assert due - 1e-5 <= wakes <= due + TICK_S + 1e-5
            delay = policy.delays_s[attempt - 1]
            assert before[0] + before[1] / 1e6 + delay <= wakes + 1e-5
            assert wakes <= after[0] + after[1] / 1e6 + delay + TICK_S + 1e-5
            assert abs(wakes / TICK_S - round(wakes / TICK_S)) < 1e-4
            waits.append(wakes)
        else:
            assert waits[-1] == pytest.approx(float(ready), abs=1e-5)
            assert not job.retryable
            await queue.finish(job, Status.FAILED, error="ValueError: no")
    assert await queue.count("dead") == 1


async def test_jitter_is_the_draw_of_the_model(make_queue: Callable[..., Queue]) -> None:
    from saqkit.spec.draws import Stream, uniform

    policy = Retry(delay_s=10, jitter="full")
    queue = make_queue(policies={"f": policy}, seed=7)
    await queue.enqueue("f", key="k", users=[41, 42], meta={"event": "3"})
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert queue.delay_s(job) == policy.delay_after(1, uniform(7, Stream.JITTER, 3, 41, 1)) == delays(queue, job)[0]


async def test_a_delayed_job_is_never_early_whatever_the_clock_of_its_producer(
    make_queue: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue = make_queue(tick_s=TICK_S)
    monkeypatch.setattr("saqkit.queue.enqueueing.now_seconds", lambda: time.time() - 60)
    began = time.time()
    await queue.enqueue_many([Job("f", key="k", scheduled=time.time() - 60 + 0.4)])  # type: ignore[arg-type]
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert 0.4 <= time.time() - began < 2.0


async def test_an_idle_worker_learns_of_a_due_job_that_came_while_it_waited(make_queue: Callable[..., Queue]) -> None:
    import asyncio

    queue = make_queue()
    waiting = asyncio.create_task(queue.dequeue(timeout=5))
    await asyncio.sleep(0.1)
    began = time.time()
    await queue.enqueue_many([Job("f", scheduled=began + 0.1)])  # type: ignore[arg-type]
    assert await waiting is not None
    assert 0.1 <= time.time() - began < 0.9


async def test_jobs_that_are_overdue_already_come_in_the_order_of_their_times(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(tick_s=TICK_S)
    began = time.time()
    for late in range(8):  # the last has been due longest, and has the last key
        await queue.enqueue("f", key=f"k{late}", scheduled=began - 1 - late)
    taken = [await queue.dequeue(timeout=5) for _ in range(8)]
    assert [job and job.key for job in taken] == [f"k{late}" for late in reversed(range(8))]
