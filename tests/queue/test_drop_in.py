"""SAQ's own worker, and everything else SAQ's users call, on our queue."""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from itertools import pairwise
from typing import Any

import pytest
from redis import asyncio as aioredis
from saq.job import CronJob, Job, Status
from saq.queue.base import JobError
from saq.worker import Worker

from saqkit.errors import BrokerError
from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]


async def echo(ctx: dict[str, Any], *, a: Any = None) -> Any:
    return a


async def fail(ctx: dict[str, Any]) -> None:
    raise ValueError(f"attempt {ctx['job'].attempts}")


async def sleep(ctx: dict[str, Any], *, a: float) -> None:
    await asyncio.sleep(a)


async def stubborn(ctx: dict[str, Any]) -> str:
    try:
        await asyncio.sleep(60)
    except asyncio.CancelledError:
        await asyncio.sleep(0.2)
    return "done all the same"


async def cancels_itself(ctx: dict[str, Any]) -> None:
    raise asyncio.CancelledError


async def strange(ctx: dict[str, Any]) -> object:
    ctx["job"].meta["own"] = object()
    return object()


@asynccontextmanager
async def working(queue: Queue, **options: Any) -> AsyncIterator[Worker[Any]]:
    functions: list[Any] = [echo, fail, sleep, stubborn, cancels_itself, strange]
    worker: Worker[Any] = Worker(queue, functions, timers={"abort": 1}, **options)  # type: ignore[typeddict-item]
    task = asyncio.create_task(worker.start())
    try:
        yield worker
    finally:
        await worker.stop()
        await task


async def ended(queue: Queue, key: str) -> Job:
    job = await queue.job(key)
    assert job is not None
    await job.refresh(10)
    return job


async def test_results_map_apply_and_hooks(queue: Queue) -> None:
    hooks: list[str] = []

    async def before(ctx: dict[str, Any]) -> None:
        hooks.append("before")

    async def after(ctx: dict[str, Any]) -> None:
        hooks.append("after")

    async with working(queue, before_process=before, after_process=after):
        assert await queue.apply("echo", a={"x": 1}, timeout=10, poll_interval=0.02) == {"x": 1}
        found = await queue.map("echo", [{"a": n} for n in range(30)], timeout=10, poll_interval=0.02)
        assert found == list(range(30))
        with pytest.raises(JobError):
            await queue.apply("fail", timeout=10, poll_interval=0.02)
    assert hooks == ["before", "after"] * 32 or sorted(hooks) == ["after"] * 32 + ["before"] * 32


async def test_retries_failures_and_timeouts(queue: Queue, counts: Counts) -> None:
    await queue.enqueue("fail", key="f", retries=3, retry_delay=0.05)
    await queue.enqueue("sleep", key="t", timeout=1, a=30)
    await queue.enqueue("nobody", key="u")
    async with working(queue):
        failed, late, unknown = await ended(queue, "f"), await ended(queue, "t"), await ended(queue, "u")
    assert (failed.status, failed.attempts) == (Status.FAILED, 3)
    assert failed.error is not None
    assert failed.error.rstrip().endswith("ValueError: attempt 3")
    assert late.status == Status.FAILED
    assert late.error is not None
    assert "TimeoutError" in late.error
    assert unknown.error is not None
    assert "nobody" in unknown.error
    assert await counts(queue) == {"retried": 2, "failed": 3}


@pytest.mark.parametrize("name", ["sleep", "stubborn"])
async def test_a_running_job_can_be_aborted_from_another_process(
    queue: Queue, make_queue: Callable[..., Queue], counts: Counts, name: str
) -> None:
    other = make_queue()
    async with working(queue):
        job = await other.enqueue(name, **({"a": 30} if name == "sleep" else {}), timeout=60, key="k")
        assert job is not None
        async with asyncio.timeout(10):
            while await other.count("active") == 0:
                await asyncio.sleep(0.02)
        await asyncio.sleep(1.1)  # SAQ's worker looks at what runs for longer than a second
        await other.abort(job, "enough")
        assert await other.enqueue("echo", key="k") is None  # no second copy beside one that is still stopping
        async with asyncio.timeout(10):
            while queue.claim_of(Job("f", key="k")) is not None:
                await asyncio.sleep(0.02)
        stored = await ended(other, "k")
        assert (stored.status, stored.error) == (Status.ABORTED, "enough")
        assert await other.enqueue("echo", key="k", a=1) is not None
        assert (await ended(other, "k")).result == 1
    assert await counts(queue) == {"aborted": 1, "complete": 1}


