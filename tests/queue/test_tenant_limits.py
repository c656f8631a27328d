"""A rate limit for each tenant of a queue: over all processes, without spinning, and no other tenant waits for it."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saq.job import Job, Status

from saqkit.errors import DescriptionError
from saqkit.queue.audit import audit
from saqkit.queue.queue import Queue
from saqkit.spec.topology import Queue as QueueSpec
from saqkit.spec.topology import RateLimit, Topology

MakeQueue = Callable[..., Queue]
Arrival = tuple[int, str, int]
"""After so many ms, of a tenant, for so many users."""


@asynccontextmanager
async def takers(*queues: Queue) -> AsyncIterator[list[str]]:
    """Two slots of each queue take whatever comes, and finish it at once; yields the keys as they are taken."""
    keys: list[str] = []

    async def take(queue: Queue) -> None:
        while True:
            job = await queue.dequeue()
            assert job is not None
            keys.append(job.key)
            await queue.finish(job, Status.COMPLETE)

    tasks = [asyncio.create_task(take(queue)) for queue in queues for _ in range(2)]
    try:
        yield keys
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def windows(queue: Queue, period_s: float, by_users: bool) -> dict[str, int]:
    """The heaviest window of each tenant, from when its jobs were taken by the server's clock."""
    found: dict[str, list[tuple[float, int]]] = {}
    async for key in queue.redis.scan_iter(match=queue.key_of("*")):
        at, users = await queue.redis.hmget(key, ["at_t", "users"])  # type: ignore[misc]
        tenant = key.decode().removeprefix(queue.key_of("")).partition(":")[0]
        found.setdefault(tenant, []).append((float(at), int(users or 1) if by_users else 1))
    return {
        tenant: max(sum(weight for other, weight in taken if at <= other < at + period_s - 2e-6) for at, _ in taken)
        for tenant, taken in found.items()
    }


def job_of(n: int, tenant: str, users: int = 0) -> Job:
    return Job("f", key=f"{tenant}:{n}", kwargs={"users": list(range(users))}, meta={"tenant": tenant}, ttl=600)


some_arrivals = st.lists(
    st.tuples(st.sampled_from([0, 0, 0, 3, 20]), st.sampled_from("abc"), st.integers(1, 6)), min_size=12, max_size=25
)


@pytest.mark.parametrize(("unit", "limit"), [("jobs", 3), ("users", 8)])
@given(arrivals=some_arrivals)
@settings(max_examples=4, deadline=None, derandomize=True, suppress_health_check=list(HealthCheck))
async def test_no_window_of_a_tenant_exceeds_its_limit(
    make_queue: MakeQueue, unit: Any, limit: int, arrivals: Sequence[Arrival]
) -> None:
    rate = RateLimit(limit=limit, period_s=0.15, unit=unit)
    first, second = (make_queue(tenant_rate_limit=rate) for _ in range(2))
    await first.redis.flushall()
    try:
        async with takers(first, second) as keys, asyncio.timeout(30):
            for n, (pause_ms, tenant, users) in enumerate(arrivals):
                await asyncio.sleep(pause_ms / 1000)
                await first.enqueue(job_of(n, tenant, users))
            while len(keys) < len(arrivals):
                await asyncio.sleep(0.005)
        heaviest = await windows(first, rate.period_s, unit == "users")
        assert max(heaviest.values()) <= limit, heaviest
        assert (await audit(first)).problems == ()
    finally:
        await first.disconnect()
        await second.disconnect()


async def test_ten_a_second_of_each_tenant_with_two_workers(make_queue: MakeQueue) -> None:
    rate = RateLimit(limit=10)
    first, second = (make_queue(tenant_rate_limit=rate) for _ in range(2))
    async with takers(first, second) as keys, asyncio.timeout(20):
        await first.enqueue_many([*(job_of(n, "a") for n in range(22)), *(job_of(n, "b") for n in range(12))])
        while len(keys) < 34:
            await asyncio.sleep(0.01)
    assert await windows(first, 1.0, False) == {"a": 10, "b": 10}
    times = [float(await first.redis.hget(first.key_of(f"a:{n}"), "at_t")) for n in (0, 21)]  # type: ignore[misc,arg-type]
    assert 2.0 - 1e-3 <= times[1] - times[0] < 4.0


