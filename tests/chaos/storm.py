"""The two phases of a run, as TigerBeetle has them: workers die while jobs come, then nothing fails any more.

Safety: a worker is killed (or told to stop) again and again, faults happen at every site, the server forgets its
scripts once and is started anew once; the queues are sound all the time. Liveness: all workers are killed once more,
faults end, and the queues drain within a bound.
"""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass
from typing import Any

from accounting import sound
from crowd import Crowd
from saq.job import Job

from saqkit.broker import PrivateBroker
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY

WORKERS, SLOTS, LEASE_S, SWEEP_S = 4, 10, 1.0, 0.5


@dataclass(frozen=True)
class Plan:
    """How long jobs come and workers die, and how long the rest may take afterwards (on a machine that others use).

    `stop_every`: so many workers are killed until one is told to stop instead (0: none is).
    """

    jobs: int
    safety_s: float
    kill_every_s: float
    rate: float
    drain_s: float
    stop_every: int = 0


async def produce(queue: Queue, jobs: list[Job], for_s: float) -> int:
    """Enqueue evenly over a time; what is not answered is said again. Returns how many jobs were there by then."""
    chunk, began, recovered = max(1, len(jobs) // 100), time.monotonic(), 0
    for start in range(0, len(jobs), chunk):
        part = jobs[start : start + chunk]
        for job in part:
            job.scheduled += time.time() if job.scheduled else 0
        again = False
        while True:
            try:
                accepted = await queue.enqueue_many(part)
                break
            except AWAY:
                again = True
                await asyncio.sleep(0.1)
        assert again or all(accepted), "a job of a new key is refused"
        recovered += accepted.count(False)
        await asyncio.sleep(max(0.0, began + for_s * (start + chunk) / len(jobs) - time.monotonic()))
    return recovered


async def storm(
    plan: Plan, crowd: Crowd, server: PrivateBroker, queues: Sequence[Queue], coming: Sequence[asyncio.Task[Any]]
) -> None:
    """Kill and restart until the time is over and nothing is `coming` any more."""
    restart_at, flush_at = 0.6 * plan.safety_s, 0.3 * plan.safety_s
    began = killed = time.monotonic()
    strikes = 0
    while time.monotonic() - began < plan.safety_s or not all(task.done() for task in coming):
        await asyncio.sleep(0.05)
        crowd.tend()
        now = time.monotonic()
        if now - killed >= plan.kill_every_s:
            killed, strikes = now, strikes + 1
            if plan.stop_every and strikes % plan.stop_every == 0:
                crowd.stop_one()
            else:
                crowd.kill()
            for queue in queues:
                await sound(queue)
        if now - began > flush_at:
            flush_at = float("inf")
            await queues[0].redis.script_flush()
        if now - began > restart_at:
            restart_at = float("inf")
            await asyncio.to_thread(server.restart, 0.3)
            for queue in queues:
                await sound(queue)


async def calm(plan: Plan, crowd: Crowd, left: Callable[[], Awaitable[int]]) -> float:
    """Let nothing fail any more, and wait until nothing is left; returns how long that took."""
    crowd.kill(all_of_them=True)
    crowd.armed = False
    crowd.tend()
    began = time.monotonic()
    while number := await left():
        assert time.monotonic() - began < plan.drain_s, f"{number} not drained {plan.drain_s} s after the last fault"
        await asyncio.sleep(0.05)
    return time.monotonic() - began
