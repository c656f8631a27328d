"""Schedules: each firing once whoever lives, what becomes of missed ones, and descriptions that are refused."""

from __future__ import annotations

import asyncio
import signal
import subprocess
import sys
from collections import Counter
from collections.abc import Awaitable, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.counting import recorded_attempts
from saqkit.queue.queue import Queue
from saqkit.queue.timetable import Schedule, stamp

PROGRAM = Path(__file__).with_name("a_timetable_worker.py")
MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]
HOURLY = "0 * * * *"


async def server_time(queue: Queue) -> float:
    seconds, micros = await queue.redis.time()
    return float(seconds + micros / 1e6)


async def waiting(queue: Queue) -> list[str]:
    return [key.decode() for key in await queue.redis.zrange(queue.namespace("queued:3"), 0, -1)]


async def looked_last(queue: Queue, schedule: Schedule, ago_s: float) -> float:
    """As if somebody had last looked so long ago; returns the server's time now."""
    now = await server_time(queue)
    await queue.redis.hset(queue.namespace("schedules"), schedule.mark, int(now - ago_s))  # type: ignore[misc]
    return now


async def test_three_workers_and_a_kill_fire_each_time_once(redis_url: str, queue: Queue, until: Until) -> None:
    kinds = [("saqkit", "0"), ("saqkit", "3600"), ("saq", "-45")]
    await queue.record_attempts()
    workers = [subprocess.Popen([sys.executable, str(PROGRAM), redis_url, *words]) for words in kinds]

    async def told(number: int) -> Callable[[], Awaitable[bool]]:
        async def enough() -> bool:
            return int(await queue.redis.llen("told")) >= number  # type: ignore[misc]

        return enough

    try:
        await until(await told(3), 60)
        workers[0].kill()
        already = int(await queue.redis.llen("told"))  # type: ignore[misc]
        await until(await told(already + 3), 60)
    finally:
        for worker in workers:
            worker.send_signal(signal.SIGTERM)
        for worker in workers:
            worker.wait(20)
    now = await server_time(queue)
    keys = [key.decode() for key in await queue.redis.lrange("told", 0, -1)]  # type: ignore[misc]
    times = sorted(datetime.fromisoformat(key.removeprefix("each@")).timestamp() for key in keys)
    counted = Counter(keys)
    attempts = await recorded_attempts(queue)
    ended = attempts.groupby("job", observed=True)["outcome"].agg(list).to_dict()
    # Each time is one job, done once. It runs again only where an attempt of it ended otherwise: was lost with the
    # process that is killed (C6), or given back by one that stops.
    assert all(outcomes.count("done") == 1 for outcomes in ended.values())
    assert set(ended) <= set(counted)
    again = {key: number for key, number in counted.items() if number > 1}
    assert all(sum(outcome != "done" for outcome in ended[key]) >= number - 1 for key, number in again.items())
    assert sum(outcomes.count("lost") for outcomes in ended.values()) <= 2, "it had two slots"
    times = sorted(set(times))
    assert times == [times[0] + n for n in range(len(times))]
    assert times[-1] <= now


async def test_nothing_is_missed_before_somebody_has_looked(make_queue: MakeQueue) -> None:
    queue = make_queue(schedules=[Schedule("hourly", "f", HOURLY, missed="all")])
    wait_s = await queue.timetable.fire()
    assert 0 < wait_s <= 30
    assert await queue.count("incomplete") == 0
    mark = await queue.redis.hget(queue.namespace("schedules"), f"hourly UTC {HOURLY}")  # type: ignore[misc]
    assert abs(int(mark) - await server_time(queue)) < 5


