"""What waits can be looked at and asserted."""

from __future__ import annotations

import time

import pytest

from saqkit import Queue
from saqkit.testing import assert_enqueued, enqueued


async def test_jobs_are_listed_as_they_will_be_taken_and_then_as_they_become_due(saqkit_queue: Queue) -> None:
    now = int(time.time())
    await saqkit_queue.enqueue("f", key="last", scheduled=now + 200)
    await saqkit_queue.enqueue("f", key="later", scheduled=now + 100, priority=4)
    for key, level in (("c", 0), ("d", 4), ("a", 1), ("b", 1)):
        await saqkit_queue.enqueue("g", key=key, priority=level, user=7, tags=["x"])
    assert [job.key for job in await enqueued(saqkit_queue)] == ["a", "b", "c", "d", "later", "last"]
    assert [job.key for job in await enqueued(saqkit_queue, "f")] == ["later", "last"]
    assert [job.key for job in await enqueued(saqkit_queue, "g", user=7, priority=1)] == ["a", "b"]
    assert [job.key for job in await enqueued(saqkit_queue, tags=["x"], key="d")] == ["d"]
    assert await enqueued(saqkit_queue, "f", user=None) == [], "an argument that is not there is not None"
    assert await saqkit_queue.dequeue(timeout=5) is not None
    assert [job.key for job in await enqueued(saqkit_queue, "g")] == ["b", "c", "d"]


async def test_the_one_job_is_returned_and_else_it_says_what_waits(saqkit_queue: Queue) -> None:
    with pytest.raises(AssertionError, match=r"^0 jobs wait that are g, user=7, not one; there waits: nothing$"):
        await assert_enqueued(saqkit_queue, "g", user=7)
    await saqkit_queue.enqueue("g", key="k", user=7, note="é")
    assert (await assert_enqueued(saqkit_queue, "g", user=7)).key == "k"
    with pytest.raises(AssertionError, match=r"there waits: g\(user=7, note='é'\)$"):
        await assert_enqueued(saqkit_queue, "g", user=8)
    await saqkit_queue.enqueue("g", user=7)
    with pytest.raises(AssertionError, match=r"^2 jobs wait"):
        await assert_enqueued(saqkit_queue, "g", user=7)
