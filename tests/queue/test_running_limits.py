"""At most so many jobs of one value of a key run at once, over all processes, whatever becomes of them."""

from __future__ import annotations

import asyncio
import random
import subprocess
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import DescriptionError, UsageError
from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Queue as QueueSpec
from saqkit.spec.topology import RunningLimit, Topology

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]


def job_of(n: int, tenant: str, **properties: Any) -> Job:
    return Job("f", key=f"{tenant}:{n}", meta={"tenant": tenant}, **properties)


async def counted(queue: Queue) -> dict[str, int]:
    found: Any = await queue.redis.hgetall(queue.namespace("running"))  # type: ignore[misc]
    return {name.decode(): int(number) for name, number in found.items()}


async def taken(queue: Queue, free: int, request: int) -> list[str]:
    words = (free, "w", queue.lease_s, 0, 1, "jobs", "me", request, "", queue.tick_s, queue.rules)
    _, _, _, *rows = await queue.run_script("take", *words)
    return [row[0].decode() for row in rows]


@pytest.mark.parametrize("fairness", ["none", "tenants"])
async def test_never_more_run_than_the_limit_over_two_queue_objects_whatever_becomes_of_the_jobs(
    make_queue: MakeQueue, fairness: str, until: Until
) -> None:
    limits = (RunningLimit(key="tenant", limit=2), RunningLimit(key="job_type", limit=5))
    queues = [make_queue(running_limits=limits, fairness=fairness, weights={"critical": 4, "high": 3, "normal": 2,
                                                                            "low": 1}) for _ in range(2)]  # fmt: skip
    chance, running, most, ended = random.Random(7), Counter[str](), Counter[str](), Counter[str]()

    async def work(queue: Queue) -> None:
        while True:
            job = await queue.dequeue()
            assert job is not None
            for name in (job.meta["tenant"], "all"):
                running[name] += 1
                most[name] = max(most[name], running[name])
            await asyncio.sleep(chance.random() * 0.004)
            for name in (job.meta["tenant"], "all"):
                running[name] -= 1
            job.attempts += 1
            how = chance.choice(["finish", "finish", "retry", "release", "fail"])
            if how == "retry" and job.retryable:
                await queue.retry(job, "ValueError: no")
            elif how == "release":
                await queue.release(job)
            else:
                ended[job.key] += 1
                await queue.finish(job, Status.FAILED if how == "fail" else Status.COMPLETE, error="no")

    jobs = [job_of(n, tenant, retries=3, priority=1 + n % 4) for n in range(25) for tenant in "abcd"]
    tasks = [asyncio.create_task(work(queue)) for queue in queues for _ in range(4)]
    try:
        await queues[0].enqueue_many(jobs)

        async def over() -> bool:
            return len(ended) == len(jobs) and not await queues[0].count("active")

        await until(over, 60)
        assert set(ended.values()) == {1}
        assert {most[tenant] for tenant in "abcd"} == {2}
        assert most["all"] == 5
        found = await audit(queues[0])
        assert (found.queued, found.active, found.problems) == (0, 0, ())
        assert await counted(queues[0]) == {}
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def test_a_key_is_an_argument_or_an_entry_of_meta(make_queue: MakeQueue) -> None:
    queue = make_queue(running_limits=(RunningLimit(key="customer", limit=1),))
    await queue.enqueue_many(
        [
            Job("f", key="a", kwargs={"customer": 7}),
            Job("g", key="b", meta={"customer": 7}),
            Job("f", key="c", kwargs={"customer": "x"}, meta={"customer": 7}),
            Job("f", key="none"),
            Job("f", key="list", kwargs={"customer": [7]}),
            Job("f", key="true", kwargs={"customer": True}),
        ]
    )
    assert await taken(queue, 10, 0) == ["a", "c", "none", "list", "true"]
    assert await counted(queue) == {'["customer","7"]': 1, '["customer","x"]': 1, '["customer","true"]': 1}
    assert (await audit(queue)).problems == ()


async def test_a_provider_is_that_of_the_job_type(make_queue: MakeQueue) -> None:
    limits = (RunningLimit(key="provider", limit=1),)
    queue = make_queue(running_limits=limits, providers={"f": "post", "g": "post"})
    await queue.enqueue_many(Job(function, key=f"{function}{n}") for n in range(2) for function in "fgh")
    assert await taken(queue, 10, 0) == ["f0", "h0", "h1"]
    with pytest.raises(UsageError, match="no job type is known to send by a provider"):
        make_queue(running_limits=limits)


