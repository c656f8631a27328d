"""In no window is more admitted than the limit, over all processes."""

from __future__ import annotations

import asyncio
import subprocess
import time
from collections.abc import Awaitable, Callable
from typing import Any, Literal

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saq.job import Job, Status

from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.topology import RateLimit
from saqkit.worker.worker import Worker

MakeQueue = Callable[..., Queue]
StartWorker = Callable[..., subprocess.Popen[bytes]]
Until = Callable[..., Awaitable[float]]

PERIOD_S = 0.3


async def admitted(queue: Queue) -> list[tuple[float, int]]:
    """(when it was taken, its weight) of every job taken, by the server's clock."""
    found = []
    async for key in queue.redis.scan_iter(match=queue.key_of("*")):
        at, users = await queue.redis.hmget(key, ["at_t", "users"])  # type: ignore[misc]
        if at is not None:
            found.append((float(at), int(users or 1)))
    return sorted(found)


def heaviest_window(
    taken: list[tuple[float, int]], weigh: Callable[[int], int] = lambda users: 1, period_s: float = PERIOD_S
) -> int:
    return max(sum(weigh(users) for other, users in taken if at <= other < at + period_s - 2e-6) for at, _ in taken)


async def scripts_run(queue: Queue) -> int:
    return int((await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


async def ended(queue: Queue) -> int:
    return int(await queue.redis.hget(queue.namespace("counts"), "complete") or 0)  # type: ignore[misc]


async def all_wait(queue: Queue, processes: int) -> bool:
    return int((await queue.redis.info("clients"))["blocked_clients"]) == processes


@pytest.mark.parametrize(("unit", "limit", "sizes"), [("jobs", 5, [1]), ("users", 10, [1, 4, 10, 3])])
@pytest.mark.row("000.8", "002.7")
async def test_two_processes_together_keep_the_limit(
    make_queue: Callable[..., Queue],
    start_worker: Callable[..., subprocess.Popen[bytes]],
    until: Callable[..., Awaitable[float]],
    unit: Literal["jobs", "users"],
    limit: int,
    sizes: list[int],
) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=limit, period_s=PERIOD_S, unit=unit))
    number, weight = 24, 0
    jobs = []
    for n in range(number):
        users = list(range(sizes[n % len(sizes)]))
        weight += len(users)
        jobs.append(Job("f", key=str(n), kwargs={"users": users}))
    start_worker("take", str(limit), unit)
    start_worker("take", str(limit), unit)
    await queue.enqueue_many(jobs[: number // 2])
    await asyncio.sleep(PERIOD_S / 2)  # arrivals in two heaps
    await queue.enqueue_many(jobs[number // 2 :])

    async def all_done() -> bool:
        return await queue.count("incomplete") == 0

    await until(all_done, 20)
    taken = await admitted(queue)
    assert len(taken) == number
    used = heaviest_window(taken, (lambda users: users) if unit == "users" else (lambda users: 1))
    assert limit // 2 < used <= limit
    assert taken[-1][0] - taken[0][0] < 10


async def test_a_job_heavier_than_the_limit_waits_for_an_empty_window_and_then_blocks(
    make_queue: Callable[..., Queue],
) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=10, period_s=0.2, unit="users"))
    sizes = {"light": 1, "heavy": 30, "after": 1}
    await queue.enqueue_many(Job("f", key=key, kwargs={"users": [0] * size}) for key, size in sizes.items())
    times: dict[str, float] = {}
    for _ in range(3):
        job = await queue.dequeue(timeout=10)
        assert job is not None
        await queue.finish(job, Status.COMPLETE)
        times[job.key] = float(await queue.redis.hget(queue.key_of(job.key), "at_t"))  # type: ignore[misc,arg-type]
    assert times["heavy"] - times["light"] >= 0.2 - 1e-5
    assert times["after"] - times["heavy"] >= 30 / 10 * 0.2 - 1e-5


async def test_a_fan_out_weighs_one_and_limited_jobs_hold_no_slot(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=3, period_s=60, unit="users"))
    await queue.enqueue_many(Job("f", key=str(n), kwargs={"event": 1}) for n in range(5))
    taken: list[Any] = await asyncio.gather(*(queue.dequeue(timeout=0.5) for _ in range(5)))
    assert sorted(job.key for job in taken if job) == ["0", "1", "2"]
    assert (await queue.count("active"), await queue.count("queued")) == (3, 2)


async def test_a_light_job_of_a_higher_level_passes_a_heavy_one_that_waits(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(rate_limit=RateLimit(limit=10, period_s=60, unit="users"))
    for key, size in (("first", 5), ("heavy", 8)):
        await queue.enqueue("f", key=key, users=[0] * size)
    assert (first := await queue.dequeue(timeout=5)) is not None
    assert first.key == "first"
    waiting = asyncio.create_task(queue.dequeue(timeout=10))
    await asyncio.sleep(0.05)
    began = time.monotonic()
    await queue.enqueue("f", key="urgent", users=[0], priority=1)
    assert (job := await waiting) is not None
    assert job.key == "urgent"
    assert time.monotonic() - began < 0.9


async def test_ten_a_second_of_two_worker_processes(
    make_queue: MakeQueue, start_worker: StartWorker, until: Until
) -> None:
    queue = make_queue()
    await queue.configure(rate_limit={"limit": 10})
    for _ in range(2):
        start_worker("race", "5")
    await until(lambda: all_wait(queue, 2), 30)
    sent = 0
    for number, pause_s in ((13, 0.4), (22, 0.0)):  # the second heap comes into a window that is partly used
        await queue.enqueue_many(Job("f", key=str(n)) for n in range(sent, sent + number))
        sent += number

        async def over(sent: int = sent) -> bool:
            return await ended(queue) == sent

        await until(over, 20)
        await asyncio.sleep(pause_s)
    taken = await admitted(queue)
    assert len(taken) == sent == 35
    assert heaviest_window(taken, period_s=1.0) == 10
    assert taken[-1][0] - taken[0][0] > 2.0
    workers: list[Any] = [await queue.redis.hget(queue.key_of(str(n)), "worker") for n in range(sent)]  # type: ignore[misc]
    assert len(set(workers)) == 2, "one process has had all of them"


Arrival = tuple[int, int, int, str]
"""After so many ms, of so many users, at a level, of a tenant."""

some_arrivals: st.SearchStrategy[list[Arrival]] = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 3, 20, 60]), st.integers(1, 6), st.integers(1, 4), st.sampled_from("ab")),
    min_size=8,
    max_size=24,
)