async def test_hostile_jobs_harm_nobody_else(queue: Queue, counts: Counts) -> None:
    await queue.enqueue("strange", key="s", retries=5)
    await queue.enqueue("cancels_itself", key="c", retries=2)
    await queue.enqueue_many(Job("echo", key=str(n), kwargs={"a": n}) for n in range(50))
    async with working(queue):
        strange_one, cancelled = await ended(queue, "s"), await ended(queue, "c")
        assert [(await ended(queue, str(n))).result for n in range(50)] == list(range(50))
    assert strange_one.status == Status.COMPLETE
    assert "object" in strange_one.result
    assert (cancelled.status, cancelled.attempts) == (Status.FAILED, 2)
    assert await counts(queue) == {"complete": 51, "retried": 1, "failed": 1}


async def test_cron_jobs_run_once_each_time_with_two_workers(queue: Queue, make_queue: Callable[..., Queue]) -> None:
    runs: list[float] = []

    async def tick(ctx: dict[str, Any]) -> None:
        runs.append(asyncio.get_running_loop().time())

    cron = [CronJob(tick, cron="* * * * * */1")]
    async with working(queue, cron_jobs=cron), working(make_queue(), cron_jobs=cron):
        async with asyncio.timeout(10):
            while len(runs) < 3:
                await asyncio.sleep(0.02)
    assert all(later - earlier > 0.5 for earlier, later in pairwise(runs))


async def test_the_key_of_a_cron_job_is_free_as_soon_as_it_is_done(queue: Queue) -> None:
    for _ in range(3):
        assert await queue.enqueue("tick", key="cron:tick", meta={"keep_key_s": 3600}) is not None
        job = await queue.dequeue(timeout=5)
        assert job is not None
        assert await queue.enqueue("tick", key="cron:tick") is None
        await queue.finish(job, Status.COMPLETE)


async def test_batch_cancels_what_is_under_way_when_its_block_fails(queue: Queue) -> None:
    running: list[Job] = []

    async def failing() -> None:
        async with queue.batch():
            running.extend(filter(None, [await queue.enqueue("sleep", a=60)]))
            while await queue.count("active") == 0:
                await asyncio.sleep(0.01)
            raise ValueError("in the block")

    async with working(queue):
        async with queue.batch():
            whole = await queue.enqueue("echo", a=1)
            assert whole is not None
            await whole.refresh(10)
        assert whole.status == Status.COMPLETE
        with pytest.raises(ValueError, match="in the block"):
            await failing()
        job = await ended(queue, running[0].key)
        assert job.status == Status.ABORTED
    assert await queue.enqueue("echo") is not None  # outside a batch nothing is gathered


async def test_version_is_that_of_the_server(queue: Queue) -> None:
    told = await queue.redis.info("server")
    version = await queue.version()
    assert version == tuple(int(part) for part in told["redis_version"].split("."))
    assert version >= (6, 2)


