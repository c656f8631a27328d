"""Workers die around the ends of jobs: what follows a job is there if and only if it is done, batches call back once.

Nothing is forgotten here (`ttl=0`), and nothing is run again that is done, so the number of jobs that were made done
tells how many there have ever been: one that was enqueued twice would be counted twice.
"""

from __future__ import annotations

import asyncio
import time
from pathlib import Path

import pytest
from a_worker_of_chaos import Order
from accounting import hits, sound
from crowd import Crowd, Nursery, lives
from saq.job import Job, Status
from seeds import seeds

from saqkit.queue.dead_letters import dead_letters, replay
from saqkit.queue.queue import Queue

PARENTS = 40
DRAIN_S = 60.0
WHERE = {
    "finish.before": (0, False),
    "finish.after": (1, False),
    "enqueue.before": (1, False),
    "enqueue.after": (1, True),
    "deliver.before": (1, True),
    "deliver.after": (0, True),
}
"""Who dies there leaves the child for the other queue: on its way, and delivered?"""
SITES = "finish.*|bury.*|deliver.*|enqueue.*|recover.*|batch.*"


async def drained(queue: Queue, there: Queue, crowd: Crowd) -> None:
    until = time.monotonic() + DRAIN_S
    while await queue.count("incomplete") or await queue.redis.zcard(queue.namespace("outgoing")):
        crowd.tend()
        await sound(queue)
        await asyncio.sleep(0.1)
        assert time.monotonic() < until, f"not drained within {DRAIN_S} s"
    await sound(there)


@seeds(*range(10))
async def test_children_and_callbacks_are_enqueued_once(
    seed: int, nursery: Nursery, redis_url: str, tmp_path: Path
) -> None:
    log, name = tmp_path / "faults.log", f"batch-{seed}"
    order = Order("saqkit", redis_url, str(tmp_path / "effects"), queue=name, slots=2,
                  faults=f"seed={seed},rate=0.1,actions=exit|kill|lose,only={SITES},log={log}")  # fmt: skip
    crowd = Crowd(nursery, order, workers=3, seed=seed)
    queue = Queue.from_url(redis_url, name=name, lease_s=1.0)
    there = Queue.from_url(redis_url, name=f"{name}.there", lease_s=1.0)

    def back(event: str, at: Queue | None = None) -> Job:
        return Job("work", key=event, ttl=0, retries=3, queue=at)

    parents = [
        Job("parent", key=f"p{n}", kwargs={"users": [n], "fails": 9 * (n == 7)}, retries=2, ttl=0)
        for n in range(PARENTS)
    ]
    try:
        await queue.submit_batch(parents, id="b", on_complete=back("complete"), on_success=back("success"),
                                 on_death=back("death", there))  # fmt: skip
        crowd.tend()
        await drained(queue, there, crowd)
        crowd.armed = False
        batch = await queue.get_batch("b")
        assert batch is not None
        assert (batch.complete, batch.success, batch.pending) == (True, False, 0)
        assert await queue.job("complete") is not None
        assert await queue.job("success") is None
        crowd.kill(all_of_them=True)
        while dead := [letter.key async for letter in dead_letters(queue)]:  # "p7", and poison
            assert await replay(queue, dead, kwargs={}) == [True] * len(dead)
            for key in dead:
                await queue.redis.hset(queue.key_of(key), "crash", "0")  # type: ignore[misc]
                job = await queue.job(key)
                assert job is not None
                if job.function == "parent":
                    await queue.update(job, kwargs={"users": [0]})
            await drained(queue, there, crowd)
        batch = await queue.get_batch("b")
        assert batch is not None
        assert (batch.done, batch.success, batch.percent_done) == (PARENTS, True, 100.0)
        made = {*(f"p{n}" for n in range(PARENTS)), *(f"work:p{n}" for n in range(PARENTS)), "complete", "success"}
        assert {job.key async for job in queue.iter_jobs([Status.COMPLETE])} == made
        assert {job.key async for job in there.iter_jobs()} == {*(f"work:p{n}" for n in range(PARENTS)), "death"}
        assert await there.count("queued") == PARENTS + 1
        counts = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
        assert int(counts[b"complete"]) == len(made)
        assert sum(hits(log).values()) > 0, "nobody died"
    finally:
        crowd.kill(all_of_them=True)
        await queue.disconnect()
        await there.disconnect()


@pytest.mark.parametrize("site", WHERE)
async def test_whoever_dies_leaves_both_or_neither(site: str, nursery: Nursery, redis_url: str, tmp_path: Path) -> None:
    log, name = tmp_path / "faults.log", site
    order = Order("saqkit", redis_url, str(tmp_path / "effects"), queue=name, slots=1,
                  faults=f"rate=1,most=1,actions=kill,only={site},log={log}")  # fmt: skip
    crowd = Crowd(nursery, order, workers=1)
    queue = Queue.from_url(redis_url, name=name, lease_s=1.0)
    there = Queue.from_url(redis_url, name=f"{name}.there", lease_s=1.0)
    try:
        await queue.enqueue(Job("parent", key="p", retries=2, ttl=0))
        crowd.tend()
        until = time.monotonic() + DRAIN_S
        while not hits(log) or lives(crowd.pids[0]):
            await asyncio.sleep(0.01)
            assert time.monotonic() < until
        parent = await queue.job("p")
        assert parent is not None
        done = parent.status == Status.COMPLETE
        assert done == (site != "finish.before")
        assert (await queue.job("work:p") is not None) == done
        outgoing = await queue.redis.zcard(queue.namespace("outgoing"))
        assert (outgoing, await there.job("work:p") is not None) == WHERE[site]
        crowd.armed = False
        await drained(queue, there, crowd)
        assert await there.count("queued") == 1
        counts = await queue.redis.hgetall(queue.namespace("counts"))  # type: ignore[misc]
        assert int(counts[b"complete"]) == 2
    finally:
        crowd.kill(all_of_them=True)
        await queue.disconnect()
        await there.disconnect()
