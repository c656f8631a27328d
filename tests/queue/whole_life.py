"""Everything that a queue does, once: for what differs in how it is reached, and not in what it does."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

from redis import asyncio as aioredis
from saq.job import Job, Status
from saq.worker import Worker

from saqkit.queue.audit import audit
from saqkit.queue.counting import statistics
from saqkit.queue.queue import Queue
from saqkit.queue.replaying import purge, replay
from saqkit.spec.topology import RateLimit

OPTIONS: dict[str, Any] = {"lease_s": 0.9, "sweep_s": 0.2, "tick_s": 0.05,
                           "rate_limit": RateLimit(limit=1000, period_s=0.1, unit="jobs")}  # fmt: skip
"""With these a life is short: leases are renewed, expired ones are recovered."""


async def echo(ctx: dict[str, Any], *, a: Any = None) -> Any:
    return a


async def longer_than_a_lease(ctx: dict[str, Any]) -> str:
    await asyncio.sleep(1.5)
    return "renewed"


async def fails_once(ctx: dict[str, Any]) -> int:
    if ctx["job"].attempts == 1:
        raise ValueError("once")
    return int(ctx["job"].attempts)


@contextlib.asynccontextmanager
async def working(queue: Queue, *functions: Any, concurrency: int = 10) -> Any:
    """SAQ's worker on a queue; the functions go by their own names."""
    named, timers = [(function.__name__, function) for function in functions], {"abort": 1}
    worker: Worker[Any] = Worker(queue, named, concurrency=concurrency, timers=timers)  # type: ignore[arg-type]
    task = asyncio.create_task(worker.start())
    try:
        yield worker
    finally:
        await worker.stop()
        await asyncio.wait_for(task, 20)


async def live(queue: Queue, other: Queue) -> None:
    """Every transition and every feature of `queue`, made with `OPTIONS`; `other` is another queue of the broker.

    Both must be empty at the beginning; what they keep is left at the end.
    """
    await queue.redis.set(queue.namespace("recording"), 1)
    async with working(queue, echo, longer_than_a_lease, fails_once):
        # Listening: the ends are heard of. Renewing: 1.5 s of work under a lease of 0.9 s, run once.
        jobs = [await queue.enqueue("longer_than_a_lease"), await queue.enqueue("echo", a="heard"),
                await queue.enqueue("fails_once", retries=2)]  # fmt: skip
        await asyncio.gather(*(job.refresh(until_complete=20) for job in jobs if job is not None))
        assert [job.result for job in jobs if job is not None] == ["renewed", "heard", 2]
        assert await queue.map("echo", [{"a": 1}, {"a": 2}], timeout=20) == [1, 2]
        assert (await queue.info(jobs=True))["workers"]
    assert await queue.count("incomplete") == 0

    # A batch of one, which two jobs follow, and which calls back into the other queue.
    await queue.submit_batch([Job("f", key="member")], on_complete=Job("g", queue=other))
    member = await queue.dequeue(timeout=5)
    assert member is not None
    await queue.follow_up(member, "f")
    await other.follow_up(member, "f")
    await queue.finish(member, Status.COMPLETE)
    for one in (queue, other, other):
        follower = await one.dequeue(timeout=10)
        assert follower is not None
        await one.finish(follower, Status.COMPLETE)

    assert await queue.enqueue_many(Job("f", key=f"m{n}", priority=1 + n % 4) for n in range(8)) == [True] * 8
    await queue.enqueue("f", key="later", scheduled=1)
    await queue.schedule()

    # Operators: pause, other limits and levels, a delayed job promoted, numbers.
    await queue.pause("a look at it")
    assert await queue.pause_of() is not None
    await queue.configure(weights={"critical": 8, "high": 4, "normal": 2, "low": 1}, fairness="tenants")
    await queue.configure(None)
    await queue.set_priority("m3", "critical")
    await queue.enqueue("f", key="much-later", scheduled=2_000_000_000)
    assert (await queue.hasten_keys(["much-later"])).done == 1
    assert (await statistics(queue)).waiting == 10
    await queue.resume()

    first = await queue.dequeue(timeout=5)
    assert first is not None
    await queue.update(first, meta={"seen": True})
    await queue.release(first)
    again = await queue.dequeue(timeout=5)
    assert again is not None
    assert again.key == first.key
    await queue.finish(again, Status.COMPLETE, result=1)
    failed = [await queue.dequeue(timeout=5) for _ in range(3)]
    for job in failed:
        assert job is not None
        await queue.finish(job, Status.FAILED, error="ValueError: it failed")
    cancelled = await queue.dequeue(timeout=5)
    assert cancelled is not None
    await queue.abort(cancelled, "no longer wanted")
    await queue.finish_abort(cancelled)
    assert await replay(queue, [failed[0].key]) == [True]  # type: ignore[union-attr]
    assert await replay(queue, [failed[1].key], to=other) == [True]  # type: ignore[union-attr]
    assert await purge(queue, [failed[2].key]) == 1  # type: ignore[union-attr]
    assert await other.count("queued") == 1
    await queue.redis.rpush(queue.namespace("wake"), "1")  # type: ignore[misc]

    # A holder that neither ends nor renews: the upkeep of this very process recovers what it held.
    lost = await queue.dequeue(timeout=5)
    assert lost is not None
    claim = queue.claim_of(lost)
    assert claim is not None
    assert queue._leases is not None
    queue._leases.discard(claim)
    async with asyncio.timeout(10):
        while await queue.count("active"):
            await asyncio.sleep(0.05)
    assert queue.job_key_from_id(lost.id) in [job.key async for job in queue.iter_jobs([Status.QUEUED])]
    await queue.finish(lost, Status.COMPLETE)  # too late: it is refused
    assert await queue.count("queued") > 0
    await queue.run_script("forget", 3600.0)
    for one in (queue, other):
        assert (await audit(one)).problems == ()


async def keys_of(client: aioredis.Redis) -> set[bytes]:
    """Every key of a server."""
    return {key async for key in client.scan_iter(count=1000)}