async def test_others_pass_a_tenant_that_is_exhausted_and_nobody_spins(make_queue: MakeQueue) -> None:
    queue = make_queue(tenant_rate_limit=RateLimit(limit=2, period_s=60))
    await queue.enqueue_many([*(job_of(n, "a") for n in range(5)), job_of(0, "b"), job_of(0, "")])
    async with takers(queue) as keys:
        async with asyncio.timeout(5):
            while len(keys) < 4:
                await asyncio.sleep(0.005)
        await asyncio.sleep(0.1)
        before = await scripts_run(queue)
        await asyncio.sleep(1.0)
        assert await scripts_run(queue) - before <= 4, "an exhausted queue is asked again and again"
        began = time.monotonic()
        await queue.enqueue(job_of(1, "b"))
        async with asyncio.timeout(5):
            while len(keys) < 5:
                await asyncio.sleep(0.002)
        assert time.monotonic() - began < 0.5
        await queue.enqueue(job_of(2, "b"))
    assert keys == ["a:0", "a:1", "b:0", ":0", "b:1"]
    assert (await queue.count("active"), await queue.count("queued")) == (0, 4)
    assert (await audit(queue)).problems == ()


async def scripts_run(queue: Queue) -> int:
    return int((await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


async def test_a_heavy_job_waits_for_an_empty_window_and_no_lighter_one_of_its_tenant_passes_it(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue(tenant_rate_limit=RateLimit(limit=10, period_s=0.2, unit="users"))
    await queue.enqueue_many([job_of(0, "a", 5), job_of(1, "a", 30), job_of(2, "a", 1), job_of(0, "b", 0)])
    async with takers(queue) as keys, asyncio.timeout(10):
        while len(keys) < 4:
            await asyncio.sleep(0.005)
    assert keys == ["a:0", "b:0", "a:1", "a:2"]
    at = [float(await queue.redis.hget(queue.key_of(key), "at_t")) for key in ("a:0", "a:1", "a:2")]  # type: ignore[misc,arg-type]
    assert at[1] - at[0] >= 0.2 - 1e-5
    assert at[2] - at[1] >= 30 / 10 * 0.2 - 1e-5


async def test_windows_of_tenants_that_send_no_more_are_not_kept(make_queue: MakeQueue) -> None:
    queue = make_queue(tenant_rate_limit=RateLimit(limit=2, period_s=0.1))
    await queue.enqueue_many([job_of(0, f"t{n}") for n in range(5)])
    async with takers(queue) as keys, asyncio.timeout(10):
        while len(keys) < 5:
            await asyncio.sleep(0.005)
    left = [await queue.redis.pttl(queue.namespace(f"{kind}:t3")) for kind in ("tenant", "used")]
    assert all(0 < each <= 1_200 for each in left), left


@pytest.mark.parametrize(
    ("given_limit", "message"),
    [
        ({"limit": 0}, r"tenant_rate_limit\.limit: .*greater than 0.*given: 0"),
        ({"limit": 5, "period_s": -1}, r"tenant_rate_limit\.period_s: .*greater than 0.*given: -1"),
        ({"limit": 5, "unit": "user"}, r'tenant_rate_limit\.unit: there is no unit "user" \(did you mean "users"\?\)'),
    ],
)
def test_wrong_limits_are_refused(given_limit: dict[str, Any], message: str) -> None:
    with pytest.raises(DescriptionError, match=message) as caught:
        QueueSpec.parse({"tenant_rate_limit": given_limit}, "file.toml")
    assert "\n" not in str(caught.value)


def test_a_limit_of_users_where_no_job_has_any_is_refused() -> None:
    data = {
        "name": "t", "entry": [{"job_type": "start"}],
        "queues": {"q": {"tenant_rate_limit": {"limit": 5, "unit": "users"}}, "other": {}},
        "job_types": {"start": {"queue": "q", "fan_out": {"to": "notify"}}, "notify": {"queue": "other"}},
    }  # fmt: skip
    with pytest.raises(DescriptionError, match=r"queues\.q\.tenant_rate_limit\.unit: limits users, but no job"):
        Topology.parse(data)
