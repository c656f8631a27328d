"""A worker that is told to stop does, at whatever moment, and keeps what it runs until it is done."""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

from saq.job import Status

from saqkit import Queue
from saqkit.worker.worker import Worker


async def test_it_ends_whatever_it_is_amid(saqkit_queue: Queue) -> None:
    """A cancellation that comes as a command has just been sent is easily lost (see `heed_cancellation`)."""
    for turns in range(0, 120, 2):
        worker = Worker({"q": saqkit_queue}, {}, {"q": 1}, name="w")
        task = asyncio.create_task(worker.run())
        for _ in range(turns):
            await asyncio.sleep(0)
        worker.stop()
        done, _ = await asyncio.wait([task], timeout=5)
        assert done, f"told to stop after {turns} turns of the loop it goes on"


async def test_what_runs_while_it_waits_for_more_is_not_given_back(
    saqkit_queue_factory: Callable[..., Queue],
) -> None:
    queue = saqkit_queue_factory(lease_s=60)  # so that it waits for long
    started, may_end = asyncio.Event(), asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> int:
        started.set()
        await may_end.wait()
        return 7

    async def blocked() -> bool:
        return any(client["cmd"] == "blpop" for client in await queue.redis.client_list())

    worker = Worker({"q": queue}, {"slow": slow}, {"q": 2}, name="w")
    task = asyncio.create_task(worker.run())
    async with asyncio.timeout(20):
        while not await blocked():
            await asyncio.sleep(0.01)
        job = await queue.enqueue("slow")
        assert job is not None
        await started.wait()
        while not await blocked():
            await asyncio.sleep(0.01)
    worker.stop()
    for _ in range(100):
        await asyncio.sleep(0)
    await asyncio.sleep(0.1)
    assert await queue.count("active") == 1
    may_end.set()
    await asyncio.wait_for(task, 20)
    now = await queue.job(job.key)
    assert now is not None
    assert (now.status, now.result) == (Status.COMPLETE, 7)
    assert await queue.redis.hget(queue.namespace("counts"), "released") is None  # type: ignore[misc]
