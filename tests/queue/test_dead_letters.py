"""Dead letters: what they hold, and that a replay happens once."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

from saq.job import Job, Status

from saqkit.queue.audit import Audit, audit
from saqkit.queue.dead_letters import dead_letters, purge, replay
from saqkit.queue.queue import Queue

STACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: no such user'


async def die(queue: Queue, *keys: str) -> None:
    await queue.enqueue_many(Job("f", key=key, kwargs={"users": [1, 2], "note": "é"}) for key in keys)
    for _ in keys:
        job = await queue.dequeue(timeout=5)
        assert job is not None
        job.attempts += 1
        await queue.finish(job, Status.FAILED, error=STACK)


async def test_a_dead_letter_has_payload_stack_attempts_and_times(queue: Queue) -> None:
    before = time.time()
    await die(queue, "k")
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert (letter.key, letter.queue, letter.function) == ("k", "q", "f")
    assert letter.kwargs == {"users": [1, 2], "note": "é"}
    assert letter.error == STACK
    assert (letter.attempts, letter.crashes) == (1, 0)
    assert before - 1 <= letter.queued_at <= letter.died_at <= time.time() + 1
    job = await queue.job("k")
    assert job is not None
    assert job.status == Status.FAILED
    assert await queue.redis.ttl(queue.key_of("k")) == -1  # kept by its retention, not by the job's ttl


async def test_two_replays_at_once_queue_it_once_with_all_its_attempts(
    queue: Queue, make_queue: Callable[..., Queue]
) -> None:
    await die(queue, "k")
    said = await asyncio.gather(*(replay(q, ["k"]) for q in [queue, make_queue()] * 5))
    assert sum(one for (one,) in said) == 1
    assert await audit(queue) == Audit(1, 0, 0, 0, ())
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert (job.attempts, job.kwargs) == (0, {"users": [1, 2], "note": "é"})


async def test_old_ones_are_forgotten_and_chosen_ones_purged(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue(dead_retention_s=1000)
    await die(queue, "a", "b", "c")
    await queue.redis.zadd(queue.namespace("dead"), {"a": time.time() - 2000})
    assert await queue.run_script("forget", queue.dead_retention_s) == 1
    assert await purge(queue, ["b", "unknown"]) == 1
    assert [letter.key async for letter in dead_letters(queue)] == ["c"]
    assert await queue.job("a") is None


async def test_a_dead_key_can_be_enqueued_anew(queue: Queue) -> None:
    await die(queue, "k")
    assert await queue.enqueue("g", key="k") is not None
    assert await audit(queue) == Audit(1, 0, 0, 0, ())


async def test_a_body_that_nobody_can_read_is_a_dead_letter_and_harms_no_neighbour(queue: Queue) -> None:
    await queue.enqueue_many(Job("f", key=key) for key in ("a", "bad", "c"))
    await queue.redis.hset(queue.key_of("bad"), "body", '{"queue": "q", "surprise": 1}')  # type: ignore[misc]
    jobs = await asyncio.gather(*(queue.dequeue(timeout=5) for _ in range(2)))
    assert sorted(job.key for job in jobs if job) == ["a", "c"]
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert letter.key == "bad"
    assert letter.error.startswith("unreadable: TypeError")
