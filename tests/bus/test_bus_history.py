"""Past events are kept within bounds and replayed to one subscriber; live views see what happens now."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pytest

from saqkit import Bus, Event, Queue
from saqkit.errors import UsageError
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.topology import Priority
from saqkit.testing import drain
from saqkit.testing.queues import QUICK


def listener(bus: Bus, topics: Any, name: str, **options: Any) -> list[tuple[str, Any]]:
    got: list[tuple[str, Any]] = []

    async def handle(ctx: dict[str, Any], event: Event) -> None:
        got.append((event.tenant, event.data["n"]))

    bus.subscribe(topics, name=name, **options)(handle)
    return got


async def publish(bus: Bus, number: int, began: float = 0.0) -> float:
    """Events 0, 1, …, a second apart, of tenants a and b in turn; every third is a grade."""
    began = began or time.time() - number
    for n in range(number):
        topic = "grade:updated" if n % 3 == 0 else "exam:created"
        await bus.publish(Event(type=topic, data={"n": n}, tenant="ab"[n % 2], time=began + n))
    await drain(bus.queue, bus.functions(), slots=20)
    return began


async def numbers(found: Any) -> list[Any]:
    return [event.data["n"] async for event in found]


@pytest.mark.row("004.8")
async def test_past_events_by_topic_time_and_tenant(bus: Bus) -> None:
    began = await publish(bus, 12)
    assert sorted(await numbers(bus.history())) == list(range(12))
    assert sorted(await numbers(bus.history("grade:*"))) == [0, 3, 6, 9]
    assert sorted(await numbers(bus.history(since=began + 4, until=began + 8))) == [4, 5, 6, 7]
    since = datetime.fromtimestamp(began + 9.5, UTC)
    assert sorted(await numbers(bus.history(since=since))) == [10, 11]
    assert sorted(await numbers(bus.history("grade:*", tenant="b"))) == [3, 9]
    assert await numbers(bus.history(institution="north")) == []


async def test_a_replay_goes_to_one_subscriber_and_only_what_it_wants(bus: Bus) -> None:
    one, other = listener(bus, "*", "one"), listener(bus, "*", "other")
    of_a = listener(bus, "exam:*", "of_a", tenants="a")
    began = await publish(bus, 12)
    for got in (one, other, of_a):
        got.clear()
    said = await bus.replay("one", "exam:*", since=began + 2, until=began + 11, tenant="b")
    assert (said.found, said.enqueued, said.more) == (2, 2, False)
    (job, *_) = [job async for job in bus.queue.iter_jobs() if job.meta.get("replay") == said.name]
    assert job.priority == Priority.LOW
    await drain(bus.queue, bus.functions())
    assert sorted(one) == [("b", 5), ("b", 7)]
    assert (other, of_a) == ([], [])
    assert (await bus.replay("of_a")).found == 4
    await drain(bus.queue, bus.functions())
    assert sorted(of_a) == [("a", 2), ("a", 4), ("a", 8), ("a", 10)]
    assert other == []


async def test_what_a_handler_publishes_when_an_event_is_replayed_to_it_is_the_same_event(bus: Bus) -> None:
    others = listener(bus, "notification:sent", "others")
    corrected = False

    @bus.subscribe("grade:updated")
    async def tell(ctx: dict[str, Any], event: Event) -> None:
        await bus.publish("notification:sent", {"n": event.data["n"]})
        if corrected:
            await bus.publish("notification:sent", {"n": 100})

    await publish(bus, 4)
    assert sorted(others) == [("a", 0), ("b", 3)]
    await bus.replay("tell")
    await drain(bus.queue, bus.functions())
    assert len(others) == 2
    corrected = True
    await bus.replay("tell")
    await drain(bus.queue, bus.functions())
    assert sorted(others) == [("a", 0), ("a", 100), ("b", 3), ("b", 100)]


async def test_a_replay_that_is_repeated_under_its_name_delivers_nothing_twice(bus: Bus) -> None:
    got = listener(bus, "*", "got")
    await publish(bus, 10)
    got.clear()
    first = await bus.replay("got", limit=4, name="monday")
    assert (first.found, first.enqueued, first.more) == (4, 4, True)
    await drain(bus.queue, bus.functions())
    again = await bus.replay("got", name="monday")
    assert (again.found, again.enqueued, again.more) == (10, 6, False)
    await drain(bus.queue, bus.functions())
    assert sorted(n for _, n in got) == list(range(10))
    assert (await bus.replay("got", name="tuesday")).enqueued == 10
    for wrong in ({"limit": 0}, {"name": "a|b"}):
        with pytest.raises(UsageError, match="replay"):
            await bus.replay("got", **wrong)  # type: ignore[arg-type]  # one or the other


async def test_who_subscribes_later_gets_the_past_by_a_replay(bus: Bus) -> None:
    await publish(bus, 6)
    late = listener(bus, "grade:*", "late")
    await bus.start()
    assert late == []
    assert (await bus.replay("late")).enqueued == 2
    await drain(bus.queue, bus.functions())
    assert sorted(late) == [("a", 0), ("b", 3)]


async def test_the_history_is_bounded_by_number_and_by_age(make_queue: Callable[..., Queue]) -> None:
    queue = make_queue("bounded", **QUICK)
    bus = Bus(queue, history_events=300)
    await bus.publish_many(Event(type="vote.created", data={"n": n}) for n in range(1000))
    await drain(queue, bus.functions(), slots=100, follow_time=False)
    kept = await numbers(bus.history())
    assert 300 <= len(kept) <= 400, "to the next node of the stream, of 100 events"
    assert max(kept) == 999
    old = queue.namespace("bus:history")
    await queue.redis.delete(old)
    for n in range(250):
        await queue.redis.xadd(old, {"event": Event(type="vote.created", data={"n": n}).to_json()}, id=f"{n + 1}-0")
    await bus.publish("vote.created", {"n": 999})
    await drain(queue, bus.functions())
    assert 999 in (kept := await numbers(bus.history()))
    assert len(kept) <= 101, "those of 1970 are older than the seven days, to the next node"


async def test_a_live_view_sees_what_it_asks_for_while_it_listens(bus: Bus) -> None:
    await publish(bus, 2)
    async with bus.live("exam:*", tenant="a") as view:
        await publish(bus, 6)
        await bus.broadcast("exam:created", {"n": 100}, tenant="a")
        await bus.broadcast("exam:created", {"n": 101}, tenant="b")
        await bus.broadcast("exam:created", {"n": 102}, tenant="a")
        seen = []
        async with asyncio.timeout(10):
            async for event in view:
                seen.append(event.data["n"])
                if event.data["n"] == 102:
                    break
    assert sorted(seen[:2]) == [2, 4], "two jobs publish them, whichever is first"
    assert seen[2:] == [100, 102]
    assert 100 not in await numbers(bus.history()), "what is broadcast is not kept"
    assert await bus.queue.count("incomplete") == 0


async def test_a_live_view_whose_broker_is_away_keeps_no_connection(
    make_queue: Callable[..., Queue], tmp_path: Path
) -> None:
    bus = Bus(make_queue("gone", url=f"unix://{tmp_path}/none"))
    view = bus.live()
    for _ in range(2):
        with pytest.raises(AWAY):
            await view.__aenter__()
        assert view._pubsub is None


async def test_an_event_is_recorded_once_also_where_live_views_may_not_be_told(
    redis_url: str, make_queue: Callable[..., Queue], caplog: pytest.LogCaptureFixture
) -> None:
    server = make_queue("school", **QUICK).redis
    await server.execute_command("ACL SETUSER", "deaf", "on", ">deaf", "~*", "resetchannels", "&saq:job:*", "+@all")
    bus = Bus(make_queue("school", url=redis_url.replace("://", "://deaf:deaf@"), **QUICK))
    got = listener(bus, "*", "got")
    await publish(bus, 3)
    assert sorted(n for _, n in got) == [0, 1, 2]
    assert sorted(await numbers(bus.history())) == [0, 1, 2]
    assert [record.getMessage() for record in caplog.records if "live views cannot be told" in record.getMessage()]
    await server.execute_command("ACL DELUSER", "deaf")


async def test_a_live_view_without_a_block_and_through_a_broken_connection(bus: Bus) -> None:
    seen: list[Any] = []

    async def watch() -> None:
        async for event in bus.live():
            seen.append(event.data["n"])

    watching = asyncio.create_task(watch())
    async with asyncio.timeout(20):
        while 1 not in seen:
            await bus.broadcast("exam:created", {"n": 1})
            await asyncio.sleep(0.01)
        assert await bus.queue.redis.client_kill_filter(_type="pubsub") >= 1
        while 2 not in seen:
            await bus.broadcast("exam:created", {"n": 2})
            await asyncio.sleep(0.01)
    watching.cancel()
    await asyncio.wait([watching])
    assert watching.cancelled()
