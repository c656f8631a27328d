"""A dead letter replayed into another queue: in one place at any time, delivered once, whoever dies on the way."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Awaitable, Callable

import pytest
from saq.job import Job, Status

from saqkit.queue.audit import Audit, audit
from saqkit.queue.dead_letters import Chosen, dead_letters, get, relay, replay, replay_all
from saqkit.queue.queue import Queue

MakeQueue = Callable[..., Queue]
Counts = Callable[[Queue], Awaitable[dict[str, int]]]
PROGRAM = """
import asyncio, sys
from saqkit.queue.dead_letters import replay
from saqkit.queue.queue import Queue

async def main():
    await replay(Queue.from_url(sys.argv[1], name="here"), sys.argv[2:], to="there")

asyncio.run(main())
"""


async def die(queue: Queue, *keys: str, **properties: int) -> None:
    await queue.enqueue_many(Job("f", key=key, kwargs={"users": [1, 2]}, **properties) for key in keys)  # type: ignore[arg-type]
    for _ in keys:
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, Status.FAILED, error="ValueError: no")


async def sizes(*queues: Queue) -> list[tuple[int, int, int]]:
    """(queued, dead, outgoing) of each; nothing else is there, and every job is in one place."""
    found = [await audit(queue) for queue in queues]
    assert all(one == Audit(one.queued, 0, 0, one.dead, (), one.outgoing) for one in found)
    return [(one.queued, one.dead, one.outgoing) for one in found]


@pytest.fixture
def here(make_queue: MakeQueue) -> Queue:
    return make_queue("here", sweep_s=0.2)


@pytest.fixture
def there(make_queue: MakeQueue) -> Queue:
    return make_queue("there")


async def test_it_is_a_job_of_the_other_queue_with_its_priority_and_other_arguments(
    here: Queue, there: Queue, counts: Counts
) -> None:
    await die(here, "k", priority=2, timeout=77)
    assert await replay(here, ["k", "unknown"], kwargs={"extra": "é"}, to=there) == [True, False]
    assert await sizes(here, there) == [(0, 0, 0), (1, 0, 0)]
    assert await here.job("k") is None
    assert await counts(here) == {"failed": 1, "dead_moved": 1}
    assert int(await there.redis.hget(there.key_of("k"), "users")) == 2  # type: ignore[misc,arg-type]
    job = await there.dequeue(timeout=5)
    assert job is not None
    assert (job.queue, job.key, job.function, job.attempts, job.error) == (there, "k", "f", 0, None)
    assert (job.kwargs, job.priority, job.timeout) == ({"users": [1, 2], "extra": "é"}, 2, 77)
    await there.finish(job, Status.COMPLETE)
    assert await replay(here, ["k"], to=there) == [False]


async def test_into_its_own_queue_it_is_a_plain_replay(here: Queue, counts: Counts) -> None:
    await die(here, "k")
    assert await replay(here, ["k"], to="here") == [True]
    assert await counts(here) == {"failed": 1, "dead_replayed": 1}


async def test_several_at_once_move_each_once(here: Queue, there: Queue, make_queue: MakeQueue, counts: Counts) -> None:
    keys = [f"k{n}" for n in range(1_200)]
    await die(here, *keys)
    others = [here, make_queue("here"), make_queue("here")]
    said = await asyncio.gather(*(replay_all(queue, to="there") for queue in others))
    assert sum(one.done for one in said) == 1_200
    assert await sizes(here, there) == [(0, 0, 0), (1_200, 0, 0)]
    assert (await counts(here))["dead_moved"] == 1_200


async def test_where_a_job_of_that_key_lives_it_is_refused_and_dead_again_as_it_was(
    here: Queue, there: Queue, counts: Counts
) -> None:
    await die(here, "k", "free")
    before = [letter async for letter in dead_letters(here)]
    await there.enqueue("g", key="k")
    assert await replay_all(here, kwargs={"extra": 1}, to=there) == Chosen(2, 1)
    assert await sizes(here, there) == [(0, 1, 0), (2, 0, 0)]
    assert [letter async for letter in dead_letters(here)] == [one for one in before if one.key == "k"]
    assert (await counts(here))["dead_moved"] == 1
    fields = await here.redis.hkeys(here.key_of("k"))  # type: ignore[misc]
    assert not {b"to", b"to_body", b"to_users", b"move"} & set(fields)
    kept = await there.job("k")
    assert kept is not None
    assert kept.function == "g"


@pytest.mark.parametrize("site", ["move.after", "enqueue.before", "enqueue.after", "deliver.before", "deliver.after"])
async def test_a_process_that_dies_on_the_way_loses_and_doubles_nothing(
    here: Queue, there: Queue, until: Callable[..., Awaitable[float]], counts: Counts, redis_url: str, site: str
) -> None:
    keys = [f"k{n}" for n in range(10)]
    await die(here, *keys)
    await here.disconnect()  # its upkeep is not to help yet
    again = Queue.from_url(redis_url, name="here", sweep_s=0.2)
    environment = {**os.environ, "SAQKIT_FAULTS": f"only={site},rate=1,actions=kill"}
    died = subprocess.run([sys.executable, "-c", PROGRAM, redis_url, *keys], env=environment, check=False, timeout=60)
    assert died.returncode == -9
    arrived = 10 if site in ("enqueue.after", "deliver.before", "deliver.after") else 0
    left = 0 if site == "deliver.after" else 10
    assert await sizes(again, there) == [(0, 0, left), (arrived, 0, 0)]
    assert await again.enqueue("f", key="k0", scheduled=0) is None or not left  # on its way, its key is taken
    if not left:
        await again.disconnect()
        return
    if arrived:  # already at work there when it is delivered a second time
        jobs = [await there.dequeue(timeout=5) for _ in range(5)]
        for job in jobs:
            assert job is not None
            await there.finish(job, Status.COMPLETE)
    assert await again.dequeue(timeout=0.01) is None  # any process that takes from the old queue
    try:

        async def delivered() -> bool:
            return (await audit(again)).outgoing == 0

        await until(delivered, 15)
        assert await again.redis.exists(*(again.key_of(key) for key in keys)) == 0
        assert await counts(again) == {"failed": 10, "dead_moved": 10}
        assert await sizes(again, there) == [(0, 0, 0), (5 if arrived else 10, 0, 0)]
        assert await counts(there) == ({"complete": 5} if arrived else {})
    finally:
        await again.disconnect()


async def test_what_is_on_its_way_can_be_neither_replayed_nor_purged_nor_enqueued(here: Queue, there: Queue) -> None:
    await die(here, "k")
    body = there.serialize(Job("f", key="k", queue=there))
    assert await here.run_script("move", "there", "k", "", body, 0, "x.0") == [1]
    assert await sizes(here, there) == [(0, 0, 1), (0, 0, 0)]
    assert await replay(here, ["k"]) == [False]
    assert await here.run_script("forget", -1, "k", "") == 0
    assert await here.enqueue("f", key="k") is None
    assert await get(here, "k") is None
    assert await relay(here) == 1
    assert await sizes(here, there) == [(0, 0, 0), (1, 0, 0)]
    assert await relay(here) == 0


async def test_one_whose_hash_was_deleted_by_hand_does_not_hold_up_the_others(here: Queue, there: Queue) -> None:
    await die(here, "a", "b")
    for key in ("a", "b"):
        assert await here.run_script("move", "there", key, "", "{}", 0, f"x.{key}") == [1]
    await here.redis.delete(here.key_of("a"))
    await relay(here)
    assert await sizes(here, there) == [(0, 0, 0), (1, 0, 0)]
