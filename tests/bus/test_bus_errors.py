"""What has failed for good is told by an event of its own, once, and without end in no case."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit import Bus, Event, Queue
from saqkit.bus.deaths import MOST_AT_ONCE, Deaths
from saqkit.bus.kept import Kept
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.backoff import Retry
from saqkit.testing import drain
from saqkit.testing.queues import QUICK

Until = Callable[..., Awaitable[float]]
ONCE = Retry(max_attempts=1)


@pytest.fixture
def errors(bus: Bus) -> list[Event]:
    got: list[Event] = []

    @bus.subscribe("system:error_occurred", name="alarm")
    async def alarm(ctx: dict[str, Any], event: Event) -> None:
        got.append(event)

    return got


async def tell(bus: Bus) -> int:
    """Look for deaths as a process of its own does, and deliver what is published."""
    deaths = Deaths(bus, Kept(bus.queue, 60, 100, 60))
    told = await deaths.look()
    await drain(bus.queue, bus.functions(), follow_time=False)
    return told


@pytest.mark.row("004.12")
async def test_a_delivery_that_dies_is_told_with_its_ids(bus: Bus, errors: list[Event], until: Until) -> None:
    @bus.subscribe("grade:updated", retry=Retry(max_attempts=2, backoff="fixed", delay_s=0))
    async def fails(ctx: dict[str, Any], event: Event) -> None:
        raise ValueError("no such pupil")

    await bus.start()
    bad = await bus.publish("grade:updated", tenant="a", institution="north", user=3, correlation_id="request-9")
    await drain(bus.queue, bus.functions(), follow_time=False)

    async def told() -> bool:  # perhaps it was delivered by the same drain
        return bool(errors) or await bus.queue.count("queued") == 1

    await until(told, 10)
    await drain(bus.queue, bus.functions())
    (error,) = errors
    assert (error.type, error.tenant, error.institution, error.user) == ("system:error_occurred", "a", "north", 3)
    assert (error.correlation_id, error.causation_id) == ("request-9", bad.event.id)
    assert error.data == {
        "queue": "school", "job_type": "events:fails", "job": f"events:fails:a|{bad.event.id}", "attempts": 2,
        "crashes": 0, "error": "ValueError: no such pupil", "topic": "grade:updated", "subscriber": "fails",
    }  # fmt: skip
    assert await tell(bus) == 0, "a second process tells nothing again"
    assert len(errors) == 1


async def test_what_comes_of_an_error_tells_no_other(bus: Bus, errors: list[Event]) -> None:
    calls = Counter[str]()

    @bus.subscribe("system:error_occurred", retry=ONCE)
    async def fails_too(ctx: dict[str, Any], event: Event) -> None:
        calls["fails_too"] += 1
        await bus.publish("notification:sent")
        await bus.queue.enqueue(Job("mail", meta=bus.trace(), retries=1))
        raise RuntimeError("no")

    @bus.subscribe("notification:sent", retry=ONCE)
    async def and_this(ctx: dict[str, Any], event: Event) -> None:
        calls["and_this"] += 1
        raise RuntimeError("no")

    @bus.subscribe("grade:updated", retry=ONCE)
    async def fails(ctx: dict[str, Any], event: Event) -> None:
        raise RuntimeError("no")

    bus.watch(bus.queue, "mail")
    await bus.start()
    await bus.stop()
    await bus.publish("grade:updated")
    await drain(bus.queue, bus.functions(), follow_time=False)
    deaths = Deaths(bus, Kept(bus.queue, 60, 100, 60))
    deaths.watch(bus.queue, ("mail",))
    assert await deaths.look() == 1
    for _ in range(3):
        await drain(bus.queue, bus.functions(), follow_time=False)
        assert await deaths.look() == 0
    assert calls == {"fails_too": 1, "and_this": 1}
    assert len(errors) == 1
    assert await bus.queue.count("dead") == 4


async def test_deaths_of_chosen_job_types_of_another_queue_are_told(
    bus: Bus, errors: list[Event], make_queue: Callable[..., Queue], until: Until
) -> None:
    orders = make_queue("orders", **QUICK)
    await orders.enqueue(Job("pay", key="before", retries=1))
    bus.watch(orders, "pay")

    async def die(key: str, function: str, **meta: Any) -> None:
        await orders.enqueue(Job(function, key=key, meta=meta, retries=1))
        job = await orders.dequeue(timeout=5)
        assert job is not None
        await orders.finish(job, Status.FAILED, error="declined\nfor good")

    job = await orders.dequeue(timeout=5)
    assert job is not None
    await orders.finish(job, Status.FAILED, error="before there was a bus")
    await bus.start()
    await die("o0", "pay", tenant="no tenant of an event")
    await die("o1", "pay", tenant="a", correlation_id="cart-1")
    await die("o2", "ship", tenant="a")

    async def told() -> bool:
        return await bus.queue.count("queued") == 1

    await until(told, 10)
    await drain(bus.queue, bus.functions())
    (error,) = errors
    assert (error.tenant, error.correlation_id, error.data["job"]) == ("a", "cart-1", "o1")
    assert error.data["error"] == "for good"


async def test_a_letter_that_cannot_be_told_stops_none_behind_it(
    make_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    bus = Bus(make_queue("short", max_body_bytes=2500, **QUICK))
    orders, got = make_queue("orders", **QUICK), list[Event]()

    @bus.subscribe("system:error_occurred")
    async def alarm(ctx: dict[str, Any], event: Event) -> None:
        got.append(event)

    deaths = Deaths(bus, Kept(bus.queue, 60, 100, 60))
    deaths.watch(orders, ("pay",))
    await deaths.look()
    metas: list[tuple[str, Any]] = [
        ("list", {}), ("long" + "x" * 3000, {}), ("blanks", {"tenant": "a b"}),
        ("odd", {"correlation_id": "cart 1", "event_id": "y" * 65, "tenant": "a"}), ("good", {"correlation_id": "c"}),
    ]  # fmt: skip
    for key, meta in metas:
        await orders.enqueue(Job("pay", key=key, meta=meta, retries=1))
        job = await orders.dequeue(timeout=5)
        assert job is not None
        await orders.finish(job, Status.FAILED, error="declined")
    body = json.dumps({"function": "pay", "key": "list", "queue": "orders", "meta": [1]})
    await orders.redis.hset(orders.key_of("list"), "body", body)  # type: ignore[misc]  # typed for both clients
    assert await deaths.look() == 3
    await drain(bus.queue, bus.functions())
    assert {event.data["job"]: (event.correlation_id, event.causation_id) for event in got} == {
        "list": (got[0].id, ""), "odd": (got[1].id, ""), "good": ("c", "")}  # fmt: skip
    said = [record.getMessage() for record in caplog.records if "is not told" in record.getMessage()]
    assert [text.split()[2][:6] for text in said] == ["longxx", "blanks"]
    assert await deaths.look() == 0


async def test_a_queue_whose_broker_is_away_stops_none_behind_it(
    bus: Bus, make_queue: Callable[..., Queue], tmp_path: Path
) -> None:
    gone, orders = make_queue("gone", url=f"unix://{tmp_path}/none"), make_queue("orders", **QUICK)
    deaths = Deaths(bus, Kept(bus.queue, 60, 100, 60))
    deaths.watch(gone, ("pay",))
    deaths.watch(orders, ("pay",))
    with pytest.raises(AWAY):
        await deaths.look()
    await orders.enqueue(Job("pay", retries=1))
    job = await orders.dequeue(timeout=5)
    assert job is not None
    await orders.finish(job, Status.FAILED, error="declined")
    with pytest.raises(AWAY):
        await deaths.look()
    assert await bus.queue.count("queued") == 1


async def test_a_storm_of_deaths_is_told_bit_by_bit_and_each_once(bus: Bus, errors: list[Event]) -> None:
    await bus.start()
    await bus.stop()
    number = 2 * MOST_AT_ONCE + 7
    jobs = [Job("events:gone", key=f"k{n}", kwargs={"envelope": {}}, retries=1) for n in range(number)]
    await bus.queue.enqueue_many(jobs)
    await drain(bus.queue, bus.functions(), slots=100, follow_time=False)
    assert await bus.queue.count("dead") == number
    deaths = Deaths(bus, Kept(bus.queue, 60, 100, 60))
    told = []
    while (new := await deaths.look()) or not told:
        assert new <= MOST_AT_ONCE
        told.append(new)
    assert sum(told) == number
    await drain(bus.queue, bus.functions(), slots=50, follow_time=False)
    assert {event.data["job"] for event in errors} == {f"k{n}" for n in range(number)}
    assert len(errors) == number
