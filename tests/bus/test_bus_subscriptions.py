"""Who is subscribed is known to all processes, also when the broker has forgotten it, or a newer process wrote it."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from saqkit import Bus, Event, Queue
from saqkit.broker import PrivateBroker
from saqkit.testing import drain
from saqkit.testing.queues import QUICK

Until = Callable[..., Awaitable[float]]
KEY = "bus:subscriptions"


def listener(bus: Bus, name: str) -> list[str]:
    """A subscriber to exams that notes what it gets."""
    got: list[str] = []

    async def handle(ctx: dict[str, Any], event: Event) -> None:
        got.append(event.id)

    bus.subscribe("exam:*", name=name)(handle)
    return got


async def test_a_broker_that_lost_its_memory_is_told_again_by_the_process_that_routes(bus: Bus) -> None:
    got = listener(bus, "tell")
    for id in ("e1", "e2"):
        await bus.publish("exam:created", id=id)
        await drain(bus.queue, bus.functions())
        await bus.queue.redis.flushall()
    assert got == ["e1", "e2"]


async def test_and_by_every_process_between_start_and_stop(bus: Bus, until: Until) -> None:
    listener(bus, "tell")
    await bus.start()
    await bus.queue.redis.delete(bus.queue.namespace(KEY))

    async def known() -> bool:
        return "tell" in await bus.subscriptions()

    await until(known, 10)


async def test_events_reach_their_subscriber_when_the_server_has_restarted_empty(
    make_queue: Callable[..., Queue],
) -> None:
    server = PrivateBroker()
    queue = make_queue(url=(await asyncio.to_thread(server.start)).url, **QUICK)
    bus = Bus(queue)
    got = listener(bus, "tell")
    try:
        await bus.start()
        await queue.redis.flushall()
        await asyncio.to_thread(server.restart, 0.1)
        await bus.publish("exam:created", id="e1")
        await drain(queue, bus.functions())
        assert got == ["e1"]
    finally:
        await bus.stop()
        await queue.disconnect()
        await asyncio.to_thread(server.stop)


@pytest.mark.row("004.14")
async def test_who_has_left_is_subscribed_again_by_a_process_that_starts_and_by_no_other(
    bus: Bus, make_queue: Callable[..., Queue]
) -> None:
    other = Bus(make_queue("school", **QUICK))
    mine, theirs = listener(bus, "tell"), listener(other, "tell")
    await bus.register()
    await other.register()
    await Bus(make_queue("school", **QUICK)).unsubscribe("tell")
    for one in (bus, other):
        await one.register()
        assert await one.subscriptions() == {}
    await bus.queue.redis.delete(bus.queue.namespace(KEY))
    assert await bus.subscriptions() == {}
    await bus.register()
    await other.register()
    await bus.publish("exam:created", id="e1")
    await drain(bus.queue, bus.functions())
    assert await bus.subscriptions() == {}
    assert await other.unsubscribe("tell") == 0, "saying it again does no harm"
    await other.start()
    await other.stop()
    await bus.publish("exam:created", id="e2")
    await drain(bus.queue, bus.functions())
    assert (mine, theirs) == (["e2"], [])
    assert list(await bus.subscriptions()) == ["tell"]


async def test_one_that_cannot_be_read_stops_no_other(bus: Bus, caplog: pytest.LogCaptureFixture) -> None:
    got = listener(bus, "tell")
    await bus.register()
    key = bus.queue.namespace(KEY)
    newer = (await bus.subscriptions())["tell"].to_dict() | {"name": "newer", "users": [1]}
    newer["retry"] |= {"hedge_s": 3}
    wrong = {"newer": json.dumps(newer), "half": '{"name": "half", ', "list": "[1]", "empty": "{}"}
    await bus.queue.redis.hset(key, mapping=dict(wrong))  # type: ignore[misc]  # typed for both clients
    for id in ("e1", "e2"):
        await bus.publish("exam:created", id=id)
        await drain(bus.queue, [*bus.functions(), ("events:newer", dict(bus.functions())["events:tell"])])
    assert got == ["e1", "e1", "e2", "e2"], "what only a newer process knows is left out"
    assert sorted(await bus.subscriptions()) == ["newer", "tell"]
    assert len([record for record in caplog.records if "cannot be read" in record.getMessage()]) == 3
    assert len(await bus.statistics()) == 5
    assert await bus.unsubscribe("half") == 0
    assert await bus.queue.redis.hget(key, "half") == b""  # type: ignore[misc]  # typed for both clients