@pytest.mark.parametrize(("missed", "number"), [("skip", 0), ("once", 1), ("all", 5)])
async def test_what_fired_while_nothing_ran_is_dealt_with_as_the_schedule_says(
    make_queue: MakeQueue, missed: Any, number: int
) -> None:
    schedule = Schedule("hourly", "f", HOURLY, missed=missed, late_s=1e-6)
    queue = make_queue(schedules=[schedule])
    now = await looked_last(queue, schedule, 5 * 3600)
    await queue.timetable.fire()
    hours = [int(now // 3600 - n) * 3600 for n in reversed(range(5))]
    assert await waiting(queue) == [f"hourly@{stamp(at)}" for at in hours][5 - number :]
    await queue.timetable.fire()
    assert await queue.count("queued") == number


async def test_all_means_the_latest_of_a_bounded_number(make_queue: MakeQueue) -> None:
    schedule = Schedule("each", "f", "* * * * *", missed="all", most_missed=7, late_s=1e-6)
    queue = make_queue(schedules=[schedule])
    now = await looked_last(queue, schedule, 30 * 86_400)
    await queue.timetable.fire()
    assert await waiting(queue) == [f"each@{stamp(int(now // 60 - n) * 60)}" for n in reversed(range(7))]


async def test_a_firing_that_is_a_little_late_is_not_missed(make_queue: MakeQueue) -> None:
    schedule = Schedule("each", "f", "* * * * * *", missed="skip", late_s=10)
    queue = make_queue(schedules=[schedule])
    now = await looked_last(queue, schedule, 5)
    await queue.timetable.fire()
    keys = await waiting(queue)
    assert keys[:5] == [f"each@{stamp(int(now) - n)}" for n in (4, 3, 2, 1, 0)]


async def test_several_who_come_at_once_or_too_late_fire_once(make_queue: MakeQueue) -> None:
    schedule = Schedule("hourly", "f", HOURLY, missed="all")
    queues = [make_queue(schedules=[schedule]) for _ in range(4)]
    await looked_last(queues[0], schedule, 3 * 3600)
    known = int(await queues[0].redis.hget(queues[0].namespace("schedules"), schedule.mark))  # type: ignore[misc, arg-type]
    await asyncio.gather(*(queue.timetable.fire() for queue in queues))
    assert await queues[0].count("queued") == 3
    for _ in range(3):
        job = await queues[0].dequeue(timeout=5)
        assert job is not None
        await queues[0].finish(job, Status.COMPLETE)
    # Somebody who had looked before all that, and was stopped for long: none of its keys is taken any more.
    late = schedule.due(known, await server_time(queues[0]))
    jobs = [schedule.job(at) for at in late[0]]
    assert len(jobs) == 3
    assert await queues[1].enqueuer.fire(f"fire {known} {late[1]} {schedule.mark}", jobs) == []
    assert await queues[0].count("incomplete") == 0


@pytest.mark.parametrize("site", ["enqueue.before", "enqueue.after"])
async def test_a_lost_answer_fires_neither_twice_nor_never(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch, site: str
) -> None:
    schedule = Schedule("hourly", "f", HOURLY)
    queue = make_queue(schedules=[schedule])
    await looked_last(queue, schedule, 3600)
    monkeypatch.setattr(fault_sites, "armed", fault_sites.parse(f"rate=1,most=1,actions=lose,only={site}"))
    await queue.timetable.fire()
    monkeypatch.setattr(fault_sites, "armed", None)
    await queue.timetable.fire()
    assert await queue.count("queued") == 1


async def test_without_overlap_a_firing_waits_for_nobody_and_is_left_out(
    make_queue: MakeQueue, caplog: pytest.LogCaptureFixture
) -> None:
    schedule = Schedule("hourly", "f", HOURLY, overlap=False)
    queue = make_queue(schedules=[schedule])

    async def fired() -> list[str]:
        await looked_last(queue, schedule, 3600)
        await queue.timetable.fire()
        return await waiting(queue)

    (first,) = await fired()
    await queue.redis.zrem(queue.namespace("queued:3"), first)  # as if it had been hours before
    await queue.redis.rename(queue.key_of(first), queue.key_of("hourly@before"))
    await queue.redis.zadd(queue.namespace("queued:3"), {"hourly@before": 1})
    entry = await queue.redis.hget(queue.namespace("unique"), "schedule hourly")  # type: ignore[misc]
    await queue.redis.hset(  # type: ignore[misc]
        queue.namespace("unique"), "schedule hourly", entry.decode().replace(first, "hourly@before")
    )
    assert await fired() == ["hourly@before"]
    assert "left out" in caplog.text
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert await fired() == []  # it runs
    await queue.finish(job, Status.FAILED, error="ValueError: no")
    assert await fired() == [first]  # a dead letter is in nobody's way


async def test_a_line_that_was_changed_begins_anew(make_queue: MakeQueue) -> None:
    old = Schedule("report", "f", "0 0 * * *")
    queue = make_queue(schedules=[Schedule("report", "f", HOURLY, missed="all")])
    await looked_last(queue, old, 86_400)
    await queue.timetable.fire()
    assert await queue.count("incomplete") == 0


async def test_a_firing_is_a_job_as_described_and_knows_its_time(make_queue: MakeQueue) -> None:
    schedule = Schedule("report", "make_report", HOURLY, kwargs={"kind": "short"}, priority="low",
                        properties={"timeout": 77, "meta": {"tenant": "a"}})  # fmt: skip
    queue = make_queue(schedules=[schedule])
    now = await looked_last(queue, schedule, 3600)
    await queue.timetable.fire()
    at = int(now // 3600) * 3600
    job = await queue.job(f"report@{stamp(at)}")
    assert job is not None
    assert (job.function, job.kwargs, job.timeout, job.priority) == ("make_report", {"kind": "short"}, 77, 4)
    assert job.meta == {"tenant": "a", "schedule": "report", "fires_at": at}


async def test_it_fires_while_somebody_takes_jobs_and_goes_on_after_an_outage(
    make_queue: MakeQueue, monkeypatch: pytest.MonkeyPatch, until: Until
) -> None:
    queue = make_queue(schedules=[Schedule("each", "f", "* * * * * *")])
    jobs: list[Job] = []

    async def take() -> None:
        while (job := await queue.dequeue()) is not None:
            jobs.append(job)
            await queue.finish(job, Status.COMPLETE)

    taking = asyncio.create_task(take())

    def fired(number: int) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return len(jobs) >= number

        return check

    try:
        await until(fired(1), 30)
        monkeypatch.setattr(fault_sites, "armed", fault_sites.parse("rate=1,most=2,actions=lose,only=look.*|enqueue.*"))
        await until(fired(len(jobs) + 3), 60)
    finally:
        taking.cancel()
        await asyncio.wait([taking])
    assert len({job.key for job in jobs}) == len(jobs)


async def test_the_next_firings_can_be_seen(make_queue: MakeQueue) -> None:
    schedule = Schedule("daily", "f", "30 2 * * *", "Europe/Berlin")
    seen = schedule.upcoming(3, datetime(2026, 3, 28, tzinfo=UTC))
    assert [at.isoformat() for at in seen] == [
        "2026-03-28T02:30:00+01:00", "2026-03-29T03:00:00+02:00", "2026-03-30T02:30:00+02:00",
    ]  # fmt: skip


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"name": "two words"}, "no name"),
        ({"cron": "0 0 30 2 *"}, "schedule s: cron line \"0 0 30 2 *\": never fires"),
        ({"zone": "Mars/Base"}, 'there is no time zone "Mars/Base"'),
        ({"missed": "onec"}, 'missed "onec" (did you mean "once"?)'),
        ({"late_s": 0}, "late_s 0"),
        ({"most_missed": 0}, "most_missed 0"),
        ({"missed": "all", "overlap": False}, 'missed "all" means nothing without overlap'),
        ({"kwargs": {"n": {1}}}, "cannot be written as JSON"),
        ({"priority": "urgent"}, "there is no priority urgent"),
        ({"properties": {"key": "x"}}, "a job has no key"),
    ],
)  # fmt: skip
def test_a_schedule_that_cannot_be_is_refused_in_one_line(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=r"^schedule [^\n]+$") as caught:
        Schedule(**{"name": "s", "function": "f", "cron": HOURLY, **wrong})
    assert text in str(caught.value)


def test_two_schedules_of_one_name_are_refused(make_queue: MakeQueue) -> None:
    with pytest.raises(UsageError, match=r"queue q: two schedules are called s \("):
        make_queue(schedules=[Schedule("s", "f", HOURLY), Schedule("s", "g", "@daily")])
