"""Many jobs with delays, priorities and uniqueness of their own, and what is known when some of them fail."""

from __future__ import annotations

import time
from collections.abc import AsyncIterator, Iterator
from datetime import UTC, datetime, timedelta, timezone
from typing import Any
from zoneinfo import ZoneInfo

import pytest
from redis.exceptions import ConnectionError
from saq.job import Job

from saqkit.errors import UsageError
from saqkit.queue import enqueueing, fault_sites, submitting
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import NewJob, Submitted
from saqkit.queue.unique import Unique


async def every(told: AsyncIterator[Submitted]) -> list[Submitted]:
    return [one async for one in told]


async def calls(queue: Queue) -> int:
    return int((await queue.redis.info("commandstats"))["cmdstat_evalsha"]["calls"])


@pytest.mark.row("002.6")
async def test_each_has_its_own_priority_delay_and_uniqueness_in_one_round_trip(queue: Queue) -> None:
    await queue.enqueue("warm", key="taken")
    before = await calls(queue)
    told = await every(
        queue.submit_many(
            [
                NewJob("f", {"n": 1}, "low", "low"),
                NewJob("f", key="critical", priority=1),
                NewJob("f", key="later", delay_s=3600),
                NewJob("f", key="at", at=datetime.now(UTC) + timedelta(days=1)),
                NewJob("f", key="unique", unique="id"),
                NewJob("f", key="its twin", unique=Unique("id")),
                NewJob("f", key="taken"),
                NewJob("f", properties={"timeout": 77, "retries": 3, "meta": {"a": 1}}),
            ]
        )
    )
    assert await calls(queue) - before == 1
    assert [one.accepted for one in told] == [True] * 5 + [False, False, True]
    assert [one.key for one in told[:-1]] == ["low", "critical", "later", "at", "unique", "unique", "taken"]
    places = {level: await queue.redis.zrange(queue.namespace(f"queued:{level}"), 0, -1) for level in (1, 3, 4)}
    assert places == {1: [b"critical"], 3: [b"taken", b"unique", told[-1].key.encode()], 4: [b"low"]}
    assert await queue.count("scheduled") == 2
    job = await queue.job(told[-1].key)
    assert job is not None
    assert (job.timeout, job.retries, job.meta) == (77, 3, {"a": 1})


