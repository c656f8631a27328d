"""Whoever stops taking leaves nothing behind that it was given without knowing."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status
from saq.worker import Worker as SaqWorker

from saqkit.queue.queue import Queue
from saqkit.worker.worker import Worker

Sound = Callable[[Queue], Awaitable[None]]
Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Until = Callable[..., Awaitable[float]]


async def ask(queue: Queue, free: int, request: int) -> list[Any]:
    _, _, _, *rows = await queue.run_script("take", free, "w", 5, 0, 1, "jobs", "me", request, "", 0.2)
    return [row[0] for row in rows]


async def test_a_request_that_comes_after_its_process_gave_up_takes_nothing(queue: Queue) -> None:
    await queue.enqueue_many(Job("f", key=str(n)) for n in range(3))
    assert await ask(queue, 1, 1) == [b"0"]
    assert await ask(queue, -1, 1) == [b"0"]  # the answer may have been lost: it is told what it was given
    assert await ask(queue, 1, 1) == []
    assert await ask(queue, 1, 2) == []
    assert await queue.count("queued") == 2


async def test_giving_up_without_having_been_given_anything_takes_nothing(queue: Queue) -> None:
    await queue.enqueue("f")
    assert await ask(queue, -1, 7) == []
    assert await ask(queue, 1, 7) == []
    assert await queue.count("queued") == 1


@pytest.mark.parametrize("pause_s", [0.0, 0.0005, 0.002, 0.01])
async def test_jobs_that_arrive_while_a_slot_goes_away_wait_on(
    make_queue: Callable[..., Queue], sound: Sound, counts: Counts, pause_s: float
) -> None:
    queue, producer = make_queue(), make_queue()
    for n in range(25):
        slot = asyncio.create_task(queue.dequeue())
        await asyncio.sleep(0.01)
        sending = asyncio.create_task(producer.enqueue("f", key=str(n)))
        await asyncio.sleep(pause_s)
        slot.cancel()
        await asyncio.wait([slot, sending])
        if not slot.cancelled():
            await queue.release(slot.result())  # type: ignore[arg-type]
    await queue.disconnect()
    assert (await producer.count("active"), await producer.count("queued")) == (0, 25)
    assert (await counts(producer)).get("lost", 0) == 0
    await sound(producer)


async def test_a_worker_that_stops_as_jobs_arrive_leaves_none_active(
    make_queue: Callable[..., Queue], sound: Sound
) -> None:
    producer, ran = make_queue(), []

    async def work(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job"].key)

    for n in range(15):
        queue = make_queue()
        worker = Worker({"q": queue}, {"work": work}, {"q": 3}, name="w")
        running = asyncio.create_task(worker.run())
        await asyncio.sleep(0.02)
        sending = asyncio.create_task(producer.enqueue_many(Job("work", key=f"{n}:{i}") for i in range(8)))
        await asyncio.sleep(0.0004 * n)
        worker.stop()
        await asyncio.wait([running, sending])
        assert await producer.count("active") == 0
    assert len(set(ran)) == len(ran)
    assert len(ran) + await producer.count("queued") == 15 * 8
    await sound(producer)


async def beats(ctx: dict[str, Any]) -> None:
    for _ in range(8):
        await asyncio.sleep(0.25)
        await ctx["job"].update()


async def silent(ctx: dict[str, Any]) -> None:
    await asyncio.sleep(20)


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_job_whose_heartbeat_is_missing_is_stopped_and_tried_again(
    make_queue: Callable[..., Queue], until: Until, counts: Counts, kind: str
) -> None:
    queue, looking = make_queue(), make_queue()
    await queue.enqueue("beats", key="beats", heartbeat=1, timeout=60)
    await queue.enqueue("silent", key="silent", heartbeat=1, timeout=60, retries=2)
    functions = {"beats": beats, "silent": silent}
    worker: Any
    if kind == "saq":
        worker = SaqWorker(queue, list(functions.items()), concurrency=2)  # type: ignore[arg-type]
        running = asyncio.create_task(worker.start())
    else:
        worker = Worker({"q": queue}, functions, {"q": 2}, name="w")
        running = asyncio.create_task(worker.run())

    async def ended() -> bool:
        found = await counts(looking)
        return (found.get("complete"), found.get("retried"), found.get("failed")) == (1, 1, 1)

    await until(ended, 20)
    job = await looking.job("silent")
    assert job is not None
    assert job.status == Status.FAILED
    assert "no heartbeat for 1 s" in str(job.error)
    stopped = worker.stop()
    if stopped is not None:
        await stopped
    await asyncio.wait([running])


async def test_what_is_said_of_an_attempt_does_not_end_the_next_one(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(tick_s=0.05)
    await queue.enqueue("f", key="k", retries=3)
    first = await queue.dequeue(timeout=5)
    looked_up = await queue.job("k")
    assert first is not None
    assert looked_up is not None
    await queue.retry(first, "no heartbeat")
    second = await queue.dequeue(timeout=5)
    assert second is not None
    assert looked_up == first != second
    await queue.finish_abort(looked_up)
    assert (job := await queue.job("k")) is not None
    assert job.status == Status.ACTIVE
    await queue.finish(second, Status.COMPLETE)
    assert (job := await queue.job("k")) is not None
    assert job.status == Status.COMPLETE