@pytest.mark.parametrize(("unit", "limit"), [("jobs", 3), ("users", 8)])
@pytest.mark.parametrize("rule", ["rate_limit", "tenant_rate_limit"])
async def test_no_window_exceeds_the_limit_whatever_arrives_and_whoever_takes(
    make_queue: MakeQueue, start_worker: StartWorker, until: Until, rule: str, unit: str, limit: int
) -> None:
    """Three processes with one, two and three slots race for random arrivals, over random lengths of the window."""
    queue = make_queue()
    for slots in range(1, 4):
        start_worker("race", str(slots))
    await until(lambda: all_wait(queue, 3), 30)
    heaviest: list[int] = []

    async def run(arrivals: list[Arrival], period_s: float) -> None:
        await queue.redis.flushall()
        await queue.configure(**{rule: {"limit": limit, "period_s": period_s, "unit": unit}})
        for n, (pause_ms, users, level, tenant) in enumerate(arrivals):
            await asyncio.sleep(pause_ms / 1000)
            kwargs = {"users": list(range(users))}
            await queue.enqueue(Job("f", key=f"{tenant}{n}", kwargs=kwargs, priority=level, meta={"tenant": tenant}))

        async def over() -> bool:
            return await ended(queue) == len(arrivals)

        await until(over, 30)
        windows: dict[str, list[tuple[float, int]]] = {}
        for n, (_, users, _, tenant) in enumerate(arrivals):
            at = await queue.redis.hget(queue.key_of(f"{tenant}{n}"), "at_t")  # type: ignore[misc]
            windows.setdefault(tenant if rule == "tenant_rate_limit" else "", []).append((float(at or "nan"), users))
        for taken in windows.values():
            used = heaviest_window(taken, (lambda users: users) if unit == "users" else (lambda users: 1), period_s)
            assert used <= limit
            heaviest.append(used)
        assert (await audit(queue)).problems == ()

    loop = asyncio.get_running_loop()

    @given(arrivals=some_arrivals, period_s=st.sampled_from([0.03, 0.06, 0.1]))
    @settings(max_examples=8, deadline=None, suppress_health_check=list(HealthCheck), database=None)
    def whatever(arrivals: list[Arrival], period_s: float) -> None:
        asyncio.run_coroutine_threadsafe(run(arrivals, period_s), loop).result(60)

    await asyncio.to_thread(whatever)
    assert max(heaviest) > limit // 2


