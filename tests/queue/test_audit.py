"""The audit finds whatever kind of damage there is, above all a job that is lost."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable

import pytest
from saq.job import Job, Status

from saqkit.queue.audit import Audit, audit
from saqkit.queue.following import Courier
from saqkit.queue.queue import Queue
from saqkit.queue.upkeep import Upkeep


@pytest.fixture
async def full(make_queue: Callable[..., Queue], monkeypatch: pytest.MonkeyPatch) -> Queue:
    """One job in each state, with the state's name as its key."""
    monkeypatch.setattr(Courier, "go", lambda _: None)  # it would deliver what is outgoing
    monkeypatch.setattr(Upkeep, "start", lambda _: None)
    queue = make_queue("a[b]*?\\")  # a name that would also be a pattern
    for key in ("active", "dead", "outgoing", "done"):
        await queue.enqueue("f", key=key, ttl=0)
        job = await queue.dequeue(timeout=1)
        assert job is not None
        if key in ("dead", "outgoing"):
            await queue.finish(job, Status.FAILED, error="no")
        if key == "done":
            await queue.finish(job, Status.COMPLETE)
    assert await queue.run_script("move", "there", "outgoing", "", "{}", "0", "a delivery") == [1]
    for key in ("cancelled", "queued"):
        await queue.enqueue("f", key=key, ttl=0)
    await queue.abort(Job("f", key="cancelled", ttl=0, queue=queue), "not wanted")
    await queue.enqueue("f", key="scheduled", scheduled=int(time.time()) + 3600)
    assert await audit(queue) == Audit(queued=1, scheduled=1, active=1, dead=1, problems=(), outgoing=1)
    return queue


LINES = [
    ("queued", "queued:3"),
    ("scheduled", "incomplete"),
    ("active", "leases"),
    ("dead", "dead"),
    ("outgoing", "outgoing"),
]


def member(queue: Queue, key: str) -> str:
    return queue.job_id(key) if key == "scheduled" else key


@pytest.mark.parametrize(("key", "line"), LINES)
async def test_a_job_that_no_line_names_is_lost(full: Queue, key: str, line: str) -> None:
    assert await full.redis.zrem(full.namespace(line), member(full, key)) == 1
    (problem,) = (await audit(full)).problems
    assert problem.startswith(f"{key} is lost: it has state ")
    assert problem.endswith(f" and is not in {line}")


@pytest.mark.parametrize(("key", "line"), LINES)
async def test_a_line_that_names_a_job_which_is_gone(full: Queue, key: str, line: str) -> None:
    await full.redis.delete(full.key_of(key))
    assert (await audit(full)).problems == (f"{key} is in {line} but does not exist",)


@pytest.mark.parametrize(("key", "line"), LINES)
async def test_a_job_that_has_ended_and_is_still_in_a_line(full: Queue, key: str, line: str) -> None:
    await full.redis.zadd(full.namespace(line), {full.job_id("done") if key == "scheduled" else "done": 9})
    assert (await audit(full)).problems == (f"done is in {line} with state 4",)


@pytest.mark.parametrize(("key", "line"), [(key, line) for key, line in LINES if key != "dead"])
async def test_a_job_in_two_lines(full: Queue, key: str, line: str) -> None:
    await full.redis.zadd(full.namespace("dead"), {key: 9})
    problems = (await audit(full)).problems
    assert len(problems) == 2  # twice, and there with the wrong state
    assert any(problem.startswith(f"{key} is in ") and " and in " in problem for problem in problems)


async def test_a_job_in_the_line_of_another_level_or_at_another_place(full: Queue) -> None:
    await full.redis.zadd(full.namespace("queued:3"), {"queued": 7_000_000})
    assert (await audit(full)).problems == ("queued is not at its place in queued:3",)
    await full.redis.hset(full.key_of("queued"), "prio", "1")  # type: ignore[misc]
    (problem,) = (await audit(full)).problems
    assert problem == "queued is lost: it has state 1 and is not in queued:1"


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("state", None, "queued exists with no state"),
        ("state", "9", "queued exists with state 9"),
        ("body", None, "queued has no body"),
    ],
)
async def test_a_job_that_lacks_something(full: Queue, field: str, value: str | None, says: str) -> None:
    if value is None:
        await full.redis.hdel(full.key_of("queued"), field)  # type: ignore[misc]
    else:
        await full.redis.hset(full.key_of("queued"), field, value)  # type: ignore[misc]
    assert says in (await audit(full)).problems


@pytest.mark.parametrize("key", [key for key, _ in LINES])
async def test_a_job_that_would_vanish_before_it_ends(full: Queue, key: str) -> None:
    await full.redis.expire(full.key_of(key), 600)
    (problem,) = (await audit(full)).problems
    assert problem.startswith(f"{key} has state ")
    assert problem.endswith(" and will vanish")


async def test_what_is_no_job(full: Queue) -> None:
    await full.redis.set(full.key_of("odd"), "x")
    assert (await audit(full)).problems == ("odd is a string and no job",)


async def test_jobs_of_other_queues_are_none_of_its_business(full: Queue, make_queue: Callable[..., Queue]) -> None:
    other = make_queue("ab")  # which the name would mean as a pattern
    await other.enqueue("f", key="k")
    await other.redis.delete(other.namespace("queued:3"))
    assert (await audit(full)).problems == ()
    assert (await audit(other)).problems == ("k is lost: it has state 1 and is not in queued:3",)


async def test_one_lost_job_among_thousands_is_found_and_those_in_motion_are_not_taken_for_lost(
    make_queue: Callable[..., Queue],
) -> None:
    queue = make_queue()
    await queue.enqueue_many(Job("f", key=str(n), ttl=-1 if n % 2 else 600) for n in range(2_500))
    await queue.redis.zrem(queue.namespace("queued:3"), "2499")
    served = 0

    async def serve() -> None:
        nonlocal served
        while served < 2_499 and (job := await queue.dequeue(timeout=5)):
            served += 1
            await queue.finish(job, Status.COMPLETE)

    slots = asyncio.gather(*(serve() for _ in range(20)))
    audits = 0
    while not slots.done():
        assert (await audit(queue)).problems == ("2499 is lost: it has state 1 and is not in queued:3",)
        audits += 1
        await asyncio.sleep(0)
    await slots
    assert (served, audits > 1) == (2_499, True)
