"""The worker on a real broker: what it does with functions that fail, hang, lie, and with being told to stop."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager, suppress
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit import Queue
from saqkit.queue.dead_letters import dead_letters
from saqkit.spec.topology import Priority
from saqkit.testing import drain
from saqkit.worker.worker import Worker


@pytest.fixture
def queue(saqkit_queue: Queue) -> Queue:
    return saqkit_queue


@asynccontextmanager
async def working(*queues: Queue, slots: int = 1, grace_s: float = 5.0, **functions: Any) -> AsyncIterator[Worker]:
    """A worker in this process, stopped at the end."""
    named = {queue.name: queue for queue in queues}
    worker = Worker(named, functions, dict.fromkeys(named, slots), name="w", grace_s=grace_s)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)


async def ended(queue: Queue, job: Job, timeout_s: float = 10.0) -> Job:
    async with asyncio.timeout(timeout_s):
        while (now := await queue.job(job.key)) is None or now.status not in (
            Status.COMPLETE,
            Status.FAILED,
            Status.ABORTED,
        ):
            await asyncio.sleep(0.01)
    return now


async def enqueue(queue: Queue, function: str, **given: Any) -> Job:
    job = await queue.enqueue(function, **given)
    assert job is not None
    return job


async def letters(queue: Queue) -> list[Any]:
    return [letter async for letter in dead_letters(queue)]


async def test_a_job_of_an_unknown_function_is_a_dead_letter_at_once(queue: Queue) -> None:
    await queue.enqueue("nobody_knows", retries=5)
    assert repr(await drain(queue, {})) == "<Drained: 1 dead: nobody_knows 1 dead UnknownFunction>"
    (letter,) = await letters(queue)
    assert (letter.function, letter.attempts) == ("nobody_knows", 1)
    assert "UnknownFunction" in letter.error


async def test_arguments_that_do_not_fit_fail_the_job_and_leave_its_slot_alive(queue: Queue) -> None:
    async def greet(ctx: dict[str, Any], *, name: str) -> str:
        return f"hello {name}"

    await queue.enqueue("greet", wrong=1)
    await queue.enqueue("greet", name="Ada")
    drained = await drain(queue, {"greet": greet})
    assert [(attempt.outcome, attempt.error) for attempt in drained.attempts] == [("dead", "TypeError"), ("done", "")]
    assert drained.done[0].result == "hello Ada"


async def test_a_timeout_is_retried_and_then_dead(queue: Queue) -> None:
    runs = []

    async def hang(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job"].attempts)
        await asyncio.sleep(60)

    await queue.enqueue("hang", timeout=1, retries=2)
    drained = await drain(queue, {"hang": hang})
    assert [attempt.outcome for attempt in drained.attempts] == ["retry", "dead"]
    (letter,) = await letters(queue)
    assert (runs, letter.attempts) == ([1, 2], 2)
    assert "TimeoutError" in letter.error


async def test_a_function_that_swallows_its_cancellation_holds_up_no_slot(queue: Queue) -> None:
    async def stubborn(ctx: dict[str, Any]) -> None:
        for _ in range(80):
            try:
                await asyncio.sleep(0.05)
            except asyncio.CancelledError:
                continue

    async def quick(ctx: dict[str, Any]) -> int:
        return 7

    async with working(queue, stubborn=stubborn, quick=quick):
        first = await enqueue(queue, "stubborn", timeout=1, retries=1)
        second = await enqueue(queue, "quick")
        assert (await ended(queue, second, 6)).result == 7
        assert (await ended(queue, first)).status == Status.FAILED


async def test_a_cancelled_job_stops_within_two_seconds_and_its_slot_goes_on(queue: Queue) -> None:
    stopped = asyncio.Event()
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        started.set()
        try:
            await asyncio.sleep(60)
        finally:
            stopped.set()

    async def quick(ctx: dict[str, Any]) -> int:
        return 7

    async with working(queue, hang=hang, quick=quick):
        job = await enqueue(queue, "hang")
        await asyncio.wait_for(started.wait(), 10)
        await queue.abort(job, "not wanted any more")
        await asyncio.wait_for(stopped.wait(), 3)
        assert (await ended(queue, await enqueue(queue, "quick"))).result == 7
    now = await queue.job(job.key)
    assert now is None or now.status == Status.ABORTED


async def test_a_result_that_cannot_be_stored_does_not_repeat_the_work(queue: Queue) -> None:
    runs = []

    async def odd(ctx: dict[str, Any]) -> object:
        runs.append(1)
        return object()

    await queue.enqueue("odd", retries=3)
    drained = await drain(queue, {"odd": odd})
    assert (len(runs), len(drained.done), drained.failed) == (1, 1, ())


async def test_told_to_stop_it_takes_no_more_and_leaves_as_soon_as_it_is_idle(queue: Queue) -> None:
    started = asyncio.Event()

    async def short(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.sleep(0.3)

    async with working(queue, slots=2, grace_s=30, short=short) as worker:
        for _ in range(20):
            await enqueue(queue, "short")
        await asyncio.wait_for(started.wait(), 10)
        began = time.monotonic()
        worker.stop()
    assert time.monotonic() - began < 5, "far below the grace"
    assert await queue.count("active") == 0
    assert await queue.count("queued") == 20 - worker.jobs
    assert worker.jobs <= 4


async def test_what_is_not_done_after_the_grace_is_given_back_without_costing_an_attempt(queue: Queue) -> None:
    started = asyncio.Event()

    async def hang(ctx: dict[str, Any]) -> None:
        started.set()
        await asyncio.sleep(60)

    async with working(queue, grace_s=0.1, hang=hang):
        job = await enqueue(queue, "hang", retries=1)
        await asyncio.wait_for(started.wait(), 10)
    now = await queue.job(job.key)
    assert now is not None
    assert (now.status, now.attempts) == (Status.QUEUED, 1)
    assert await queue.redis.hget(queue.key_of(now.key), "att") == b"0"  # type: ignore[misc]
    assert await queue.count("active") == 0


async def test_each_queue_has_its_own_slots_and_priorities(redis_url: str) -> None:
    queues = [Queue.from_url(redis_url, name=name) for name in ("one", "two")]
    order: list[str] = []
    most = {"one": 0, "two": 0}
    running = {"one": 0, "two": 0}

    async def note(ctx: dict[str, Any], *, label: str) -> None:
        name = ctx["queue"].name
        running[name] += 1
        most[name] = max(most[name], running[name])
        order.append(label)
        await asyncio.sleep(0.02)
        running[name] -= 1

    jobs = []
    for queue in queues:
        for number, level in enumerate([Priority.LOW, Priority.NORMAL, Priority.CRITICAL, Priority.HIGH] * 2):
            label = f"{queue.name}-{int(level)}-{number}"
            jobs.append((queue, await enqueue(queue, "note", priority=int(level), label=label)))
    worker = Worker({q.name: q for q in queues}, {"note": note}, {"one": 1, "two": 3}, name="w")
    task = asyncio.create_task(worker.run())
    for queue, job in jobs:
        await ended(queue, job)
    worker.stop()
    await task
    for queue in queues:
        await queue.disconnect()
    levels = [label.split("-")[1] for label in order if label.startswith("one")]
    assert levels == ["1", "1", "2", "2", "3", "3", "4", "4"]
    numbers = [label for label in order if label.startswith("one-1")]
    assert numbers == ["one-1-2", "one-1-6"], "first in, first out inside a level"
    assert most == {"one": 1, "two": 3}


async def test_whoever_wants_to_know_is_told_after_each_attempt(queue: Queue) -> None:
    seen: list[tuple[str, Status]] = []

    async def after(ctx: dict[str, Any]) -> None:
        seen.append((ctx["job"].function, ctx["job"].status))

    async def fail(ctx: dict[str, Any]) -> None:
        raise RuntimeError("no")

    await queue.enqueue("fail", retries=2)
    await drain(queue, {"fail": fail}, after_process=after)
    assert seen == [("fail", Status.QUEUED), ("fail", Status.FAILED)]


async def test_a_job_that_cannot_be_started_fails_alone(queue: Queue) -> None:
    ran = []

    async def fine(ctx: dict[str, Any]) -> None:
        ran.append(ctx["job"].key)

    class Functions(dict[str, Any]):
        def get(self, name: str, default: Any = None) -> Any:
            if name == "odd":
                raise TypeError("unhashable")
            return super().get(name, default)

    worker = Worker({queue.name: queue}, Functions(fine=fine), {queue.name: 1}, name="w")
    task = asyncio.create_task(worker.run())
    odd = await enqueue(queue, "odd", key="odd")
    job = await enqueue(queue, "fine", key="fine")
    try:
        assert (await ended(queue, job)).status == Status.COMPLETE
        assert (await ended(queue, odd)).status == Status.FAILED
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)
    assert ran == ["fine"]
    (letter,) = await letters(queue)
    assert (letter.key, letter.error) == ("odd", "TypeError: unhashable")


async def test_a_worker_that_can_serve_a_queue_no_longer_ends_with_what_was_wrong(
    saqkit_queue_factory: Callable[..., Queue],
) -> None:
    queue, other = saqkit_queue_factory(name="q"), saqkit_queue_factory(name="other")
    served, may_end = asyncio.Event(), asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> None:
        served.set()
        await may_end.wait()

    async def dequeue_many(free: Callable[[], int]) -> list[Job]:
        await served.wait()
        raise RuntimeError("its code is broken")

    queue.dequeue_many = dequeue_many  # type: ignore[method-assign]  # whatever it may be
    job = await other.enqueue("slow")
    assert job is not None
    worker = Worker({"q": queue, "other": other}, {"slow": slow}, {"q": 1, "other": 1}, name="w", grace_s=10)
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(served.wait(), 10)
    may_end.set()
    with pytest.raises(RuntimeError, match="its code is broken"):
        await asyncio.wait_for(task, 10)
    assert (await ended(other, job)).status == Status.COMPLETE


@pytest.mark.parametrize("swallows", [False, True])
async def test_a_timeout_stays_one_when_the_worker_gives_up_meanwhile(queue: Queue, swallows: bool) -> None:
    cancelled, may_end = asyncio.Event(), asyncio.Event()

    async def slow(ctx: dict[str, Any]) -> str:
        try:
            await asyncio.sleep(60)
        except asyncio.CancelledError:
            cancelled.set()
            while not may_end.is_set():
                with suppress(asyncio.CancelledError):
                    await may_end.wait()
            if not swallows:
                raise
        return "late"

    job = await enqueue(queue, "slow", timeout=0.2, retries=1)
    worker = Worker({queue.name: queue}, {"slow": slow}, {queue.name: 1}, name="w", grace_s=0)
    task = asyncio.create_task(worker.run())
    await asyncio.wait_for(cancelled.wait(), 10)
    worker.stop()
    asyncio.get_running_loop().call_later(0.3, may_end.set)  # it ends once the worker has given it up
    await asyncio.wait_for(task, 10)
    now = await ended(queue, job)
    assert now.status == Status.FAILED
    assert "TimeoutError: not done within 0.2 s" in str(now.error)
