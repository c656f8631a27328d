"""What decides which job is next can be changed while workers run, and the level of a job while it waits."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import DescriptionError, SaqkitError, UsageError
from saqkit.queue.audit import audit
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.spec.lifecycle import State
from saqkit.spec.topology import RateLimit, RunningLimit, Topology

MakeQueue = Callable[..., Queue]
WEIGHTS = {"critical": 8.0, "high": 4.0, "normal": 2.0, "low": 1.0}


async def taken(queue: Queue, free: int, request: int) -> list[str]:
    words = (free, "w", queue.lease_s, 0, 1, "jobs", "me", request, "", queue.tick_s, queue.rules)
    _, _, _, *rows = await queue.run_script("take", *words)
    return [row[0].decode() for row in rows]


async def test_a_rate_limit_is_changed_under_a_waiting_worker(make_queue: MakeQueue) -> None:
    queue, operator = make_queue(rate_limit=RateLimit(limit=1, period_s=600)), make_queue()
    await queue.enqueue_many(Job("f", key=str(n)) for n in range(5))
    assert (await queue.dequeue(timeout=5)) is not None
    waiting = asyncio.create_task(queue.dequeue(timeout=30))
    await asyncio.sleep(0.1)
    assert not waiting.done()
    await operator.configure(rate_limit={"limit": 3, "period_s": 600})
    async with asyncio.timeout(5):
        assert (await waiting).key == "1"  # type: ignore[union-attr]
    await operator.configure(rate_limit=None)
    assert await taken(queue, 9, 0) == ["2", "3", "4"]


async def test_every_setting_acts_at_once_is_told_outlives_processes_and_is_taken_back(make_queue: MakeQueue) -> None:
    rate, limits = RateLimit(limit=7, unit="users"), (RunningLimit(key="tenant", limit=2),)
    queue = make_queue(weights=WEIGHTS)
    started = await queue.settings()
    assert (started.weights, started.configured, started.version) == (WEIGHTS, (), 0)
    await queue.enqueue_many(Job("f", key=f"{t}{n}", meta={"tenant": t}) for t in "ab" for n in range(6))
    await queue.configure(fairness="tenants", tenant_rate_limit=rate)
    told = await queue.configure({"running_limits": limits, "weights": {**WEIGHTS, "low": 0.1}})
    assert told == await make_queue().settings()
    assert told.configured == ("weights", "fairness", "tenant_rate_limit", "running_limits")
    assert (told.version, told.fairness, told.tenant_rate_limit, told.running_limits) == (2, "tenants", rate, limits)
    assert told.weights == {**WEIGHTS, "low": 0.1}
    assert told.rate_limit is None

    other = make_queue()  # a process that was started with nothing
    assert await taken(other, 9, 0) == ["a0", "b0", "a1", "b1"]
    assert (await audit(queue)).problems == ()
    await other.configure(running_limits=[{"key": "tenant", "limit": 3}])
    assert await taken(queue, 9, 1) == ["a2", "b2"]
    await other.configure(running_limits=None)
    assert (await other.settings()).running_limits == ()
    assert await taken(queue, 3, 2) == ["a3", "b3", "a4"]
    assert (await audit(queue)).problems == ()

    assert (await queue.configure(None)) == started
    assert await taken(queue, 9, 3) == ["a5", "b4", "b5"]
    assert (await audit(queue)).problems == ()
    left = {key.decode() async for key in queue.redis.scan_iter(match=queue.namespace("*"))}
    groups = {"arranged", "turns:3", "waits", "running", "closed", "freed", "settings"}
    assert left & {queue.namespace(name) for name in groups} == set()


async def test_turns_that_begin_while_thousands_wait_copy_no_line_and_lose_nobody(make_queue: MakeQueue) -> None:
    queue, number = make_queue(), 5_000
    jobs = [Job("f", key=str(n), priority=3 + n % 2, meta={"tenant": f"t{n % 7}"}) for n in range(number)]
    assert all(await queue.enqueue_many(jobs))
    given_back = await queue.dequeue(timeout=5)
    assert given_back is not None
    await queue.configure(fairness="tenants")

    async def stands() -> int:
        """How many places in sorted sets the queue's jobs have, all together."""
        names = [name async for name in queue.redis.scan_iter(match=queue.namespace("*"), _type="zset")]
        return sum([await queue.redis.zcard(name) for name in names])

    ran = await taken(queue, 1, 0)
    assert number < await stands() <= number + 1_000 + 50, "a take does more than its thousand"
    assert (await audit(queue)).problems == ()
    await queue.release(given_back)  # to its old place, among those that have their groups by now
    await queue.set_priority("4001", "low")  # these are still to join theirs
    await queue.abort(Job("f", key="4999", queue=queue), "not wanted")
    await queue.enqueue("f", key="new", priority=3, meta={"tenant": "new"})
    for request in range(1, 6):
        assert (await audit(queue)).problems == ()
        ran += await taken(queue, 1, request)
    assert await queue.redis.exists(*(queue.namespace(f"behind:{level}") for level in range(1, 5))) == 0
    for request in range(6, 20):
        ran += await taken(queue, 1_000, request)
    assert len(ran) == len(set(ran))
    assert set(ran) == {*map(str, range(number - 1)), "new"}
    assert (await audit(queue)).problems == ()


