"""C3: a worker is killed with many jobs active; all wait again within lease + sweep + 1 s, whatever their number."""

from __future__ import annotations

import asyncio
import os
import signal
import time
from pathlib import Path

import pytest
from a_worker_of_chaos import Order
from accounting import Tell, sound
from crowd import Nursery
from saq.job import Job

from saqkit.queue.queue import Queue

LEASE_S, SWEEP_S = 1.0, 0.5
WORKER_KINDS = pytest.mark.parametrize("kind", ["saqkit", "saq"])


async def reach(queue: Queue, kind: str, number: int, within_s: float) -> float:
    """Wait until so many jobs are there; returns how long it took."""
    began = time.monotonic()
    while (found := await queue.count(kind)) != number:  # type: ignore[arg-type]
        assert time.monotonic() - began < within_s, f"{found} of {number} jobs are {kind} after {within_s} s"
        await asyncio.sleep(0.01)
    return time.monotonic() - began


@WORKER_KINDS
@pytest.mark.parametrize("active", [10, 50, 200])
async def test_what_a_killed_worker_held_waits_again_in_time(
    active: int, kind: str, nursery: Nursery, redis_url: str, tmp_path: Path, tell: Tell
) -> None:
    queue = Queue.from_url(redis_url, name="q", lease_s=LEASE_S, sweep_s=SWEEP_S)
    order = Order(kind, redis_url, str(tmp_path / "effects"), slots=1, lease_s=LEASE_S, sweep_s=SWEEP_S)
    pids: list[int] = []
    try:
        await queue.enqueue_many([Job("hold", key="neighbour", timeout=0)])
        pids.append(nursery.start(order))  # another process that lives, and sweeps
        await reach(queue, "active", 1, 20)
        await queue.enqueue_many(Job("hold", key=str(n), timeout=0) for n in range(active))
        pids.append(nursery.start(Order(**{**order.__dict__, "slots": active})))
        await reach(queue, "active", active + 1, 20)
        os.kill(pids.pop(), signal.SIGKILL)
        took_s = await reach(queue, "queued", active, LEASE_S + SWEEP_S + 1.0)
        await sound(queue)
        counts = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
        assert counts == {b"lost": b"%d" % active}
        tell(
            {"accepted": active + 1, "lost": 0, "leases lost": active, "kills": 1, "queued again s": round(took_s, 2)},
            {},
        )
    finally:
        for pid in pids:
            os.kill(pid, signal.SIGKILL)
        await queue.disconnect()
