"""C11: while the server is away nobody exits, nobody spins, and everybody is back soon."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Awaitable, Callable
from typing import Any

import psutil
import pytest
from cut_broker import CutBroker
from saq.job import Job

from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]


def cpu_s(pid: int) -> float:
    times = psutil.Process(pid).cpu_times()
    return float(times.user + times.system)


@pytest.mark.parametrize("outages", [1, pytest.param(10, marks=[pytest.mark.chaos, pytest.mark.timeout(300)])])
@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_an_outage_ends_nobody_costs_nothing_and_is_over_within_a_second(
    own_broker: CutBroker, make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts,
    until: Eventually, sound: Sound, kind: str, outages: int,
) -> None:  # fmt: skip
    queue = make_queue(url=own_broker.url)
    process = workers.start(own_broker.url, worker=kind, slots=10)
    backs = []
    for outage in range(outages):
        keys = [f"{outage}.{n}" for n in range(4)]
        await queue.enqueue_many(Job("brief", key=key, kwargs={"seconds": 1.5}) for key in keys)

        async def begun(keys: list[str] = keys) -> bool:
            return set(keys) <= set(await runs(queue))

        await until(begun, 20)
        away = asyncio.create_task(asyncio.to_thread(own_broker.restart, 3.0))
        await asyncio.sleep(0.5)  # what a process does at the first error does not count
        before, since = cpu_s(process.pid), time.monotonic()
        await asyncio.sleep(2.2)
        used = (cpu_s(process.pid) - before) / (time.monotonic() - since)
        assert process.poll() is None
        await away
        back = time.monotonic()
        await queue.enqueue("brief", key=f"{outage}.after", seconds=0)

        async def after(key: str = f"{outage}.after") -> bool:
            return key in await runs(queue)

        await until(after, 20)
        backs.append(time.monotonic() - back)
        assert used <= 0.05, "it spins"

        async def all_done(jobs: int = 5 * (outage + 1)) -> bool:
            return (await counts(queue)).get("complete", 0) == jobs

        await until(all_done, 20)
    assert sorted(backs)[len(backs) // 2] < 1.0 + 0.5  # half a second for a busy machine
    assert max(backs) < 1.0 + 2.0  # and two for the worst moment of it
    assert process.poll() is None
    assert set((await runs(queue)).values()) == {1}
    assert await counts(queue) == {"complete": 5 * outages}
    await sound(queue)
    assert await workers.end(process) == 0
