"""C11, C12: any single answer of the server may be lost; nothing is lost or done twice for it."""

from __future__ import annotations

import asyncio
import secrets
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from typing import Any
from urllib.parse import unquote, urlsplit

import pytest
from saq.job import Job, Status
from tap import Tap

from saqkit.queue.audit import audit
from saqkit.queue.dead_letters import replay
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY

NO_RULES: Mapping[str, Any] = {}
EVERY_RULE: Mapping[str, Any] = {
    "weights": {"critical": 8, "high": 4, "normal": 2, "low": 1},
    "fairness": "tenants",
    "tenant_rate_limit": {"limit": 1_000},
    "running_limits": [{"key": "tenant", "limit": 6}],
}
Counts = Callable[[Queue], Awaitable[dict[str, int]]]


@pytest.fixture
async def tap(redis_url: str) -> AsyncIterator[Tap]:
    async with Tap(unquote(urlsplit(redis_url).path)) as made:
        yield made


async def again(call: Callable[[], Awaitable[object]]) -> None:
    """What a person or program does whose call failed: the same call once more."""
    try:
        await call()
    except AWAY:
        await call()


class Life:
    """Every transition that a living queue makes, of eight jobs, through the tap."""

    def __init__(self, producer: Queue, consumer: Queue) -> None:
        self.producer, self.consumer = producer, consumer
        self.ran: Counter[str] = Counter()

    async def taken(self, *keys: str) -> dict[str, Job]:
        jobs = [await self.consumer.dequeue(timeout=20) for _ in keys]
        found = {job.key: job for job in jobs if job}
        assert sorted(found) == sorted(keys)
        for job in found.values():
            self.ran[job.key] += 1
            job.attempts += 1
        return found

    async def live(self) -> None:
        producer, consumer = self.producer, self.consumer
        waiting = asyncio.create_task(self.taken("a"))  # an idle process, in its blocking wait
        assert await producer.enqueue_many([Job("f", key="a")]) == [True]
        await consumer.finish((await waiting)["a"], Status.COMPLETE, result=1)

        jobs = [Job("f", key=key, retries=3, timeout=0) for key in "bcdefgh"]
        assert await producer.enqueue_many(jobs) == [True] * 7
        assert await producer.enqueue_many([Job("f", key="b")]) == [False]
        await again(lambda: producer.abort(jobs[5], "not wanted"))  # g: cancelled while it waits
        held = await self.taken("b", "c", "d", "e", "f", "h")
        held["c"].retry_delay, held["d"].retry_delay = 0, 0.05
        await asyncio.gather(
            consumer.finish(held["b"], Status.COMPLETE, result=1),
            consumer.retry(held["c"], "ValueError: no"),
            consumer.retry(held["d"], "ValueError: no"),
            consumer.finish(held["e"], Status.FAILED, error="ValueError: no"),
            consumer.release(held["f"]),
        )
        await again(lambda: producer.abort(jobs[6], "not wanted"))  # h: cancelled while it runs
        await consumer.finish_abort(held["h"])
        await again(lambda: replay(producer, ["e"]))
        for job in (await self.taken("c", "d", "e", "f")).values():
            await consumer.finish(job, Status.COMPLETE, result=2)


async def lived(url: str, tap: Tap, lose: int, counts: Counts, rules: Mapping[str, Any] = NO_RULES) -> int:
    """One life in a queue of its own, with answer number `lose` lost; returns how many answers there were."""
    name = f"life-{secrets.token_hex(4)}"
    direct = Queue.from_url(url, name=name)
    producer, consumer = (Queue.from_url(tap.url, name=name, tick_s=0.05) for _ in range(2))
    life = Life(producer, consumer)
    await direct.configure(rules)
    tap.lose(lose)
    try:
        async with asyncio.timeout(40):
            await life.live()
        answers = tap.answers
        # The grace of a cancelled job's key ends, as if its worker had not told: nothing else is left to happen.
        found = await audit(direct)
        assert (found.queued, found.scheduled, found.active, found.dead, found.problems) == (0, 0, 0, 0, ()), lose
        assert life.ran == {"a": 1, "b": 1, "c": 2, "d": 2, "e": 2, "f": 2, "h": 1}, lose
        counted = await counts(direct)
        assert counted == {"complete": 6, "retried": 2, "failed": 1, "released": 1, "aborted": 2, "dead_replayed": 1}, (
            lose
        )
        stored = await direct.jobs("abcdefgh")
        assert [job.status for job in stored if job] == [Status.COMPLETE] * 6 + [Status.ABORTED] * 2, lose
    finally:
        for queue in (producer, consumer, direct):
            await queue.disconnect()
    return answers


@pytest.mark.parametrize("stride", [4, pytest.param(1, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])])
@pytest.mark.parametrize("rules", [NO_RULES, EVERY_RULE], ids=["plain", "every-rule"])
async def test_any_single_lost_answer_is_harmless(
    redis_url: str, tap: Tap, counts: Counts, rules: Mapping[str, Any], stride: int
) -> None:
    answers = await lived(redis_url, tap, 0, counts, rules)
    lost = 0
    for number in range(1, answers + 1, stride * (3 if rules and stride > 1 else 1)):
        await lived(redis_url, tap, number, counts, rules)
        lost += tap.lost
    assert lost >= answers / stride * (0.2 if rules else 0.7)  # a quick life has fewer answers than the first
    print(f"\n{lost} answers lost, of {answers} of a life")


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=pytest.mark.chaos)])
async def test_twenty_who_enqueue_one_key_at_once_are_told_yes_once(
    make_queue: Callable[..., Queue], times: int
) -> None:
    queues = [make_queue() for _ in range(4)]
    for turn in range(times):
        said = await asyncio.gather(*(queues[n % 4].enqueue("f", key=f"key {turn}", n=n) for n in range(20)))
        (accepted,) = [job for job in said if job]
        stored = await queues[0].job(f"key {turn}")
        assert stored is not None
        assert stored.kwargs == accepted.kwargs
    assert await queues[0].count("queued") == times


async def test_whoever_is_not_answered_asks_again_and_is_told_of_the_one_job(
    redis_url: str, tap: Tap, make_queue: Callable[..., Queue]
) -> None:
    queue, direct = make_queue(url=tap.url), make_queue()
    await queue.enqueue("f", key="first")  # connected, and the server knows the script
    for number in range(10):
        tap.lose(1)
        assert await queue.enqueue("f", key=str(number)) is not None
        assert tap.lost
        assert await queue.enqueue("f", key=str(number)) is None
    assert await direct.count("queued") == 11


async def test_a_key_is_free_at_once_after_its_job_or_when_its_time_is_over(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue()

    async def run(key: str, **meta: float) -> float:
        assert await queue.enqueue("f", key=key, meta=meta) is not None
        job = await queue.dequeue(timeout=5)
        assert job is not None
        assert await queue.enqueue("f", key=key) is None  # while it lives
        await queue.finish(job, Status.COMPLETE)
        seconds, microseconds = await queue.redis.time()
        return seconds + microseconds / 1e6

    await run("free")
    assert await queue.enqueue("f", key="free") is not None

    assert await queue.dequeue(timeout=5) is not None
    done = await run("kept", keep_key_s=0.5)
    while await queue.enqueue("f", key="kept") is None:
        await asyncio.sleep(0.01)
    seconds, microseconds = await queue.redis.time()
    assert seconds + microseconds / 1e6 - done >= 0.49
