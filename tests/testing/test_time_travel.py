"""What is due later is due now, and nothing else has changed."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from saq.job import Job, Status

from saqkit import Queue
from saqkit.errors import UsageError
from saqkit.queue.audit import Audit, audit
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.scripts_of_queue import FOLDER
from saqkit.spec.topology import RateLimit
from saqkit.testing import advance
from saqkit.testing.time_travel import SCRIPT

Factory = Callable[..., Queue]


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    return job


async def test_a_delayed_job_is_due_and_who_waits_is_woken(saqkit_queue: Queue) -> None:
    await saqkit_queue.enqueue("f", key="k", scheduled=int(time.time()) + 3600)
    waiting = asyncio.create_task(saqkit_queue.dequeue(timeout=10))
    await advance(saqkit_queue, 3000)
    assert await saqkit_queue.count("scheduled") == 1
    await advance(saqkit_queue, 601)
    job = await waiting
    assert job is not None
    assert job.key == "k"


async def test_a_lease_whose_holder_says_nothing_expires(saqkit_queue_factory: Factory) -> None:
    queue = saqkit_queue_factory(lease_s=600, sweep_s=600)
    await queue.enqueue("f", key="k", timeout=0)
    await taken(queue)  # its lease is renewed every 200 s, and nobody sweeps for 600
    await advance(queue, 599)
    assert await queue.sweep() == []
    await advance(queue, 2)
    assert await queue.sweep() == [queue.job_id("k")]
    assert await queue.count("queued") == 1


async def test_the_window_of_a_rate_limit_passes(saqkit_queue_factory: Factory) -> None:
    queue = saqkit_queue_factory(rate_limit=RateLimit(limit=1, period_s=3600))
    await queue.enqueue_many(Job("f", key=key) for key in "ab")
    assert (await taken(queue)).key == "a"
    waiting = asyncio.create_task(queue.dequeue(timeout=10))
    await advance(queue, 1800)
    assert await queue.count("queued") == 1
    await advance(queue, 1801)
    assert (await waiting) is not None


async def test_a_key_is_free_again_and_an_ended_job_forgotten(saqkit_queue: Queue) -> None:
    for key, keep_s in (("kept", 3600), ("ended", 0)):
        await saqkit_queue.enqueue("f", key=key, ttl=600, meta={"keep_key_s": keep_s})
        await saqkit_queue.finish(await taken(saqkit_queue), Status.COMPLETE)
    await advance(saqkit_queue, 500)
    assert await saqkit_queue.job("ended") is not None
    await advance(saqkit_queue, 200)
    assert await saqkit_queue.job("ended") is None
    assert await saqkit_queue.enqueue("f", key="kept") is None
    await advance(saqkit_queue, 3000)
    assert await saqkit_queue.enqueue("f", key="kept") is not None


async def test_dead_letters_age_and_are_forgotten(saqkit_queue_factory: Factory) -> None:
    queue = saqkit_queue_factory(dead_retention_s=1000)
    await queue.enqueue("f", key="k")
    job = await taken(queue)
    await queue.finish(job, Status.FAILED, error="ValueError: no")
    await advance(queue, 900)
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert 899 < time.time() - letter.died_at < 960
    assert await queue.run_script("forget", queue.dead_retention_s) == 0
    await advance(queue, 101)
    assert await queue.run_script("forget", queue.dead_retention_s) == 1


async def times(queue: Queue) -> dict[str, Any]:
    """Every key of the queue with what is in it."""
    found: dict[str, Any] = {}
    async for key in queue.redis.scan_iter(match="*"):
        match await queue.redis.type(key):
            case b"zset":
                found[key.decode()] = dict(await queue.redis.zrange(key, 0, -1, withscores=True))
            case b"hash":
                found[key.decode()] = await queue.redis.hgetall(key)  # type: ignore[misc]
    return {key: value for key, value in found.items() if queue.name in key}


@given(seconds=st.floats(1e-3, 1e8))
@settings(max_examples=10, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
async def test_scores_and_times_move_by_as_much_and_nothing_else_changes(
    saqkit_queue_factory: Factory, seconds: float
) -> None:
    patient: dict[str, Any] = {"lease_s": 1e6, "sweep_s": 1e6}  # nothing else moves a time meanwhile
    queue = saqkit_queue_factory(name="odd[*]?", rate_limit=RateLimit(limit=10, period_s=60), **patient)
    await queue.enqueue_many(Job("f", key=str(n), retries=2, retry_delay=30, ttl=0) for n in range(3))
    await queue.enqueue("f", key="later", scheduled=int(time.time()) + 60, priority=1)
    first, second, _ = [await taken(queue) for _ in range(3)]
    await queue.retry(first, "ValueError: no")
    await queue.finish(second, Status.FAILED, error="ValueError: no")
    before = await times(queue)
    await advance(queue, seconds)
    after = await times(queue)
    assert before.keys() == after.keys()
    assert (await audit(queue)).problems == ()
    for key, old in before.items():
        if key.startswith("saq:job:"):
            moved = {name for name in old if old[name] != after[key][name]}
            assert moved == {b"at_q", b"at_r", b"at_t"} & old.keys()
        else:
            moved = {b"score"} if re.search(r":(incomplete|leases|dead|window)$", key) else set()
        for name in old:
            here = name in moved or b"score" in moved
            unit, exact = (1000, 1) if key.endswith(":leases") else (1, 2e-6)  # leases are kept in whole ms
            expected = float(old[name]) - unit * seconds if here else old[name]
            new = float(after[key][name]) if here else after[key][name]
            assert new == (pytest.approx(expected, abs=exact) if here else expected), (key, name)
    await queue.disconnect()


async def test_another_queue_on_the_server_does_not_notice(saqkit_queue_factory: Factory) -> None:
    here, there = saqkit_queue_factory(), saqkit_queue_factory()
    for queue in (here, there):
        await queue.enqueue("f", scheduled=int(time.time()) + 100)
    await advance(here, 200)
    assert len(await here.schedule()) == 1
    assert await there.schedule() == []
    assert await audit(there) == Audit(0, 1, 0, 0, ())


@pytest.mark.parametrize("seconds", [0, -1, float("inf"), float("nan")])
async def test_time_goes_forward_only(saqkit_queue: Queue, seconds: float) -> None:
    with pytest.raises(UsageError, match="above 0"):
        await advance(saqkit_queue, seconds)


def test_every_key_of_a_queue_is_accounted_for() -> None:
    """Whoever adds a key to the schema says in advance.lua whether time moves it."""
    schema = re.findall(r"^-- \| Q (\S+)", (FOLDER / "keys.lua").read_text(encoding="utf-8"), re.MULTILINE)
    assert len(schema) > 10
    told = " ".join(line for line in SCRIPT.read_text(encoding="utf-8").splitlines() if line.startswith("-- |"))
    assert [name for name in schema if f"Q {name}" not in told] == []


async def test_a_batch_that_is_over_is_forgotten_in_its_time(saqkit_queue: Queue) -> None:
    queue = saqkit_queue
    await queue.submit_batch([Job("resize", key="one", ttl=0)], id="over", keep_s=60)
    await queue.open_batch("open")
    await queue.finish(await taken(queue), Status.COMPLETE)
    await advance(queue, 58)
    assert await queue.get_batch("over") is not None
    await advance(queue, 3)
    assert await queue.get_batch("over") is None
    assert await queue.get_batch("open") is not None
    assert (await audit(queue)).problems == ()