async def test_nobody_spins_while_the_window_is_full(make_queue: MakeQueue, until: Until) -> None:
    first, second = (make_queue(rate_limit=RateLimit(limit=2, period_s=60)) for _ in range(2))
    await first.enqueue_many(Job("f", key=str(n)) for n in range(50))
    slots = [asyncio.create_task(queue.dequeue()) for queue in (first, second) for _ in range(4)]
    try:

        async def full() -> bool:
            return sum(slot.done() for slot in slots) == 2

        await until(full, 10)
        for slot in slots:
            if slot.done() and (job := slot.result()):
                await first.finish(job, Status.COMPLETE)
        await asyncio.sleep(0.2)
        before = await scripts_run(first)
        await asyncio.sleep(1.0)
        assert await scripts_run(first) - before <= 4, "an exhausted queue is asked again and again"
        assert (await first.count("active"), await first.count("queued")) == (0, 48)
    finally:
        for slot in slots:
            slot.cancel()
        await asyncio.gather(*slots, return_exceptions=True)


async def test_another_queue_of_the_same_worker_is_not_slowed_by_a_limited_one(
    make_queue: MakeQueue, until: Until
) -> None:
    limited, free = make_queue("limited", rate_limit=RateLimit(limit=2, period_s=60)), make_queue("free")
    ran: list[str] = []

    async def note(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job"].key)

    async def scripts_for(jobs: int, prefix: str) -> int:
        """How many scripts the server runs for so many jobs of the other queue, one after the other."""
        before = await scripts_run(free)
        for n in range(jobs):
            await free.enqueue("note", key=f"{prefix}{n}")

            async def has_run(key: str = f"{prefix}{n}", last: bool = n == jobs - 1) -> bool:
                return key in ran and (not last or await free.count("active") == 0)

            assert await until(has_run, 5) < 0.5
        return await scripts_run(free) - before

    worker = Worker(
        {"limited": limited, "free": free}, {"note": note}, {"limited": 2, "free": 2}, name="w", grace_s=5.0
    )
    working = asyncio.create_task(worker.run())
    try:
        alone = await scripts_for(50, "alone ")
        await limited.enqueue_many(Job("note", key=str(n)) for n in range(100))

        async def full() -> bool:
            return await ended(limited) == 2

        await until(full, 10)
        beside = await scripts_for(50, "beside ")
        assert (await limited.count("queued"), await limited.count("active")) == (98, 0)
        assert beside <= 1.2 * alone, "the limited queue is asked while it can give nothing"
    finally:
        worker.stop()
        await asyncio.wait_for(working, 20)


async def test_jobs_without_users_weigh_one_where_users_are_limited(make_queue: Callable[..., Queue]) -> None:
    two = RateLimit(limit=2, period_s=30.0, unit="users")
    queue, asking = make_queue(rate_limit=two), make_queue(rate_limit=two)
    await queue.enqueue_many([Job("f", key="none"), Job("f", key="empty", kwargs={"users": []}), Job("f", key="third")])
    taken = [await queue.dequeue(timeout=5), await queue.dequeue(timeout=5)]
    assert [job.key for job in taken if job] == ["none", "empty"]
    assert await asking.dequeue(timeout=0.3) is None
    await asking.disconnect()  # what it still asks for would be given back, but keep its entry in the window
    await queue.configure(rate_limit={"limit": 3, "period_s": 30.0, "unit": "users"})
    third = await queue.dequeue(timeout=5)
    assert third is not None
    assert third.key == "third"
