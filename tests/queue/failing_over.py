"""A primary is replaced while jobs are enqueued and worked on: what came of them, counted."""

from __future__ import annotations

import asyncio
import contextlib
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from itertools import pairwise
from typing import Any

import redis
from saq.job import Job
from whole_life import working

from saqkit.queue.queue import Queue

Sound = Callable[[Queue], Awaitable[None]]

TAIL_S = 1.0
"""Replication is asynchronous: what a primary said in its last moments may be unknown to its replica."""


async def failed_over(
    producer: Queue, queue: Queue, kill: Callable[[], object], sound: Sound, after_s: float = 0.1
) -> dict[str, Any]:
    """Jobs are enqueued and worked on while the primary is killed; what came of them, checked.

    `after_s`: so long after the kill the old primary may still accept what will be lost.
    """
    accepted: dict[str, float] = {}
    runs: Counter[str] = Counter()
    ended_at: dict[str, float] = {}
    enough = float("inf")

    async def work(ctx: dict[str, Any]) -> None:
        runs[ctx["job"].key] += 1
        await asyncio.sleep(0.01)
        ended_at[ctx["job"].key] = time.monotonic()

    async def produce() -> None:
        number = 0
        while len(accepted) < enough:
            keys = [str(number + n) for n in range(5)]
            number += 5
            with contextlib.suppress(redis.RedisError, OSError):
                said = await producer.enqueue_many(Job("work", key=key) for key in keys)
                accepted.update({key: time.monotonic() for key, yes in zip(keys, said, strict=True) if yes})
            await asyncio.sleep(0.01)

    async with working(queue, work, concurrency=20), asyncio.timeout(90):
        producing = asyncio.create_task(produce())
        while len(ended_at) < 300:
            await asyncio.sleep(0.01)
        killed_at = time.monotonic()
        await asyncio.to_thread(kill)
        while not any(at > killed_at + 0.5 for at in ended_at.values()):
            await asyncio.sleep(0.01)
        enough = len(accepted) + 100
        await producing
        while await queue.count("incomplete"):
            await asyncio.sleep(0.1)
    await sound(queue)
    lost = [key for key in accepted if key not in runs]
    doubled = [key for key, times in runs.items() if times > 1]
    assert all(killed_at - TAIL_S < accepted[key] <= killed_at + after_s for key in lost), "lost, but not of the tail"
    assert all(ended_at.get(key, killed_at) > killed_at - TAIL_S for key in doubled), "doubled, but not of the tail"
    times = sorted(ended_at.values())
    stood_still_s = max(later - at for at, later in pairwise(times) if later > killed_at)
    return {"accepted": len(accepted), "ran": len(runs), "lost of the tail": len(lost), "doubled": len(doubled),
            "stood still for_s": round(stood_still_s, 2)}  # fmt: skip
