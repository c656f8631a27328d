"""The broker goes away and comes back, under a bus that starts meanwhile."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError

from saqkit import Bus, Event, Queue
from saqkit.broker import PrivateBroker
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.testing import drain
from saqkit.testing.queues import QUICK

Until = Callable[..., Awaitable[float]]


async def test_a_bus_that_starts_while_the_broker_is_away_subscribes_when_it_is_back(
    make_queue: Callable[..., Queue], until: Until, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.bus.deaths.LOOK_EVERY_S", 0.05)
    server = PrivateBroker()
    url = (await asyncio.to_thread(server.start)).url
    queue = make_queue(url=url, **QUICK)
    bus, got = Bus(queue), list[str]()

    @bus.subscribe("exam:*")
    async def tell(ctx: dict[str, Any], event: Event) -> None:
        got.append(event.id)

    try:
        coming_back = asyncio.create_task(asyncio.to_thread(server.restart, 2.0))

        async def away() -> bool:
            try:
                await queue.redis.ping()  # type: ignore[misc]  # typed for both clients
            except (ConnectionError, OSError):
                return True
            return False

        await until(away, 5)
        await bus.start()
        with pytest.raises(AWAY):
            await bus.publish("exam:created", id="e1")
        await coming_back

        async def known() -> bool:
            return "tell" in await bus.subscriptions()

        await until(known, 10)
        assert await bus.publish("exam:created", id="e1")
        await drain(queue, bus.functions())
        assert got == ["e1"]
    finally:
        await bus.stop()
        await queue.disconnect()
        await asyncio.to_thread(server.stop)