async def test_swept_error_message_is_that_of_a_job_without_heartbeat(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(swept_error_message="nobody heard of it")
    assert queue.swept_error_message == "nobody heard of it"
    async with working(queue):
        await queue.enqueue("sleep", key="silent", a=60, heartbeat=1, timeout=60)
        job = await ended(queue, "silent")
    assert job.status == Status.FAILED
    assert job.error == "nobody heard of it: no heartbeat for 1 s"


async def test_max_concurrent_ops_bounds_how_many_look_at_once(
    make_queue: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch
) -> None:
    queue, looking, most = make_queue(max_concurrent_ops=3), 0, 0
    await queue.enqueue_many(Job("echo", key=str(n)) for n in range(30))
    pipeline = queue.redis.pipeline

    def counted(**options: Any) -> Any:
        pipe = pipeline(**options)
        execute = pipe.execute

        async def slowly() -> Any:
            nonlocal looking, most
            looking += 1
            most = max(most, looking)
            await asyncio.sleep(0.01)
            found = await execute()
            looking -= 1
            return found

        pipe.execute = slowly
        return pipe

    monkeypatch.setattr(queue.redis, "pipeline", counted)
    found = await asyncio.gather(*(queue.job(str(n)) for n in range(30)))
    assert [job.key for job in found if job] == [str(n) for n in range(30)]
    assert most == 3


async def test_an_explicit_status_is_a_wish(queue: Queue, make_queue: Callable[..., Queue]) -> None:
    for key in "abc":
        await queue.enqueue("f", key=key)
    a, b, c = await queue.jobs("abc")
    assert a
    assert b
    assert c
    await a.update(status=Status.COMPLETE, result=5)
    await b.update(status=Status.ABORTING)
    await c.update(status=Status.ACTIVE)
    found = {job.key: job.status for job in await queue.jobs("abc") if job}
    assert found == {"a": Status.COMPLETE, "b": Status.ABORTED, "c": Status.ACTIVE}
    stranger = await make_queue().job("c")
    assert stranger is not None
    await stranger.finish(Status.COMPLETE, result="not mine")
    still = await queue.job("c")
    assert still is not None
    assert (still.status, still.result) == (Status.ACTIVE, None)


async def test_stopping_while_a_finish_is_under_way_does_not_run_the_job_again(queue: Queue, counts: Counts) -> None:
    await queue.enqueue("f", key="k", retries=3)
    job = await queue.dequeue()
    assert job is not None
    finishing = asyncio.create_task(queue.finish(job, Status.COMPLETE, result=1))
    await asyncio.sleep(0)
    finishing.cancel()
    await asyncio.wait([finishing])
    await queue.release(job)
    assert await counts(queue) == {"complete": 1}


async def test_refresh_does_not_miss_a_job_that_ended_before_it_listened(queue: Queue) -> None:
    await queue.enqueue("f", key="k")
    await queue.finish(Job("f", key="k", queue=queue), Status.COMPLETE)
    heard: list[Status] = []
    await queue.listen(["k"], lambda _, status: heard.append(status) or True, timeout=5)  # type: ignore[func-returns-value]
    assert heard == [Status.COMPLETE]


def test_a_queue_can_be_made_outside_a_loop_and_disconnected_twice(redis_url: str) -> None:
    queue = Queue.from_url(redis_url)

    async def use() -> None:
        await queue.connect()
        await queue.enqueue("f")
        assert await queue.dequeue() is not None
        await queue.disconnect()
        await queue.disconnect()
        assert await queue.count("queued") == 1  # given back
        await queue.disconnect()

    asyncio.run(use())


async def test_two_queues_in_one_process_do_not_mix(make_queue: Callable[..., Queue]) -> None:
    first, second = make_queue("one"), make_queue("two")
    await first.enqueue("f", key="k")
    await second.enqueue("g", key="k")
    a, b = await first.dequeue(), await second.dequeue()
    assert a
    assert b
    await first.finish(a, Status.COMPLETE)
    assert (await first.count("active"), await second.count("active")) == (0, 1)
    assert (a.function, b.function) == ("f", "g")


async def test_strange_users_arguments_are_the_users_own(queue: Queue) -> None:
    for users in (5, "abc", None, {"a": 1}):
        assert await queue.enqueue("f", users=users) is not None


async def test_addresses(redis_url: str) -> None:
    with pytest.raises(BrokerError, match="HTTP-only"):
        Queue.from_url("http://localhost")
    queue = Queue(aioredis.from_url(redis_url), "plain")  # as SAQ's own constructor is called
    await queue.enqueue("f")
    assert (await queue.info(jobs=True))["queued"] == 1
    await queue.disconnect()
