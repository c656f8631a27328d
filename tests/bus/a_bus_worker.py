"""A worker process of a bus for the tests: a_bus_worker.py URL ours|saq [before|after]: dies around a mark."""

from __future__ import annotations

import asyncio
import os
import signal
import sys
from typing import Any

from saq.worker import Worker as SaqWorker

from saqkit import Bus, Event, Queue
from saqkit.worker.worker import Worker


def make(url: str) -> Bus:
    """The bus of the test and of its workers: two subscribers that note what they have done, and one that fails."""
    bus = Bus(Queue.from_url(url, name="school", lease_s=1.0, sweep_s=0.5, tick_s=0.05))

    async def note(event: Event, subscriber: str) -> None:
        """Half of the events take long: they are under way when the process is killed."""
        if event.data["slow"] and not await bus.queue.redis.get("quick"):
            await bus.queue.redis.incr("under way")
            await asyncio.sleep(60)
        await bus.queue.redis.rpush(f"done:{subscriber}", event.id)  # type: ignore[misc]  # typed for both clients

    @bus.subscribe("attendance:marked")
    async def parents(ctx: dict[str, Any], event: Event) -> None:
        await note(event, "parents")

    @bus.subscribe("attendance:*")
    async def reports(ctx: dict[str, Any], event: Event) -> None:
        await note(event, "reports")

    @bus.subscribe("exam:created")
    async def kills(ctx: dict[str, Any], event: Event) -> None:
        os.kill(os.getpid(), signal.SIGKILL)

    return bus


def die(bus: Bus, when: str) -> None:
    """Kill this process when a handler has ended, before or after that is written down."""
    handled = bus._kept.handled

    async def dies(*args: Any) -> None:
        if when == "after":
            await handled(*args)
        os.kill(os.getpid(), signal.SIGKILL)

    bus._kept.handled = dies  # type: ignore[method-assign,assignment]


async def ours(bus: Bus) -> None:
    await bus.start()
    await Worker({"school": bus.queue}, dict(bus.functions()), {"school": 10}).run()


async def saqs(bus: Bus) -> None:
    await SaqWorker(bus.queue, bus.functions(), concurrency=10, startup=bus.start, shutdown=bus.stop).start()  # type: ignore[type-var]


if __name__ == "__main__":
    made = make(sys.argv[1])
    if sys.argv[3:]:
        die(made, sys.argv[3])
    asyncio.run((ours if sys.argv[2] == "ours" else saqs)(made))
