"""A queue that uses no feature does, and keeps, nothing for them: counted in commands on the server."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable
from typing import Any

from saq.job import Job, Status

from saqkit.queue.queue import Queue
from saqkit.spec.topology import RateLimit, RunningLimit

JOBS = 30
ALL_ON: dict[str, Any] = {
    "weights": {"critical": 8, "high": 4, "normal": 2, "low": 1},
    "fairness": "tenants",
    "rate_limit": RateLimit(limit=1000),
    "tenant_rate_limit": RateLimit(limit=1000),
    "running_limits": (RunningLimit(key="tenant", limit=100),),
}


async def commands(queue: Queue) -> Counter[str]:
    """How often the server carried out what, for jobs that are enqueued, taken and done one by one."""
    jobs = [Job("f", key=f"{queue.name}{n}", meta={"tenant": f"t{n % 3}"}, priority=1 + n % 4) for n in range(JOBS)]
    await queue.enqueue_many(jobs)
    await queue.redis.config_resetstat()
    for _ in range(JOBS):
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, Status.COMPLETE)
    told: dict[str, Any] = await queue.redis.info("commandstats")
    return Counter({name.removeprefix("cmdstat_"): int(stat["calls"]) for name, stat in told.items()})


async def test_a_queue_without_features_writes_for_none(make_queue: Callable[..., Queue]) -> None:
    plain, using = await commands(make_queue("plain")), await commands(make_queue("using", **ALL_ON))
    writes = ("zadd", "zincrby", "zrem", "hincrby", "zunionstore")
    assert sum(using[name] for name in writes) >= sum(plain[name] for name in writes) + 3 * JOBS
    assert plain["zadd"] <= 2 * JOBS  # the lease of what is taken, and where it may be renewed: no turn, no window
    assert plain["zunionstore"] == plain["zincrby"] == 0
