"""What a dead worker held comes back; what a living one holds does not."""

from __future__ import annotations

import asyncio
import os
import resource
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable

import pytest
from saq.job import Job, Status

from saqkit.broker import PrivateBroker
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.queue import Queue

LEASE_S, SWEEP_S = 1.0, 0.5
Start = Callable[..., subprocess.Popen[bytes]]
Until = Callable[..., Awaitable[float]]
Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Sound = Callable[[Queue], Awaitable[None]]


def has(queue: Queue, kind: str, number: int) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await queue.count(kind) == number  # type: ignore[arg-type]

    return check


@pytest.fixture
def watcher(make_queue: Callable[..., Queue]) -> Queue:
    return make_queue(lease_s=LEASE_S, sweep_s=SWEEP_S)


async def test_what_a_killed_worker_held_is_queued_again_at_its_place(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts, sound: Sound
) -> None:
    await watcher.enqueue_many(Job("hold", key=str(n), timeout=0, retries=1) for n in range(12))
    worker = start_worker("hold", "10")
    await until(has(watcher, "active", 10), 20)
    first = await watcher.dequeue()  # a second process that lives, and sweeps
    assert first is not None
    worker.kill()
    assert await until(has(watcher, "active", 1), LEASE_S + SWEEP_S + 1.0) > 0
    assert await watcher.count("queued") == 11
    assert (await counts(watcher))["lost"] == 10
    await sound(watcher)
    again = [await watcher.dequeue() for _ in range(11)]
    assert [job.key for job in again if job] == [*map(str, range(10)), "11"]
    claims = [watcher.claim_of(job) for job in again if job]
    assert [(claim.attempt, claim.crashes) for claim in claims if claim] == [(1, 1)] * 10 + [(1, 0)]


async def test_the_only_worker_is_killed_and_started_again(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts
) -> None:
    await watcher.enqueue_many(Job("hold", timeout=0) for _ in range(10))
    worker = start_worker("hold", "10")
    await until(has(watcher, "active", 10), 20)
    worker.kill()
    killed = time.monotonic()
    start_worker("hold", "10")

    async def recovered() -> bool:
        return (await counts(watcher)).get("lost", 0) == 10

    await until(recovered, 15)
    # The new process needs a second or two to start on a busy machine; nobody is there to sweep before.
    assert time.monotonic() - killed < LEASE_S + SWEEP_S + 1 + 4
    await until(has(watcher, "active", 10), 5)


async def test_a_job_that_kills_its_worker_three_times_is_poison(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts, sound: Sound
) -> None:
    await watcher.enqueue("crash", key="k", timeout=0, retries=1)
    for crash in (1, 2, 3):
        worker = start_worker("crash", "1")
        assert await asyncio.to_thread(worker.wait, 20) == -signal.SIGKILL

        async def swept(number: int = crash) -> bool:
            await watcher.sweep()
            return (await counts(watcher)).get("lost", 0) == number

        await until(swept, 10)
    assert await watcher.count("incomplete") == 0
    (letter,) = [letter async for letter in dead_letters(watcher)]
    assert (letter.attempts, letter.crashes, letter.error) == (0, 3, "poison: its worker died 3 times")
    await sound(watcher)


async def test_a_job_that_blocks_the_loop_keeps_its_lease(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts
) -> None:
    await watcher.enqueue_many([Job("block", key="k"), Job("hold", key="neighbour", timeout=0)])
    worker = start_worker("block", "2")

    async def done() -> bool:
        await watcher.sweep()
        return (await counts(watcher)).get("complete", 0) == 1

    await until(done, 20)
    assert await counts(watcher) == {"complete": 1}
    worker.terminate()
    await asyncio.to_thread(worker.wait, 20)


async def test_a_hanging_job_is_given_up_after_its_timeout(watcher: Queue, until: Until) -> None:
    await watcher.enqueue("f", key="k", timeout=1)
    assert await watcher.dequeue() is not None
    began = time.monotonic()
    await until(has(watcher, "queued", 1), 10)
    assert time.monotonic() - began >= 1.0


