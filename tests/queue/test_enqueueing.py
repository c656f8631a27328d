"""Many jobs at once, long ones, and what is accepted of them."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue.queue import Queue


async def waiting(queue: Queue, level: int = 3) -> list[str]:
    return [key.decode() for key in await queue.redis.zrange(queue.namespace(f"queued:{level}"), 0, -1)]


@pytest.mark.parametrize("number", [0, 1, 499, 500, 501, 2600])
async def test_each_is_enqueued_in_its_place(queue: Queue, number: int) -> None:
    keys = await queue.enqueue_each("f", ({"n": n} for n in range(number)))
    assert len(set(keys)) == number
    assert await waiting(queue) == keys
    jobs = await queue.jobs(key for key in keys if key)
    assert [job.kwargs for job in jobs if job] == [{"n": n} for n in range(number)]


async def test_each_is_what_a_job_of_its_own_would_be(queue: Queue) -> None:
    properties: dict[str, Any] = {"priority": 2, "timeout": 77, "retries": 3, "meta": {"a": "ü", "keep_key_s": 60}}
    await queue.enqueue_each("f", [{"users": [1, 2]}], keys=["each"], **properties)
    await queue.enqueue_many([Job("f", key="many", kwargs={"users": [1, 2]}, **properties)])
    each, many = [await queue.redis.hgetall(queue.key_of(key)) for key in ("each", "many")]  # type: ignore[misc]
    bodies = [json.loads(one.pop(b"body")) for one in (each, many)]
    assert [body.pop("key") for body in bodies] == ["each", "many"]
    assert abs(bodies[0].pop("queued") - bodies[1].pop("queued")) < 10_000
    assert bodies[0] == bodies[1]
    for name in (b"seq", b"enq", b"at_q"):
        del each[name], many[name]
    assert each == many


async def test_a_key_that_is_taken_is_told_apart(queue: Queue) -> None:
    await queue.enqueue("f", key="b")
    assert await queue.enqueue_each("f", [{}, {}, {}], keys=["a", "b", "c"]) == ["a", None, "c"]
    with pytest.raises(ValueError, match="shorter"):
        await queue.enqueue_each("f", [{}, {}], keys=["d"])


async def test_another_way_of_writing_and_those_who_look_first_see_every_job(make_queue: Callable[..., Queue]) -> None:
    import pickle

    pickled = make_queue("pickled", dump=pickle.dumps, load=pickle.loads)
    await pickled.enqueue_each("f", [{"a": {1, 2}}], keys=["k"])
    job = await pickled.job("k")
    assert job is not None
    assert job.kwargs == {"a": {1, 2}}
    queue, seen = make_queue(), []

    async def look(job: Job) -> None:
        seen.append((job.key, job.kwargs))

    queue.register_before_enqueue(look)
    await queue.enqueue_each("f", [{"n": 1}, {"n": 2}], keys=["a", "b"])
    assert seen == [("a", {"n": 1}), ("b", {"n": 2})]


async def test_a_body_that_is_too_long_is_refused_by_name(
    make_queue: Callable[..., Queue], counts: Callable[[Queue], Awaitable[dict[str, int]]]
) -> None:
    queue = make_queue(max_body_bytes=1000)
    long = {"text": "x" * 1000}
    refused = r"job k \(f\): its body of 1,\d\d\d bytes is longer than max_body_bytes of queue q, 1,000"
    with pytest.raises(UsageError, match=refused):
        await queue.enqueue("f", key="k", **long)
    with pytest.raises(UsageError, match=refused):
        await queue.enqueue_many([Job("f"), Job("f", key="k", kwargs=long)])
    with pytest.raises(UsageError, match=refused):
        await queue.enqueue_each("f", [{}, long], keys=["j", "k"])
    assert await waiting(queue) == []
    assert await make_queue("any", max_body_bytes=0).enqueue("f", text="x" * 1_000_000) is not None


async def test_calls_that_come_at_once_share_a_round_trip(queue: Queue) -> None:
    import asyncio

    await queue.enqueue("warm")
    before = (await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    jobs = await asyncio.gather(*(queue.enqueue("f", n=n) for n in range(100)))
    after = (await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"]
    assert len({job.key for job in jobs if job}) == 100
    assert after - before == 2  # the first goes at once, the others with the second call


async def test_one_that_is_refused_harms_none_that_come_with_it(queue: Queue) -> None:
    import asyncio

    said = await asyncio.gather(
        *(queue.enqueue("f", key=str(n), priority=9 if n == 3 else 0) for n in range(6)), return_exceptions=True
    )
    assert [type(one) for one in said] == [UsageError if n == 3 else type(said[0]) for n in range(6)]
    assert await waiting(queue) == ["0", "1", "2", "4", "5"]


async def test_a_time_that_is_said_again_after_an_outage_is_the_same_time(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A delay is reckoned from the clock of the try that arrives, not of the first."""
    import time

    monkeypatch.setattr("saqkit.queue.line.PATIENCE_S", 0.5)
    await queue.enqueue("warm")
    await queue.redis.execute_command("CLIENT", "PAUSE", 1500, "WRITE")
    due = time.time() + 100
    await queue.enqueue("f", key="k", scheduled=due)
    score = await queue.redis.zscore(queue.namespace("incomplete"), queue.job_id("k"))
    assert score is not None
    assert -0.1 < score - due < 1.0
