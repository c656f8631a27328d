"""Announcing: quick for any audience, saved whatever the broker does, delivered once."""

from __future__ import annotations

import asyncio
import statistics
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from pathlib import Path

import pytest

from saqkit import Queue, Topology, load
from saqkit.app.announcing import Announcer, Relay, topic_of
from saqkit.app.audience import Audience
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.cli.announcing import served
from saqkit.queue.building import build_queues
from saqkit.spec.topology import Entry

TOPOLOGY = load("school-events")


@asynccontextmanager
async def announcing(
    url: str, folder: Path, topology: Topology = TOPOLOGY, users: int = 100
) -> AsyncIterator[tuple[Announcer, Store, Queue]]:
    queues = build_queues(topology, url)
    async with await Store.open(f"sqlite:///{folder}/announce.db") as store:
        await store.add_numbered_users(users)
        try:
            yield Announcer(topology, store, queues), store, queues[topology.entry_queue]
        finally:
            for queue in queues.values():
                await queue.disconnect()


async def until(holds: Callable[[], object], timeout_s: float = 20.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not await holds():  # type: ignore[misc]
            await asyncio.sleep(0.02)


@pytest.mark.parametrize("users", [100, 100_000])
@pytest.mark.row("000.3", "000.11")
async def test_it_returns_at_once_with_the_first_job_queued_for_any_audience(
    redis_url: str, tmp_path: Path, users: int
) -> None:
    async with announcing(redis_url, tmp_path, users=users) as (announcer, store, queue):
        await announcer.announce(title="warm-up", audience=Audience(), patience_s=5)
        calls = [await announcer.announce(title=f"Event {n}", patience_s=5) for n in range(15)]
        assert all(call.enqueued and call.new for call in calls)
        assert statistics.median(call.elapsed_ms for call in calls) < 100
        assert await queue.count("queued") == 16
        assert await store.undelivered() == []


async def test_a_key_that_was_used_before_starts_nothing_again(redis_url: str, tmp_path: Path) -> None:
    async with announcing(redis_url, tmp_path) as (announcer, _, queue):
        first = await announcer.announce(title="Closed", key="k", patience_s=5)
        again = await announcer.announce(title="Closed", key="k", patience_s=5)
        assert (again.event, again.new, again.enqueued) == (first.event, False, False)
        assert await queue.count("queued") == 1


async def test_one_key_is_one_event_also_where_ten_announce_at_once(redis_url: str, tmp_path: Path) -> None:
    async with announcing(redis_url, tmp_path) as (announcer, _, queue):
        calls = [announcer.announce(title="Closed", key="k", patience_s=5) for _ in range(10)]
        announced = await asyncio.gather(*calls)
        assert len({one.event for one in announced}) == 1
        assert [one.new for one in announced].count(True) == 1
        assert await queue.count("queued") == 1


@pytest.mark.row("000.19")
async def test_while_the_broker_is_away_the_event_is_saved_and_the_relay_delivers_it_once(tmp_path: Path) -> None:
    broker = PrivateBroker()
    started = await asyncio.to_thread(broker.start)
    try:
        async with announcing(started.url, tmp_path) as (announcer, store, queue):
            restarting = asyncio.create_task(asyncio.to_thread(broker.restart, 1.0))
            await asyncio.sleep(0.3)
            away = await announcer.announce(title="Saved all the same")
            assert (away.new, away.enqueued) == (True, False)
            assert await store.undelivered() == [away.event]
            relays = [asyncio.create_task(Relay(announcer).run()) for _ in range(3)]
            await restarting

            async def delivered() -> bool:
                return not await store.undelivered()

            await until(delivered)
            for relay in relays:
                relay.cancel()
            await asyncio.wait(relays)
            assert await queue.count("queued") == 1
            assert (await queue.job(f"announce:{away.event}")) is not None
    finally:
        await asyncio.to_thread(broker.stop)


async def test_an_event_that_cannot_be_delivered_does_not_hold_up_those_behind_it(
    redis_url: str, tmp_path: Path
) -> None:
    async with announcing(redis_url, tmp_path) as (announcer, store, queue):
        for topic in ("of.another.topology", topic_of(TOPOLOGY.entry[0])):
            await store.announce(title="x", topic=topic, audience=Audience(), created_at=1.0)
        relay = asyncio.create_task(Relay(announcer).run())

        async def delivered() -> bool:
            return await store.undelivered() == [1]

        await until(delivered)
        relay.cancel()
        await asyncio.wait([relay])
        assert await queue.job("announce:2") is not None


@pytest.mark.parametrize(
    ("entry", "topic", "priority"),
    [
        (Entry(topic="event.created"), "event.created", 3),
        (Entry(topic="event.created", priority="critical"), "event.created@critical", 1),
        (Entry(job_type="announce", priority="low"), "job:announce@low", 4),
    ],
)
async def test_an_entrys_priority_is_kept_with_the_event(
    redis_url: str, tmp_path: Path, entry: Entry, topic: str, priority: int
) -> None:
    async with announcing(redis_url, tmp_path) as (announcer, store, queue):
        made = await announcer.announce(title="x", entry=entry, patience_s=5)
        saved, job = await store.event(made.event), await queue.job(f"announce:{made.event}")
        assert saved is not None
        assert job is not None
        assert (saved.topic, job.priority) == (topic, priority)


@pytest.mark.row("002.11")
async def test_a_job_type_without_fan_out_gets_one_job_for_each_user_once(redis_url: str, tmp_path: Path) -> None:
    async with announcing(redis_url, tmp_path, users=2500) as (announcer, _, queue):
        made = await announcer.announce(title="x", entry=Entry(job_type="notify"), patience_s=30)
        assert await queue.count("queued") == 2500
        await announcer.deliver(made.event)
        assert await queue.count("queued") == 2500
        job = await queue.job("notify:1:2500")
        assert job is not None
        assert job.kwargs == {"event": 1, "users": [2500]}


async def test_whoever_waits_for_an_event_or_relays_them_ends_in_whatever_moment_it_is_cancelled(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A cancellation that comes as a command has just been sent is easily lost (see `heed_cancellation`)."""
    monkeypatch.setattr(Relay, "EVERY_S", 0.0)
    async with announcing(redis_url, tmp_path) as (announcer, store, queue):
        event = (await announcer.announce(title="Closed", patience_s=5)).event
        assert await queue.count("queued") == 1  # nobody takes it
        for turns in range(0, 150, 2):
            waits = (served(TOPOLOGY, store, announcer.queues, event, 100, lambda *_: None), Relay(announcer).run())
            tasks = [asyncio.create_task(wait) for wait in waits]
            for _ in range(turns):
                await asyncio.sleep(0)
            for task in tasks:
                task.cancel()
            _, going_on = await asyncio.wait(tasks, timeout=5)
            assert not going_on, f"cancelled after {turns} turns of the loop: {going_on}"