async def test_limits_that_begin_while_jobs_run_count_them(make_queue: MakeQueue) -> None:
    queue = make_queue()
    await queue.enqueue_many(Job("f", key=str(n), meta={"tenant": "a"}, retries=3) for n in range(4))
    held: list[Any] = [await queue.dequeue(timeout=5) for _ in range(3)]
    await queue.configure(running_limits=[{"key": "tenant", "limit": 2}])
    assert await taken(queue, 5, 0) == []
    assert (await audit(queue)).problems == ()
    await queue.finish(held[0], Status.COMPLETE)
    assert await taken(queue, 5, 1) == []
    await queue.retry(held[1], "ValueError: no")
    assert await taken(queue, 5, 2) == ["3"]
    await queue.configure(None)
    assert await taken(queue, 5, 3) == ["1"]
    await queue.finish(held[2], Status.COMPLETE)
    assert (await audit(queue)).problems == ()


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"rate_limit": {"limit": 0}}, r"queue q: rate_limit\.limit: .*greater than 0"),
        ({"rate_limit": {"limit": 1, "period_s": -2}}, r"queue q: rate_limit\.period_s: .*greater than 0"),
        ({"weights": {**WEIGHTS, "high": 0}}, r"queue q: weights\.high: .*greater than 0"),
        ({"weights": {"low": 1}}, r"queue q: weights: the weight of critical and high and normal is missing"),
        ({"fairness": "all"}, r'queue q: fairness: there is no fairness "all"'),
        ({"running_limits": [{"key": "Tenants", "limit": 1}]}, r'there is no key "Tenants"'),
        ({"running_limits": [{"key": "provider", "limit": 1}]}, r"no job type is known to send by a provider"),
        ({"wieghts": WEIGHTS}, r'there is no setting "wieghts" \(did you mean "weights"\?\)'),
    ],
)
async def test_wrong_changes_are_refused_and_change_nothing(
    make_queue: MakeQueue, changes: dict[str, Any], message: str
) -> None:
    queue = make_queue()
    with pytest.raises(SaqkitError, match=message) as caught:
        await queue.configure({"fairness": "tenants", **changes})
    assert isinstance(caught.value, DescriptionError | UsageError)
    assert "\n" not in str(caught.value)
    assert (await queue.settings()).version == 0


