"""A worker process for the tests: a_worker.py URL hold|crash|block|spin|quick SLOTS, take LIMIT UNIT, or race SLOTS."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
import time
from typing import Any

from saq.job import Status
from saq.worker import Worker

from saqkit.queue.queue import Queue
from saqkit.spec.topology import RateLimit

LEASE_S, SWEEP_S = 1.0, 0.5


async def hold(ctx: dict[str, Any]) -> None:
    await asyncio.sleep(60)


async def crash(ctx: dict[str, Any]) -> None:
    os.kill(os.getpid(), signal.SIGKILL)


async def block(ctx: dict[str, Any]) -> None:
    time.sleep(2 * LEASE_S)


async def spin(ctx: dict[str, Any]) -> None:
    """Keep the event loop at work, in turns of 0.3 ms without any sleep: its selector lets go of the interpreter, for
    a moment."""
    end = time.monotonic() + 4 * LEASE_S
    while (now := time.monotonic()) < end:
        while time.monotonic() < now + 3e-4:
            pass
        await asyncio.sleep(0)


async def quick(ctx: dict[str, Any]) -> None:
    await asyncio.sleep(0.002)


def make(**options: Any) -> Queue:
    return Queue.from_url(sys.argv[1], name="q", lease_s=LEASE_S, sweep_s=SWEEP_S, **options)


async def take(limit: RateLimit) -> None:
    """Take what the limit admits and finish it at once, for ever."""
    await finish_all(make(rate_limit=limit))


async def finish_all(queue: Queue) -> None:
    while True:
        job = await queue.dequeue()
        assert job is not None
        await queue.finish(job, Status.COMPLETE)


async def race(slots: int) -> None:
    """So many slots that take whatever they get, by the rules that the queue is configured with, for ever."""
    queue = make()
    await asyncio.gather(*(finish_all(queue) for _ in range(slots)))


def settings() -> dict[str, Any]:
    """For `saq a_worker.settings`."""
    sys.argv[1] = os.environ["TEST_URL"]
    return {"queue": make(), "functions": [hold, quick], "concurrency": 10}


if __name__ == "__main__":
    if sys.argv[2] == "take":
        asyncio.run(take(RateLimit(limit=int(sys.argv[3]), period_s=0.3, unit=sys.argv[4])))  # type: ignore[arg-type]
    elif sys.argv[2] == "race":
        asyncio.run(race(int(sys.argv[3])))
    else:
        asyncio.run(Worker(make(), [hold, crash, block, spin, quick], concurrency=int(sys.argv[3])).start())