async def test_leases_outlive_an_outage_longer_than_themselves(
    make_queue: Callable[..., Queue], until: Until, counts: Counts, sound: Sound
) -> None:
    server = PrivateBroker()
    url = (await asyncio.to_thread(server.start)).url
    try:
        queue, other = (make_queue(url=url, lease_s=LEASE_S, sweep_s=0.05) for _ in range(2))
        await queue.enqueue_many(Job("f", timeout=60) for _ in range(20))
        taken = [await queue.dequeue() for _ in range(10)]
        waiting = asyncio.create_task(other.dequeue())
        assert await waiting is not None
        idle = [asyncio.create_task(other.dequeue()) for _ in range(12)]
        cpu = resource.getrusage(resource.RUSAGE_SELF)
        await asyncio.to_thread(server.restart, 2.5 * LEASE_S)
        used = resource.getrusage(resource.RUSAGE_SELF)
        assert (used.ru_utime + used.ru_stime) - (cpu.ru_utime + cpu.ru_stime) < 0.5  # 5 % would be 0.13 s
        back = time.monotonic()
        await queue.enqueue_many(Job("f") for _ in range(3))
        await until(has(queue, "queued", 0), 5)
        assert time.monotonic() - back < 2.0
        await asyncio.sleep(1.5 * LEASE_S)
        for job in taken:
            assert job is not None
            await queue.finish(job, Status.COMPLETE)
        assert await counts(queue) == {"complete": 10}
        assert await queue.count("active") == 23 - 10
        await sound(queue)
        for task in idle:
            task.cancel()
        await asyncio.wait(idle)
        await queue.disconnect()
        await other.disconnect()
    finally:
        await asyncio.to_thread(server.stop)


async def test_a_loop_that_never_sleeps_keeps_its_lease(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts
) -> None:
    assert await watcher.enqueue("spin", key="spin", timeout=0, retries=1)
    start_worker("spin", "1")
    await until(has(watcher, "active", 1), 20)
    lookout = asyncio.create_task(watcher.dequeue())  # it sweeps
    await until(has(watcher, "incomplete", 0), 6 * LEASE_S)
    lookout.cancel()
    await asyncio.wait([lookout])
    assert await counts(watcher) == {"complete": 1}


async def test_a_process_needs_a_handful_of_connections(make_queue: Callable[..., Queue]) -> None:
    queue, looking = make_queue(), make_queue("other")
    slots = [asyncio.create_task(queue.dequeue()) for _ in range(50)]
    await queue.enqueue_many(Job("f") for _ in range(40))
    done, _ = await asyncio.wait(slots, timeout=5, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(0.2)
    await asyncio.gather(*(queue.finish(task.result(), Status.COMPLETE) for task in slots if task.done()))  # type: ignore[arg-type]
    assert len(done) >= 1
    assert len(await looking.redis.client_list()) <= 8
    for task in slots:
        task.cancel()
    await asyncio.wait(slots)


async def test_sigterm_of_a_real_saq_process_leaves_nothing_active_and_spends_no_attempt(
    watcher: Queue, redis_url: str, until: Until, counts: Counts, sound: Sound
) -> None:
    await watcher.enqueue_many(Job("hold", timeout=0) for _ in range(10))
    code = "import sys; sys.argv=['saq','a_worker.settings']; from saq.__main__ import main; main()"
    here = os.path.dirname(__file__)
    environ = {**os.environ, "TEST_URL": redis_url, "PYTHONPATH": here}
    process = subprocess.Popen([sys.executable, "-c", code], cwd=here, env=environ)
    try:
        await until(has(watcher, "active", 10), 20)
        process.terminate()
        assert await asyncio.to_thread(process.wait, 20) == 0
        assert (await watcher.count("active"), await watcher.count("queued")) == (0, 10)
        assert await counts(watcher) == {"released": 10}
        jobs = [job async for job in watcher.iter_jobs()]
        assert {job.attempts for job in jobs} == {1}  # it was one, as SAQ counts them
        assert {job.error for job in jobs} <= {"cancelled", None}  # None: what SAQ had not said when it disconnected
        spent = [await watcher.redis.hget(watcher.key_of(job.key), "att") for job in jobs]  # type: ignore[misc]
        assert spent == [b"0"] * 10
        await sound(watcher)
    finally:
        if process.poll() is None:
            process.kill()
        process.wait()


async def test_a_process_whose_slots_are_all_busy_after_their_jobs_recovers_what_another_held(
    watcher: Queue, start_worker: Start, until: Until, counts: Counts
) -> None:
    """It holds nothing and asks for nothing, but it lives: the server was not away."""
    await watcher.enqueue_many(Job("hold", key=str(n), timeout=0) for n in range(2))
    mine = await watcher.dequeue()
    worker = start_worker("hold", "1")
    await until(has(watcher, "active", 2), 20)
    assert mine is not None
    await watcher.finish(mine, Status.COMPLETE)  # and whatever is to happen after it takes its time
    worker.kill()

    async def recovered() -> bool:
        return (await counts(watcher)).get("lost", 0) == 1

    await until(recovered, LEASE_S + SWEEP_S + 4)