async def test_a_waiting_job_gets_another_level_at_the_end_of_its_line(make_queue: MakeQueue) -> None:
    queue = make_queue()
    await queue.enqueue_many([Job("f", key=key, priority=1) for key in "ab"] + [Job("f", key=key) for key in "cd"])
    job = await queue.job("c")
    assert job is not None
    await queue.set_priority(job, "critical")
    await queue.set_priority("a", 1)  # it has that level: it keeps its place
    assert job.priority == 1
    stored = await queue.job("c")
    assert stored is not None
    assert stored.priority == 1
    await queue.enqueue("f", key="late", scheduled=int(time.time()) + 3600)
    await queue.set_priority("late", 2)
    assert await queue.redis.hget(queue.key_of("late"), "prio") == b"2"  # type: ignore[misc]
    held = [await queue.dequeue(timeout=5) for _ in range(4)]
    assert [(job.key, job.priority) for job in held if job] == [("a", 1), ("b", 1), ("c", 1), ("d", 0)]
    assert (await audit(queue)).problems == ()


async def test_a_priority_is_changed_of_nothing_else(make_queue: MakeQueue) -> None:
    queue = make_queue()
    await queue.enqueue("f", key="k")
    for level in (0, 5, "urgent", True):
        with pytest.raises(UsageError, match="1 critical, 2 high, 3 normal, 4 low"):
            await queue.set_priority("k", level)
    with pytest.raises(UsageError, match="queue q has no job nobody"):
        await queue.set_priority("nobody", 1)
    job = await queue.dequeue(timeout=5)
    assert job is not None
    with pytest.raises(UsageError, match="job k runs already: only the priority of a job that waits"):
        await queue.set_priority(job, 1)
    await queue.finish(job, Status.FAILED, error="no")
    with pytest.raises(UsageError, match="job k is dead: "):
        await queue.set_priority("k", 1)
    assert int(await queue.redis.hget(queue.key_of("k"), "state")) == State.DEAD  # type: ignore[misc,arg-type]


TOPOLOGY: dict[str, Any] = {
    "name": "t", "entry": [{"job_type": "f", "tenant": "a"}],
    "providers": {"mail": {}},
    "job_types": {"f": {"queue": "q", "per_user": {"provider": "mail"}}},
    "queues": {"q": {"weights": WEIGHTS, "fairness": "tenants", "tenant_rate_limit": {"limit": 5},
                     "running_limits": [{"key": "provider", "limit": 3}]}},
}  # fmt: skip


async def test_the_queues_of_a_topology_take_as_it_says(redis_url: str) -> None:
    queue = build_queues(Topology.parse(TOPOLOGY), redis_url)["q"]
    try:
        told = await queue.settings()
        assert (told.weights, told.fairness, told.tenant_rate_limit) == (WEIGHTS, "tenants", RateLimit(limit=5))
        await queue.enqueue_many(Job("f", key=str(n)) for n in range(4))
        assert await taken(queue, 9, 0) == ["0", "1", "2"]
    finally:
        await queue.disconnect()


async def test_a_queue_without_all_this_stores_and_asks_nothing_more(make_queue: MakeQueue) -> None:
    queue = make_queue()
    await queue.enqueue_many(Job("f", key=str(n), retries=2) for n in range(10))
    await taken(queue, 1, 0)
    await queue.redis.config_resetstat()
    assert len(await taken(queue, 5, 1)) == 5
    stats = await queue.redis.info("commandstats")
    ours = ("evalsha", "info", "config|resetstat")
    asked = sum(stat["calls"] for name, stat in stats.items() if name.removeprefix("cmdstat_") not in ours)
    assert asked == COMMANDS_OF_A_TAKE_OF_FIVE, stats
    keys = {key.decode() async for key in queue.redis.scan_iter(match=queue.namespace("*"))}
    known = ("queued:3", "leases", "seq", "wake", "taken:me", "alive")
    assert keys == {queue.namespace(name) for name in known}


COMMANDS_OF_A_TAKE_OF_FIVE = 33
"""As many as before there were any of these."""