async def test_the_slots_of_a_killed_process_are_given_back(
    make_queue: MakeQueue, start_worker: Callable[..., subprocess.Popen[bytes]], until: Until
) -> None:
    queue = make_queue(lease_s=1.0, sweep_s=0.5)
    await queue.configure(running_limits=[{"key": "tenant", "limit": 1}])
    await queue.enqueue_many(Job("hold", key=str(n), meta={"tenant": "a"}, timeout=0) for n in range(3))
    process = start_worker("hold", "3")

    async def holds() -> bool:
        return await queue.count("active") == 1

    await until(holds, 20)
    assert (await counted(queue), await queue.count("queued")) == ({'["tenant","a"]': 1}, 2)
    process.kill()
    process.wait()
    keys = []
    for _ in range(3):
        job = await queue.dequeue(timeout=10)
        assert job is not None
        keys.append(job.key)
        assert await counted(queue) == {'["tenant","a"]': 1}
        await queue.finish(job, Status.COMPLETE)
    assert keys == ["0", "1", "2"]
    assert await counted(queue) == {}
    assert (await audit(queue)).problems == ()


async def test_the_end_of_a_job_wakes_who_waits_for_its_place(make_queue: MakeQueue) -> None:
    first, second = (make_queue(running_limits=(RunningLimit(key="tenant", limit=1),)) for _ in range(2))
    await first.enqueue_many(job_of(n, "a") for n in range(2))
    job = await first.dequeue(timeout=5)
    assert job is not None
    waiting = asyncio.create_task(second.dequeue(timeout=20))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    before = int((await first.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])
    await asyncio.sleep(0.5)
    assert int((await first.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]) - before <= 3
    await first.finish(job, Status.COMPLETE)
    async with asyncio.timeout(0.7):
        assert (await waiting).key == "a:1"  # type: ignore[union-attr]


async def test_one_that_is_cancelled_or_seized_or_deleted_by_hand_is_counted_right(make_queue: MakeQueue) -> None:
    queue = make_queue(running_limits=(RunningLimit(key="tenant", limit=2),))
    await queue.enqueue_many(job_of(n, "a") for n in range(6))
    assert await taken(queue, 9, 0) == ["a:0", "a:1"]
    await queue.abort(Job("f", key="a:0", queue=queue), "not wanted")
    assert await counted(queue) == {'["tenant","a"]': 1}
    seized = await queue.job("a:5")
    assert seized is not None
    await queue.update(seized, status=Status.ACTIVE)
    assert await counted(queue) == {'["tenant","a"]': 2}
    assert await taken(queue, 9, 1) == []
    await queue.redis.delete(queue.key_of("a:1"))
    await queue.redis.zadd(queue.namespace("leases"), {"a:1": 1})
    await queue.sweep()
    assert await counted(queue) == {'["tenant","a"]': 1}
    assert await taken(queue, 9, 2) == ["a:2"]
    assert (await audit(queue)).problems == ()


async def test_of_a_thousand_tenants_who_wait_for_one_place_only_the_next_is_looked_at(make_queue: MakeQueue) -> None:
    queue = make_queue(fairness="tenants", running_limits=(RunningLimit(key="job_type", limit=2),))
    await queue.enqueue_many(job_of(n, f"t{tenant}") for n in range(2) for tenant in range(1000))
    held: list[Any] = [await queue.dequeue(timeout=5) for _ in range(2)]
    assert [await taken(queue, 5, request) for request in range(7)] == [[]] * 7
    order = []
    for n in range(20):
        await queue.finish(held.pop(0), Status.COMPLETE)
        await queue.redis.config_resetstat()
        held.append(await queue.dequeue(timeout=5))
        order.append(held[-1].key)
        stats = await queue.redis.info("commandstats")
        assert sum(stat["calls"] for stat in stats.values()) < 200, n
    assert order == [f"t{n}:0" for n in range(2, 22)]
    assert (await audit(queue)).problems == ()


@pytest.mark.parametrize(
    ("limits", "message"),
    [
        ([{"key": "tenant", "limit": 0}], r"running_limits\.0\.limit: .*greater than 0.*given: 0"),
        ([{"key": "tenants", "limit": 1}], r'running_limits\.0\.key: there is no key "tenants" \(did you mean "tenant'),
        ([{"key": "function", "limit": 1}], r'running_limits\.0\.key: .*did you mean "job_type"'),
        ([{"key": "a customer", "limit": 1}], r"running_limits\.0\.key: "),
        ([{"key": "x", "limit": 1}, {"key": "x", "limit": 2}], r'running_limits: there are two limits for "x"'),
        ([{"limit": 1}], r"running_limits\.0\.key: is missing"),
    ],
)
def test_wrong_limits_are_refused(limits: list[dict[str, Any]], message: str) -> None:
    with pytest.raises(DescriptionError, match=message) as caught:
        QueueSpec.parse({"running_limits": limits}, "file.toml")
    assert "\n" not in str(caught.value)


def test_a_limit_of_providers_where_no_job_has_one_is_refused() -> None:
    data = {
        "name": "t", "entry": [{"job_type": "f"}], "job_types": {"f": {"queue": "q"}},
        "queues": {"q": {"running_limits": [{"key": "provider", "limit": 5}]}},
    }  # fmt: skip
    with pytest.raises(DescriptionError, match=r"queues\.q\.running_limits\.0\.key: no job of this queue sends by"):
        Topology.parse(data)
