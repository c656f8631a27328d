"""C5: only the holder of the current lease changes a job, whatever anybody's clock says."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Status

from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]
LONG = [pytest.mark.chaos, pytest.mark.timeout(600)]
LEASE_S, SWEEP_S = 1.0, 0.5
LONGER_S = 2.5  # which a process on a busy machine keeps


@pytest.mark.parametrize("times", [1, pytest.param(20, marks=LONG)])
@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_worker_that_was_stopped_for_longer_than_its_lease_is_refused(
    make_queue: Callable[..., Queue], workers: Any, counts: Counts, until: Eventually, sound: Sound,
    kind: str, times: int,
) -> None:  # fmt: skip
    """It speaks while another process runs its job (in every other turn: after that has ended it)."""
    other = make_queue(lease_s=LEASE_S, sweep_s=SWEEP_S)
    stopped = workers.start(worker=kind, slots=1, lease_s=LEASE_S, sweep_s=SWEEP_S)
    for turn in range(1, times + 1):
        # The function holds up the loop until it is done: when the process goes on, its result is all it has to say.
        await other.enqueue("block", key=str(turn), seconds=3.0, timeout=0)

        async def held() -> bool:
            return await other.count("active") == 1

        await until(held, 30)
        stopped.send_signal(signal.SIGSTOP)
        began = time.monotonic()
        job = await other.dequeue(timeout=20)
        assert job is not None
        assert LEASE_S / 2 < time.monotonic() - began < LEASE_S + SWEEP_S + 1.0 + 4.0  # (a busy machine)
        await asyncio.sleep(max(0.0, LEASE_S + 3 - (time.monotonic() - began)))
        if turn % 2 == 0:
            await other.finish(job, Status.COMPLETE, result="right")
        stopped.send_signal(signal.SIGCONT)

        # Its only slot runs the next job, so it has said what it had to say of the first.
        await other.enqueue("brief", key=f"after {turn}", seconds=0)

        async def spoken(turn: int = turn) -> bool:
            next_one = await other.job(f"after {turn}")
            return next_one is not None and next_one.status == Status.COMPLETE

        await until(spoken, 30)
        if turn % 2 == 1:
            assert await other.count("active") == 1
            await other.finish(job, Status.COMPLETE, result="right")
        stored = await other.job(str(turn))
        assert stored is not None
        assert (stored.status, stored.result) == (Status.COMPLETE, "right")
    assert await workers.end(stopped) == 0
    found = await counts(other)
    # SAQ's worker says its result whatever it has learned; ours may know by then that it is not wanted, and drops it.
    assert found.pop("fenced", 0) in ({times} if kind == "saq" else set(range(times + 1)))
    assert found == {"complete": 2 * times, "lost": times}
    await sound(other)


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_a_worker_that_has_not_yet_learned_that_its_lease_is_lost_is_refused_and_counted(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, sound: Sound,
    kind: str,
) -> None:  # fmt: skip
    """Its lease is renewed every 10 s, so it knows of nothing when its function ends."""
    other = make_queue(lease_s=30.0)
    worker = workers.start(worker=kind, slots=1, lease_s=30.0, sweep_s=30.0)
    for ttl in (600, -1):  # the second is done, and nothing is left of it
        await other.enqueue("brief", key=str(ttl), seconds=1.5, ttl=ttl)

        async def begun(key: str = str(ttl)) -> bool:
            return key in await runs(other)

        await until(begun, 20)
        await other.redis.zadd(other.namespace("leases"), {str(ttl): 1})
        await other.sweep()
        job = await other.dequeue(timeout=5)
        assert job is not None
        await other.finish(job, Status.COMPLETE, result="right")

        async def refused(times: int = 1 if ttl == 600 else 2) -> bool:
            return (await counts(other)).get("fenced", 0) == times

        await until(refused, 20)
    stored = await other.job("600")
    assert stored is not None
    assert (stored.result, await other.job("-1")) == ("right", None)
    assert await counts(other) == {"complete": 2, "lost": 2, "fenced": 2}
    assert await workers.end(worker) == 0
    await sound(other)


@pytest.mark.parametrize("skew_s", [-60.0, 60.0])
async def test_a_sweepers_wrong_clock_sweeps_nothing_too_early_or_too_late(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, skew_s: float
) -> None:
    queue = make_queue(lease_s=LONGER_S, sweep_s=30)
    healthy = workers.start(slots=1, lease_s=LONGER_S, sweep_s=30)
    await queue.enqueue("brief", key="healthy", seconds=2 * LONGER_S, timeout=0)

    async def begun() -> bool:
        return "healthy" in await runs(queue)

    await until(begun, 20)
    await queue.redis.rpush("stages", "hold")  # type: ignore[misc]
    await queue.enqueue("staged", key="stranded", timeout=0)
    killed = workers.start(slots=1, lease_s=LONGER_S, sweep_s=30)

    async def held() -> bool:
        return "stranded" in await runs(queue)

    await until(held, 20)
    killed.kill()
    taken = time.monotonic()
    sweeper = workers.start(slots=1, lease_s=LONGER_S, sweep_s=0.05, skew_s=skew_s)

    async def recovered() -> bool:
        return (await counts(queue)).get("lost", 0) == 1

    await until(recovered, LONGER_S + 20)  # a process takes its time to start
    assert time.monotonic() - taken >= LONGER_S / 2  # it was renewed a third of a lease ago, at most

    async def complete() -> bool:
        return (await counts(queue)).get("complete", 0) == 2

    await until(complete, 20)
    assert await runs(queue) == {"healthy": 1, "stranded": 2}
    assert await counts(queue) == {"complete": 2, "lost": 1}
    for process in (healthy, sweeper):
        assert await workers.end(process) == 0
