"""A topology's schedules: each firing is one event, whoever announces it and whenever somebody dies."""

from __future__ import annotations

import asyncio
import json
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager, suppress
from pathlib import Path
from typing import Any

import pytest
from measured import lab
from redis.exceptions import ConnectionError
from test_handlers import System, system, until

from saqkit.app.audience import Audience
from saqkit.app.handlers import Application
from saqkit.app.mail import build_providers
from saqkit.app.scheduling import EventTimetable, event_key
from saqkit.app.store import EventRow
from saqkit.queue import fault_sites

HOURLY = {"name": "hourly", "job_type": "announce", "cron": "0 * * * *"}


@asynccontextmanager
async def scheduled(url: str, folder: Path, *schedules: dict[str, Any], **changes: Any) -> AsyncIterator[System]:
    """The laboratory with some schedules, and three users."""
    async with system(lab(schedules=list(schedules), **changes), url, folder, 3) as made:
        yield made


async def looked_last(made: System, ago_s: float) -> tuple[EventTimetable, float]:
    """A timetable as if somebody had last looked so long ago; and the server's time."""
    timetable = EventTimetable(made.announcer)
    seconds, micros = await made.queue.redis.time()
    for schedule in timetable.schedules:
        await made.queue.redis.hset(  # type: ignore[misc]  # typed for both clients
            made.queue.namespace("schedules"), schedule.mark, str(int(seconds - ago_s))
        )
    return timetable, seconds + micros / 1e6


async def events(made: System) -> list[EventRow]:
    numbers = sorted({*await made.store.undelivered(), *await made.store.delivered_since(0)})
    return [event for number in numbers if (event := await made.store.event(number))]


