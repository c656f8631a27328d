"""Fields of a job that are not of their kind: refused where it is enqueued, harmless where another has stored it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.queue import Queue
from saqkit.testing import drain

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]

ODD: list[tuple[str, Any, str]] = [
    ("heartbeat", "30", r"its heartbeat is '30' \(give seconds, 0: none\)"),
    ("timeout", "300", r"its timeout is '300' \(give seconds, 0: none\)"),
    ("timeout", float("nan"), r"its timeout is nan \(give seconds, 0: none\)"),
    ("timeout", float("inf"), r"its timeout is inf \(give seconds, 0: none\)"),
    ("retries", "3", r"its retries is '3' \(give a whole number: executions in all\)"),
    ("retries", None, r"its retries is None \(give a whole number"),
    ("ttl", "600", r"its ttl is '600' \(give seconds, 0: for ever, -1: not at all\)"),
    ("ttl", 10**400, r"its ttl is 1000.*\.\.\. \(give seconds"),
    ("retry_delay", "2", r"its retry_delay is '2' \(give seconds\)"),
    ("retry_backoff", "60", r"its retry_backoff is '60' \(give true, false, or the longest delay in seconds\)"),
    ("scheduled", "tomorrow", r"its scheduled is 'tomorrow' \(give Unix seconds\)"),
    ("scheduled", True, r"its scheduled is True \(give Unix seconds\)"),
    ("kwargs", [1], r"its kwargs is a list \(give a table of arguments by name\)"),
    ("touched", "now", r"its touched is 'now' \(give Unix milliseconds\)"),
]


@pytest.mark.parametrize(("name", "value", "said"), ODD, ids=[f"{name}={value!r}"[:30] for name, value, _ in ODD])
async def test_a_field_that_is_not_of_its_kind_is_refused_by_name(
    make_queue: MakeQueue, name: str, value: Any, said: str
) -> None:
    queue = make_queue()
    with pytest.raises(UsageError, match=rf"^job k \(f\): {said}"):
        await queue.enqueue("f", key="k", **{name: value})
    with pytest.raises(UsageError, match=rf"^job k \(f\): {said}"):
        await queue.enqueue_many([Job("f"), Job("f", key="k", **{name: value})])
    if name != "kwargs":
        with pytest.raises(UsageError, match=said):
            await queue.enqueue_each("f", [{}], **{name: value})
    assert await queue.count("incomplete") == 0


async def test_a_function_or_a_key_that_is_no_text_is_refused(make_queue: MakeQueue) -> None:
    queue = make_queue()
    with pytest.raises(UsageError, match=r"its function is a list \(give the function's name\)"):
        await queue.enqueue(Job(function=["x"]))  # type: ignore[arg-type]
    with pytest.raises(UsageError, match=r"job 7 \(f\): its key is a int \(give a text\)"):
        await queue.enqueue("f", key=7)
    with pytest.raises(UsageError, match=r"job 7 \(f\): its key is a int \(give a text\)"):
        await queue.enqueue_each("f", [{}], keys=[7])  # type: ignore[list-item]
    assert await queue.count("incomplete") == 0


@pytest.mark.parametrize(("key", "said"), [(">x>y", "begin with >"), ("a\ud800", "half a character")])
async def test_a_key_that_cannot_be_is_refused_by_name_however_it_is_enqueued(
    make_queue: MakeQueue, key: str, said: str
) -> None:
    queue = make_queue()
    with pytest.raises(UsageError, match=said):
        await queue.enqueue("f", key=key)
    with pytest.raises(UsageError, match=said):
        await queue.enqueue_each("f", [{}], keys=[key])
    assert await queue.count("incomplete") == 0


async def test_what_saq_takes_is_taken(make_queue: MakeQueue) -> None:
    async def fine(ctx: dict[str, Any]) -> None: ...

    queue = make_queue()
    for given in ({"timeout": None}, {"heartbeat": None}, {"timeout": 0.5}, {"retries": 3.0}, {"ttl": 60.5},
                  {"retry_backoff": None}, {"retry_delay": None}, {"timeout": False}, {"heartbeat": False},
                  {"retry_backoff": 5}, {"scheduled": None}):  # fmt: skip
        await queue.enqueue("fine", **given)  # type: ignore[arg-type]
    drained = await drain(queue, {"fine": fine})
    assert [attempt.outcome for attempt in drained.attempts] == ["done"] * 11


async def test_a_change_to_what_cannot_be_is_refused_and_not_made(make_queue: MakeQueue) -> None:
    queue = make_queue()
    job = await queue.enqueue("f", key="k")
    assert job is not None
    with pytest.raises(UsageError, match=r"^job k \(f\): its heartbeat is '30'"):
        await job.update(heartbeat="30")
    assert job.heartbeat == 0


async def store(queue: Queue, key: str, **fields: Any) -> None:
    """What a producer with another client, or another version, may have stored."""
    await queue.enqueue("f", key=key)
    body = json.dumps({"function": "f", "key": key, **fields})
    await queue.redis.hset(queue.key_of(key), "body", body)  # type: ignore[misc]


async def test_what_others_have_stored_counts_as_the_number_that_it_names(make_queue: MakeQueue) -> None:
    queue = make_queue()
    odd = {"heartbeat": "30", "timeout": "2.5", "retries": "3", "ttl": "soon", "retry_delay": "now"}
    await store(queue, "k", **odd, retry_backoff="x")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert (job.heartbeat, job.timeout, job.retries, job.ttl, job.retry_delay) == (30, 2.5, 3, 600, 0.0)
    assert job.retry_backoff is False


async def test_a_job_with_odd_fields_fails_like_any_other(make_queue: MakeQueue) -> None:
    runs = []

    async def f(ctx: dict[str, Any]) -> None:
        runs.append(ctx["job"].attempts)
        raise ValueError("no")

    queue = make_queue()
    await store(queue, "k", retries="3", timeout="0", heartbeat="30", retry_delay="0.1")
    drained = await drain(queue, {"f": f})
    assert [attempt.outcome for attempt in drained.attempts] == ["retry", "retry", "dead"]
    assert runs == [1, 2, 3]


@pytest.mark.parametrize("odd", [{"function": ["x"]}, {"kwargs": [1]}])
async def test_what_can_be_no_job_is_a_dead_letter_and_harms_none_that_come_with_it(
    make_queue: MakeQueue, odd: dict[str, Any]
) -> None:
    async def f(ctx: dict[str, Any]) -> None: ...

    queue = make_queue()
    await store(queue, "odd", **odd)
    await queue.enqueue("f", key="fine")
    await drain(queue, {"f": f})
    letters = [letter async for letter in dead_letters(queue)]
    assert [(letter.key, letter.error.split(":")[0]) for letter in letters] == [("odd", "unreadable")]
    assert (letters[0].function, letters[0].kwargs) == ("f" if "kwargs" in odd else "", {})
    assert (await queue.job("fine")).status == Status.COMPLETE  # type: ignore[union-attr]


async def test_leases_are_renewed_whatever_a_function_makes_of_its_job(
    make_queue: MakeQueue, until: Until, sound: Sound
) -> None:
    """The renewal is one thread for all jobs of a process: if it dies, every longer job of it runs twice."""
    queue, other = make_queue(lease_s=0.6), make_queue(lease_s=0.6)
    await queue.enqueue_many(Job("f", key=key, timeout=0) for key in ("healthy", "odd"))
    jobs = [await queue.dequeue(timeout=5) for _ in range(2)]
    assert jobs[1] is not None
    jobs[1].heartbeat = "30"  # type: ignore[assignment]
    renewed = set()

    async def renewed_often() -> bool:
        renewed.add(await queue.redis.zscore(queue.namespace("leases"), "healthy"))
        return len(renewed) > 5

    await until(renewed_often, 10)
    assert await other.sweep() == []
    assert [job and job.key for job in await queue.jobs(["healthy", "odd"])] == ["healthy", "odd"]
    await sound(queue)


async def test_a_job_whose_end_cannot_be_told_is_recovered_and_its_slot_goes_on(
    make_queue: MakeQueue, until: Until
) -> None:
    from saqkit.worker.worker import Worker

    runs: list[str] = []

    async def breaks_its_job(ctx: dict[str, Any]) -> None:
        runs.append("odd")
        if len(runs) == 1:
            ctx["job"].retries = object()
            raise ValueError("no")

    async def fine(ctx: dict[str, Any]) -> None:
        runs.append("fine")

    queue = make_queue(lease_s=0.6, sweep_s=0.2)
    await queue.enqueue("breaks_its_job", timeout=0)
    await queue.enqueue("fine")
    worker = Worker({"q": queue}, {"breaks_its_job": breaks_its_job, "fine": fine}, {"q": 1}, name="w", grace_s=1)
    task = asyncio.create_task(worker.run())

    async def all_ended() -> bool:
        return len(runs) == 3 and await queue.count("incomplete") == 0

    try:
        await until(all_ended, 20)
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)
    assert runs == ["odd", "fine", "odd"]
