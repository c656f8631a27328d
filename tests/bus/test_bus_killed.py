"""Workers of a bus that are really killed: every event reaches every subscriber all the same, once in effect."""

from __future__ import annotations

import subprocess
import sys
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from pathlib import Path

import pytest
from a_bus_worker import make

from saqkit import Bus, Event
from saqkit.queue.audit import audit

PROGRAM = Path(__file__).with_name("a_bus_worker.py")
Until = Callable[..., Awaitable[float]]
Start = Callable[..., "subprocess.Popen[bytes]"]


@pytest.fixture
def start(redis_url: str) -> Iterator[Start]:
    processes: list[subprocess.Popen[bytes]] = []

    def begin(*how: str) -> subprocess.Popen[bytes]:
        processes.append(subprocess.Popen([sys.executable, str(PROGRAM), redis_url, *how]))
        return processes[-1]

    yield begin
    for process in processes:
        if process.poll() is None:
            process.kill()
        process.wait()


@pytest.fixture
async def producer(redis_url: str) -> AsyncIterator[Bus]:
    bus = make(redis_url)
    yield bus
    await bus.queue.disconnect()


@pytest.mark.parametrize("kind", ["ours", "saq"])
async def test_a_worker_that_is_killed_amid_its_deliveries(
    producer: Bus, start: Start, until: Until, kind: str
) -> None:
    redis, queue = producer.queue.redis, producer.queue
    first = start(kind)
    published = await producer.publish_many(
        Event(type="attendance:marked", data={"slow": n % 2 == 0}, tenant="a") for n in range(20)
    )

    async def busy() -> bool:
        return int(await redis.get("under way") or 0) == 10

    await until(busy, 30)
    first.kill()
    first.wait()
    await redis.set("quick", 1)
    assert not await producer.publish(published[0].event), "what is published again meanwhile is no other event"
    start(kind)

    async def drained() -> bool:
        return await queue.count("incomplete") == 0 and bool(await redis.exists("done:reports"))

    await until(drained, 40)
    for subscriber in ("parents", "reports"):
        done = await redis.lrange(f"done:{subscriber}", 0, -1)  # type: ignore[misc]  # typed for both clients
        assert Counter(id.decode() for id in done) == Counter(one.event.id for one in published)
    found = await producer.statistics()
    counts = {
        row.subscriber: (row.completed, row.failed) for row in found[found.topic == "attendance:marked"].itertuples()
    }
    assert counts == {"": (20, 0), "parents": (20, 0), "reports": (20, 0)}
    assert (await audit(queue)).problems == ()


@pytest.mark.parametrize(("when", "times"), [("before", 2), ("after", 1)])
async def test_a_worker_that_is_killed_as_its_handler_has_ended(
    producer: Bus, start: Start, until: Until, when: str, times: int
) -> None:
    """Only what is not written down yet is done again."""
    first = start("ours", when)
    published = await producer.publish("attendance:corrected", {"slow": False})

    async def killed() -> bool:
        return first.poll() is not None

    await until(killed, 30)
    start("ours")

    async def drained() -> bool:
        return await producer.queue.count("incomplete") == 0

    await until(drained, 30)
    done = await producer.queue.redis.lrange("done:reports", 0, -1)  # type: ignore[misc]  # typed for both clients
    assert [id.decode() for id in done] == [published.event.id] * times
    found = await producer.statistics()
    assert found[(found.subscriber == "reports") & (found.topic == "attendance:corrected")].completed.tolist() == [1]


async def test_a_delivery_that_kills_its_workers_is_told_as_an_error(producer: Bus, start: Start, until: Until) -> None:
    await producer.start()
    await producer.stop()
    await producer.publish("exam:created", {"slow": False}, tenant="a")
    for _ in range(4):

        async def dead() -> bool:
            return await producer.queue.count("dead") == 1

        worker = start("ours")
        if await ends(worker, dead, until):
            break
    start("ours")

    async def told() -> bool:
        return [event.type async for event in producer.history()].count("system:error_occurred") == 1

    await until(told, 30)
    (error,) = [event async for event in producer.history("system:*")]
    assert (error.data["subscriber"], error.data["crashes"], error.tenant) == ("kills", 3, "a")


async def ends(worker: subprocess.Popen[bytes], dead: Callable[[], Awaitable[bool]], until: Until) -> bool:
    """Wait until a worker is killed, or the job that would kill it is dead; whether it is."""

    async def either() -> bool:
        return worker.poll() is not None or await dead()

    await until(either, 30)
    return await dead()