@pytest.mark.parametrize(
    ("policy", "number"),
    [
        ({"missed": "skip"}, 0),
        ({"missed": "once"}, 1),
        ({"missed": "all"}, 5),
        ({"missed": "all", "most_missed": 3}, 3),
        ({"missed": "skip", "late_s": 6 * 3600.0}, 5),
    ],
)
async def test_what_fired_while_nothing_ran_is_dealt_with_as_the_schedule_says(
    redis_url: str, tmp_path: Path, policy: dict[str, Any], number: int
) -> None:
    async with scheduled(redis_url, tmp_path, {**HOURLY, "late_s": 1e-6, **policy}) as made:
        timetable, now = await looked_last(made, 5 * 3600)
        await timetable.fire()
        hours = [int(now // 3600 - n) * 3600 for n in reversed(range(5))]
        expected = [event_key("hourly", at) for at in hours][5 - number :]
        assert [event.key for event in await events(made)] == expected
        assert await made.queue.count("queued") == number
        await timetable.fire()
        assert len(await events(made)) == number


async def test_nothing_is_missed_before_somebody_has_looked(redis_url: str, tmp_path: Path) -> None:
    async with scheduled(redis_url, tmp_path, {**HOURLY, "missed": "all"}) as made:
        await EventTimetable(made.announcer).fire()
        assert await events(made) == []
        mark = await made.queue.redis.hget(made.queue.namespace("schedules"), "hourly UTC 0 * * * *")  # type: ignore[misc]
        assert abs(int(mark) - (await made.queue.redis.time())[0]) < 5


async def test_a_firing_is_an_event_as_described_and_named_after_its_schedule(redis_url: str, tmp_path: Path) -> None:
    told = {"title": "Your day", "body": "All of it.", "tenant": "north", "priority": "low", "audience": "students"}
    plain = {"name": "plain", "job_type": "announce", "cron": "0 * * * *"}
    async with scheduled(redis_url, tmp_path, {**HOURLY, **told}, plain) as made:
        timetable, now = await looked_last(made, 3600)
        await timetable.fire()
        first, second = await events(made)
        at = int(now // 3600) * 3600
        assert (first.key, second.key) == (event_key("hourly", at), event_key("plain", at))
        assert (first.title, first.body, first.tenant, first.topic) == (
            "Your day", "All of it.", "north", "job:announce@low",
        )  # fmt: skip
        assert first.audience == Audience(("student",), "north")
        assert (second.title, second.tenant, second.topic) == ("plain", "", "job:announce")
        assert second.audience == Audience()
        jobs = [job async for job in made.queue.iter_jobs()]
        assert sorted((job.priority, json.dumps(job.kwargs)) for job in jobs) == [
            (3, '{"event": 2}'), (4, '{"event": 1}'),
        ]  # fmt: skip


async def test_of_several_who_come_at_once_one_announces(redis_url: str, tmp_path: Path) -> None:
    async with scheduled(redis_url, tmp_path, {**HOURLY, "missed": "all"}) as made:
        await looked_last(made, 3 * 3600)
        await asyncio.gather(*(EventTimetable(made.announcer).fire() for _ in range(4)))
        keys = [event.key for event in await events(made)]
        assert len(set(keys)) == len(keys) == 3
        assert await made.queue.count("queued") == 3


async def test_who_dies_once_the_event_is_saved_leaves_it_to_the_relay(redis_url: str, tmp_path: Path) -> None:
    async with scheduled(redis_url, tmp_path, HOURLY) as made:
        timetable, now = await looked_last(made, 3600)
        key = event_key("hourly", int(now // 3600) * 3600)
        await made.store.announce(title="hourly", topic="job:announce", audience=Audience(), created_at=1.0, key=key)
        await timetable.fire()
        assert len(await events(made)) == 1
        assert await made.store.undelivered() == [1]
        application = Application(made.topology, made.store, made.queues, build_providers(made.topology, 0))
        relaying = asyncio.create_task(application.relay.run())

        async def queued() -> bool:
            return await made.queue.count("queued") == 1 and not await made.store.undelivered()

        await until(queued)
        relaying.cancel()
        await asyncio.wait([relaying])


async def test_who_dies_before_it_is_noted_doubles_nothing(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The broker takes the job, but no answer comes; then it is not told that the firing was dealt with."""
    async with scheduled(redis_url, tmp_path, HOURLY) as made:
        timetable, _ = await looked_last(made, 3600)
        monkeypatch.setattr(fault_sites, "armed", fault_sites.parse("rate=1,actions=lose,only=enqueue.after"))
        with suppress(ConnectionError):
            await timetable.fire()
        monkeypatch.setattr(fault_sites, "armed", None)
        await looked_last(made, 3600)
        for _ in range(2):
            await timetable.fire()
        assert len(await events(made)) == 1
        await made.announcer.deliver(1)
        assert await made.queue.count("incomplete") == 1


async def test_an_event_for_nobody_is_one_job_without_users(redis_url: str, tmp_path: Path) -> None:
    schedule = {"name": "tidy", "job_type": "notify", "cron": "0 * * * *", "audience": "none"}
    async with scheduled(redis_url, tmp_path, schedule) as made, made.worker():
        timetable, _ = await looked_last(made, 3600)
        await timetable.fire()
        await made.drained()
        (row,) = await made.rows()
        assert (row["job_type"], row["users"], row["outcome"]) == ("notify", 0, "done")
        assert row["event"] == "1"
        assert (await made.store.progress(1)).users == 0


async def test_every_worker_fires_from_its_start_to_its_end(
    redis_url: str, tmp_path: Path, until: Callable[..., Awaitable[float]]
) -> None:
    """As `saqkit worker` has it: two processes, a second each."""
    schedule = {"name": "each", "job_type": "announce", "cron": "* * * * * *", "missed": "all"}
    async with scheduled(redis_url, tmp_path, schedule) as made:

        async def fired() -> bool:
            return len(await events(made)) >= 3

        async with made.processes(2, 2):
            await until(fired, 30)
        number = len(await events(made))
        seconds, _ = await made.queue.redis.time()

        async def later() -> bool:
            return bool((await made.queue.redis.time())[0] > seconds + 1)

        await until(later, 10)
        assert len(await events(made)) == number