@pytest.mark.parametrize(("number", "chunk"), [(0, 10), (1, 10), (10, 10), (25, 10), (501, 500)])
@pytest.mark.row("002.6")
async def test_chunks_are_round_trips(queue: Queue, number: int, chunk: int) -> None:
    await queue.enqueue("warm")
    before = await calls(queue)
    told = await every(queue.submit_many((NewJob("f", {"n": n}) for n in range(number)), chunk))
    assert await calls(queue) - before == -(-number // chunk)
    assert [one.accepted for one in told] == [True] * number
    jobs = await queue.jobs(one.key for one in told)
    assert [job.kwargs for job in jobs if job] == [{"n": n} for n in range(number)]


@pytest.mark.parametrize("number", [20_000, pytest.param(100_000, marks=pytest.mark.chaos)])
async def test_many_are_never_held_at_once(queue: Queue, number: int) -> None:
    made = told = most = 0

    def jobs() -> Iterator[NewJob]:
        nonlocal made
        for n in range(number):
            made += 1
            yield NewJob("f", {"n": n})

    async for _ in queue.submit_many(jobs()):
        most = max(most, made - told)
        told += 1
    assert (made, told) == (number, number)
    assert most <= 1000  # the chunk that is answered, and the one that was written meanwhile
    assert await queue.count("queued") == number


async def test_a_job_that_cannot_be_leaves_what_came_before_and_says_so(queue: Queue) -> None:
    def jobs() -> Iterator[NewJob]:
        for n in range(100):
            yield NewJob("f", {"n": {1} if n == 57 else n}, key=str(n))

    known: list[Submitted] = []

    async def submit() -> None:
        async for told in queue.submit_many(jobs(), chunk=10):
            known.append(told)

    with pytest.raises(UsageError, match=r"^job 57 \(f\): its n is a set that JSON cannot hold \("):
        await submit()
    assert [one.key for one in known if one] == [str(n) for n in range(50)]
    assert await queue.count("queued") == 50  # nothing of its own chunk, nothing behind it


@pytest.mark.parametrize(("site", "stored"), [("enqueue.before", 20), ("enqueue.after", 30)])
async def test_a_broker_that_goes_away_leaves_what_came_before_and_says_so(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, site: str, stored: int
) -> None:
    def jobs() -> Iterator[NewJob]:
        yield from (NewJob("f", key=str(n)) for n in range(100))

    known: list[Submitted] = []

    async def submit() -> None:
        async for one in queue.submit_many(jobs(), chunk=10):
            known.append(one)
            if len(known) == 20:  # the third chunk is written, and not sent
                monkeypatch.setattr(fault_sites, "armed", fault_sites.parse(f"rate=1,actions=lose,only={site}"))

    with pytest.raises(ConnectionError, match="fault at"):
        await submit()
    monkeypatch.setattr(fault_sites, "armed", None)
    assert [one.key for one in known if one] == [str(n) for n in range(20)]
    assert await queue.count("queued") == stored  # what was not answered may be in
    again = await every(queue.submit_many(jobs(), chunk=10))
    assert [one.accepted for one in again] == [False] * stored + [True] * (100 - stored)
    assert await queue.count("queued") == 100


async def test_saqs_enqueue_still_gives_every_other_name_to_the_function(queue: Queue) -> None:
    job = await queue.enqueue("f", at="noon", delay_s=3, unique="x", kwargs={"more": 1})
    assert job is not None
    stored = await queue.job(job.key)
    assert stored is not None
    assert stored.kwargs == {"at": "noon", "delay_s": 3, "unique": "x", "more": 1}
    assert stored.scheduled == 0


SKEWS = [-30.0, 0.0, 30.0]


@pytest.mark.parametrize("skew_s", SKEWS)
@pytest.mark.row("002.5")
async def test_a_time_and_a_delay_are_kept_whatever_the_producers_clock(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, skew_s: float
) -> None:
    right = time.time
    monkeypatch.setattr(enqueueing, "now_seconds", lambda: right() + skew_s)
    monkeypatch.setattr(submitting, "time", lambda: right() + skew_s)
    seconds, micros = await queue.redis.time()
    began = seconds + micros / 1e6
    due = {"at": began + 0.5, "delay": began + 0.7}
    berlin = datetime.fromtimestamp(due["at"], ZoneInfo("Europe/Berlin"))
    told = await every(queue.submit_many([NewJob("f", key="delay", delay_s=0.7), NewJob("f", key="at", at=berlin)]))
    assert all(told)
    ready: list[tuple[str, float]] = []
    for _ in range(2):
        job = await queue.dequeue(timeout=10)
        assert job is not None
        seconds, micros = await queue.redis.time()
        ready.append((job.key, seconds + micros / 1e6))
    assert [key for key, _ in ready] == ["at", "delay"]
    for key, at in ready:
        assert due[key] - 0.001 <= at < due[key] + 5


async def test_a_time_that_has_passed_is_now(queue: Queue) -> None:
    assert await queue.submit("f", key="past", at=datetime(2001, 1, 1, tzinfo=timezone(timedelta(hours=2))))
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert job.key == "past"


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"at": datetime(2026, 3, 29, 6, 30)}, "at=2026-03-29T06:30:00 has no time zone"),
        ({"at": datetime(2026, 3, 29, tzinfo=UTC), "delay_s": 5}, "has a delay_s and a time"),
        ({"delay_s": -1}, "delay_s -1"),
        ({"delay_s": float("inf")}, "delay_s inf"),
        ({"priority": "hihg"}, 'there is no priority hihg (did you mean "high"?)'),
        ({"priority": 5}, "there is no priority 5 (1 critical, 2 high, 3 normal, 4 low)"),
        ({"tiemout": 5}, 'a job has no tiemout (did you mean "timeout"?)'),
        ({"kwargs": {"n": {1, 2}}}, "its n is a set that JSON cannot hold"),
        ({"kwargs": {"n": object()}}, "its n is a object that JSON cannot hold"),
    ],
)
async def test_what_cannot_be_is_refused_in_one_line_and_nothing_is_stored(
    queue: Queue, wrong: dict[str, Any], text: str
) -> None:
    with pytest.raises(UsageError, match=r"^job k \(f\): [^\n]+\)$") as caught:
        await queue.submit("f", **{"key": "k", **wrong})
    assert text in str(caught.value)
    assert await queue.count("incomplete") == 0


async def test_a_body_that_is_no_json_is_refused_whoever_enqueues_it(queue: Queue) -> None:
    said = r"^job k \(f\): its n is a bytes that JSON cannot hold"
    with pytest.raises(UsageError, match=said):
        await queue.enqueue("f", key="k", n=b"x")
    with pytest.raises(UsageError, match=said):
        await queue.enqueue_many([Job("f", key="k", kwargs={"n": b"x"})])
    with pytest.raises(UsageError, match=said):
        await queue.enqueue_each("f", [{"n": b"x"}], keys=["k"])
    with pytest.raises(UsageError, match=r"its meta is a dict that JSON cannot hold"):
        await queue.enqueue("f", key="k", meta={"who": object()})
    assert await queue.count("incomplete") == 0
