"""A job that follows another is enqueued in the step that makes it done: once, and not if the attempt fails."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.audit import audit
from saqkit.queue.following import Courier
from saqkit.queue.queue import Queue
from saqkit.queue.replaying import relay
from saqkit.queue.unique import Unique
from saqkit.worker.worker import Worker

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    return job


async def waiting(queue: Queue) -> list[str]:
    assert (await audit(queue)).problems == ()
    return [job.key async for job in queue.iter_jobs([Status.QUEUED])]


async def test_it_is_queued_by_the_step_that_makes_its_parent_done(queue: Queue) -> None:
    await queue.enqueue("pay", key="p", order=7)
    parent = await taken(queue)
    child = await queue.follow_up(parent, "ship", order=7, priority=2, meta={"tenant": "a"})
    assert await waiting(queue) == []
    await queue.finish(parent, Status.COMPLETE, result=1)
    assert await waiting(queue) == ["ship:p"]
    got = await taken(queue)
    assert (got.key, got.function, got.kwargs, got.priority) == (child.key, "ship", {"order": 7}, 2)
    assert got.meta == {"tenant": "a", "parent": "p"}
    assert (await queue.job("p")).status == Status.COMPLETE  # type: ignore[union-attr]


@pytest.mark.parametrize("end", ["retry", "failed", "released", "aborted"])
async def test_none_follows_an_attempt_that_is_not_done(queue: Queue, end: str) -> None:
    await queue.enqueue("pay", key="p", retries=3, retry_delay=60)
    parent = await taken(queue)
    await queue.follow_up(parent, "ship")
    match end:
        case "retry":
            await queue.retry(parent, "no")
        case "failed":
            await queue.finish(parent, Status.FAILED, error="no")
        case "released":
            await queue.release(parent)
        case "aborted":
            await queue.finish(parent, Status.ABORTED, error="no")
    assert await queue.job("ship:p") is None
    if end == "released":
        again = await taken(queue)
        await queue.finish(again, Status.COMPLETE)
        assert await queue.job("ship:p") is None, "what the attempt before had asked for is not remembered"


async def test_several_follow_each_with_a_key_of_its_own(queue: Queue) -> None:
    await queue.enqueue("pay", key="p")
    parent = await taken(queue)
    keys = [(await queue.follow_up(parent, name)).key for name in ("ship", "ship", "bill")]
    keys.append((await queue.follow_up(parent, Job("note", key="mine"))).key)
    keys.append((await queue.follow_up(parent, "note", key="yours", text="x")).key)
    assert keys == ["ship:p", "ship:p:1", "bill:p", "mine", "yours"]
    await queue.finish(parent, Status.COMPLETE)
    assert [(await taken(queue)).key for _ in keys] == keys


async def test_the_end_that_is_said_again_queues_none_again(queue: Queue) -> None:
    await queue.enqueue("pay", key="p", ttl=60)
    parent = await taken(queue)
    claim = queue.claim_of(parent)
    assert claim is not None
    bodies = [json.dumps({"function": "f", "key": key}) for key in ("p", "c")]
    words = ("p", claim.token, bodies[0], "60 1", "", "", "c", bodies[1], 3, 0, 0)
    assert await queue.run_script("finish", *words) == [1]
    await queue.finish(await taken(queue), Status.COMPLETE)
    assert await queue.run_script("finish", *words) == [2]
    assert await waiting(queue) == []
    assert await queue.run_script("finish", "x", "0-0?", "{}", "60 1", "", *words[5:], *words) == [2, 2]
    queue._claims.clear()


async def test_one_whose_key_lives_is_not_queued_twice(queue: Queue) -> None:
    await queue.enqueue("ship", key="ship:p", n=1, priority=4)
    await queue.enqueue("pay", key="p")
    parent = await taken(queue)
    await queue.follow_up(parent, "ship", n=2)
    await queue.finish(parent, Status.COMPLETE)
    assert (await taken(queue)).kwargs == {"n": 1}
    assert await waiting(queue) == []


async def test_it_takes_the_place_of_a_dead_letter_and_the_key_can_be_kept(queue: Queue) -> None:
    await queue.enqueue("ship", key="ship:p", retries=1)
    await queue.finish(await taken(queue), Status.FAILED, error="no")
    for run in range(2):
        await queue.enqueue("pay", key="p", ttl=-1)
        parent = await taken(queue)
        await queue.follow_up(parent, "ship", meta={"keep_key_s": 60})
        await queue.finish(parent, Status.COMPLETE)
        if run == 0:
            assert await queue.count("dead") == 0
            await queue.finish(await taken(queue), Status.COMPLETE)
        assert await waiting(queue) == []


async def test_into_another_queue_it_is_delivered_at_once_and_once(make_queue: MakeQueue, until: Until) -> None:
    here, there = make_queue("here"), make_queue("there")
    await here.enqueue("pay", key="p")
    parent = await taken(here)
    await there.follow_up(parent, "ship", users=[1, 2, 3], priority=1)
    await here.follow_up(parent, "bill")
    await here.finish(parent, Status.COMPLETE)

    async def there_it_is() -> bool:
        return await there.count("queued") == 1 and (await audit(here)).outgoing == 0

    await until(there_it_is, 5)
    assert await waiting(here) == ["bill:p"]
    job = await taken(there)
    assert (job.key, job.function, job.kwargs, job.priority) == ("ship:p", "ship", {"users": [1, 2, 3]}, 1)
    assert await there.redis.hget(there.key_of("ship:p"), "users") == b"3"  # type: ignore[misc]
    assert await relay(here) == 0
    assert (await here.redis.hgetall(here.namespace("counts")))[b"complete"] == b"1"  # type: ignore[misc]


async def test_what_its_own_process_cannot_deliver_the_upkeep_of_another_does(
    make_queue: MakeQueue, until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    here, there = make_queue("here"), make_queue("there")
    monkeypatch.setattr(Courier, "go", lambda _: None)
    await here.enqueue("pay", key="p")
    parent = await taken(here)
    await there.follow_up(parent, "ship")
    await here.finish(parent, Status.COMPLETE)
    found = await audit(here)
    assert (found.outgoing, found.problems) == (1, ())
    await there.enqueue("ship", key="ship:p")  # somebody was faster: that is the job
    other = make_queue("here", sweep_s=0.05)
    waits = asyncio.create_task(other.dequeue(timeout=3))

    async def gone() -> bool:
        return (await audit(here)).outgoing == 0

    await until(gone, 10)
    assert await waits is None
    assert await waiting(there) == ["ship:p"]
    assert await here.count("dead") == 0


@pytest.mark.row("003.10")
async def test_a_worker_runs_chains_over_two_queues(make_queue: MakeQueue, until: Until) -> None:
    here, there = make_queue("here"), make_queue("there")
    ran: list[tuple[str, int]] = []

    async def pay(ctx: dict[str, Any], *, n: int) -> None:
        await there.follow_up(ctx["job"], "ship", n=n)
        await here.follow_up(ctx["job"], "bill", n=n)
        if n % 5 == 0 and ctx["job"].attempts == 1:
            raise ValueError("once")

    async def ship(ctx: dict[str, Any], *, n: int) -> None:
        ran.append(("ship", n))

    async def bill(ctx: dict[str, Any], *, n: int) -> None:
        ran.append(("bill", n))

    await here.enqueue_each("pay", [{"n": n} for n in range(100)], retries=2)
    functions = {"pay": pay, "ship": ship, "bill": bill}
    worker = Worker({"here": here, "there": there}, functions, {"here": 10, "there": 10})
    task = asyncio.create_task(worker.run())

    async def all_ran() -> bool:
        return len(ran) >= 200

    await until(all_ran, 20)
    worker.stop()
    await task
    assert sorted(ran) == sorted((name, n) for n in range(100) for name in ("ship", "bill"))


async def test_what_cannot_follow_is_refused_and_the_parent_ends_as_it_would(
    make_queue: MakeQueue, redis_url: str
) -> None:
    queue = make_queue()
    await queue.enqueue("pay", key="p")
    parent = await taken(queue)
    unique = Job("f", key="u")
    unique.__dict__["unique"] = Unique("x")
    wrong: list[tuple[str | Job, dict[str, Any], str]] = [
        ("f", {"scheduled": 99_999_999_999}, "has a time"),
        (unique, {}, "is unique"),
        ("f", {"key": "p"}, "of its own key"),
        ("f", {"x": object()}, "JSON cannot hold"),
        ("f", {"priority": 9}, "priority 9"),
    ]
    for what, given, says in wrong:
        with pytest.raises(UsageError, match=says):
            await queue.follow_up(parent, what, **given)
    elsewhere = make_queue("elsewhere", url=redis_url + ("&db=1" if "?" in redis_url else "?db=1"))
    with pytest.raises(UsageError, match="lies on another server"):
        await elsewhere.follow_up(parent, "f")
    await queue.finish(parent, Status.COMPLETE)
    assert await waiting(queue) == []
    for job in (parent, Job("g", key="not held")):
        with pytest.raises(UsageError, match="does not run in this process"):
            await queue.follow_up(job, "f")
