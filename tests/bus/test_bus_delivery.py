"""Each subscriber gets each event it wants, once, whatever becomes of the others."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from saq.job import Job, Status
from saq.worker import Worker as SaqWorker

from saqkit import Bus, Event, NewJob, Queue
from saqkit.queue.audit import audit
from saqkit.queue.dead_letters import dead_letters, replay
from saqkit.spec.backoff import Retry
from saqkit.spec.topology import RunningLimit
from saqkit.testing import advance, drain
from saqkit.testing.queues import QUICK
from saqkit.worker.worker import Worker

Until = Callable[..., Awaitable[float]]
AT_ONCE = Retry(max_attempts=3, backoff="fixed", delay_s=0)


@asynccontextmanager
async def working(bus: Bus, kind: str = "ours", slots: int = 10) -> AsyncIterator[None]:
    """A worker of the bus in this process."""
    if kind == "saq":
        saqs: SaqWorker[Any] = SaqWorker(
            bus.queue, bus.functions(), concurrency=slots, startup=bus.start, shutdown=bus.stop
        )  # type: ignore[type-var]  # SAQ's context is a TypedDict, ours a dict
        task = asyncio.create_task(saqs.start())
        try:
            yield
        finally:
            await saqs.stop()
            await asyncio.wait([task])
        return
    worker = Worker({bus.queue.name: bus.queue}, dict(bus.functions()), {bus.queue.name: slots}, grace_s=1.0)
    await bus.start()
    task = asyncio.create_task(worker.run())
    try:
        yield
    finally:
        worker.stop()
        await task
        await bus.stop()


def listener(bus: Bus, topics: Any, name: str, **options: Any) -> list[Event]:
    """A subscriber that writes down what it gets."""
    got: list[Event] = []

    async def handle(ctx: dict[str, Any], event: Event) -> None:
        got.append(event)

    bus.subscribe(topics, name=name, **options)(handle)
    return got


def drained(queue: Queue) -> Callable[[], Awaitable[bool]]:
    async def check() -> bool:
        return await queue.count("incomplete") == 0

    return check


async def route(bus: Bus) -> None:
    """Run the next job, which routes an event."""
    job = await bus.queue.dequeue(timeout=5)
    assert job is not None
    await dict(bus.functions())["events"]({"job": job}, **(job.kwargs or {}))
    await bus.queue.finish(job, Status.COMPLETE)


@pytest.mark.row("002.11", "004.7")
@pytest.mark.parametrize("kind", ["ours", "saq"])
async def test_every_subscriber_gets_every_event_once(bus: Bus, until: Until, kind: str) -> None:
    listeners = [listener(bus, "attendance:*", f"s{n}") for n in range(3)]
    async with working(bus, kind):
        published = await bus.publish_many(Event(type="attendance:marked", data={"n": n}) for n in range(40))
        await until(drained(bus.queue), 20)
    assert all(published)
    for got in listeners:
        assert Counter(event.id for event in got) == Counter(one.event.id for one in published)
        assert sorted(event.data["n"] for event in got) == list(range(40))  # type: ignore[type-var]
    assert (await audit(bus.queue)).problems == ()


@pytest.mark.row("004.12")
async def test_a_subscriber_that_fails_dies_alone_after_its_own_attempts(bus: Bus) -> None:
    calls: Counter[str] = Counter()

    @bus.subscribe("grade:updated", retry=AT_ONCE)
    async def thrice(ctx: dict[str, Any], event: Event) -> None:
        calls["thrice"] += 1
        raise RuntimeError("no")

    @bus.subscribe("grade:updated", retry=Retry(max_attempts=1))
    async def once(ctx: dict[str, Any], event: Event) -> None:
        calls["once"] += 1
        raise RuntimeError("no")

    good = listener(bus, "grade:updated", "good")
    for n in range(5):
        await bus.publish("grade:updated", {"n": n})
    await drain(bus.queue, bus.functions())
    assert calls == {"thrice": 15, "once": 5}
    assert len(good) == 5
    letters = [letter async for letter in dead_letters(bus.queue)]
    assert Counter((letter.function, letter.attempts) for letter in letters) == {
        ("events:thrice", 3): 5,
        ("events:once", 1): 5,
    }


async def test_delays_are_those_of_the_subscriber(bus: Bus) -> None:
    @bus.subscribe("grade:updated", retry=Retry(max_attempts=3, backoff="list", delays_s=(7, 40)))
    async def fails(ctx: dict[str, Any], event: Event) -> None:
        raise RuntimeError("no")

    await bus.publish("grade:updated")
    began = time.monotonic()
    done = await drain(bus.queue, bus.functions())
    assert done.travelled_s < 49
    assert done.travelled_s + time.monotonic() - began >= 47, "what passes by itself need not be travelled"
    assert len(done.dead) == 1


async def test_one_that_hangs_takes_its_own_share_of_the_slots_and_dies_by_its_timeout(
    make_queue: Callable[..., Queue], until: Until
) -> None:
    queue = make_queue("limited", **QUICK, running_limits=[RunningLimit(key="subscriber", limit=2)])
    bus = Bus(queue)
    running, most, ended = 0, 0, asyncio.Event()

    @bus.subscribe("vote.created", retry=Retry(max_attempts=1), timeout_s=1.0)
    async def hangs(ctx: dict[str, Any], event: Event) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        try:
            await ended.wait()
        finally:
            running -= 1

    quick = listener(bus, "vote.created", "quick")

    async def all_quick() -> bool:
        return len(quick) == 20

    async with working(bus, slots=4):
        await bus.publish_many(Event(type="vote.created") for _ in range(20))
        await until(all_quick, 10)
        assert most == 2

        async def dead() -> bool:
            return await queue.count("dead") >= 2

        await until(dead, 10)
        assert await bus.unsubscribe("hangs") > 0
    assert [letter.function async for letter in dead_letters(queue, 2)] == ["events:hangs"] * 2


@pytest.mark.row("004.8", "004.15")
async def test_filters_by_topic_tenant_and_institution(bus: Bus) -> None:
    everything = listener(bus, ["exam:*", "grade:updated"], "everything")
    of_a = listener(bus, "exam:*", "of_a", tenants="a")
    of_b_or_c = listener(bus, "exam:*", "of_b_or_c", tenants=["b", "c"])
    of_north = listener(bus, "exam:*", "of_north", tenants="a", institutions="north")
    for topic in ("exam:created", "grade:updated", "class:created"):
        for tenant in ("a", "b", ""):
            for institution in ("north", "south"):
                await bus.publish(topic, tenant=tenant, institution=institution)
    await drain(bus.queue, bus.functions())
    assert Counter(event.type for event in everything) == {"exam:created": 6, "grade:updated": 6}
    assert [(event.tenant, event.institution) for event in of_a] == [("a", "north"), ("a", "south")]
    assert [(event.tenant, event.institution) for event in of_b_or_c] == [("b", "north"), ("b", "south")]
    assert [(event.tenant, event.institution) for event in of_north] == [("a", "north")]


async def test_the_same_id_is_delivered_once_also_when_it_is_done_until_it_is_forgotten(queue: Queue) -> None:
    bus = Bus(queue, remember_s=100)
    got = listener(bus, "reward.earned", "tell")
    first = await bus.publish("reward.earned", {"n": 1}, id="r1")
    second = await bus.publish("reward.earned", {"n": 2}, id="r1")
    assert (bool(first), bool(second)) == (True, False)
    await drain(queue, bus.functions())
    assert not await bus.publish("reward.earned", {"n": 3}, id="r1")
    assert await bus.publish("reward.earned", {"n": 4}, id="r1", tenant="other"), "another tenant's is another event"
    await drain(queue, bus.functions())
    await advance(queue, 50)
    assert not await bus.publish("reward.earned", {"n": 5}, id="r1")
    await advance(queue, 60)
    assert await bus.publish("reward.earned", {"n": 6}, id="r1")
    await drain(queue, bus.functions())
    assert [(event.tenant, event.data["n"]) for event in got] == [("", 1), ("other", 4), ("", 6)]


async def test_a_route_that_runs_twice_delivers_and_records_once(bus: Bus) -> None:
    """Its process may die between routing and saying so; what was enqueued then is known by its key."""
    got = listener(bus, "reward.earned", "tell")
    published = await bus.publish("reward.earned")
    await drain(bus.queue, bus.functions())
    job = await bus.queue.job(f"event:|{published.event.id}")
    assert job is not None
    await bus.queue.enqueue(Job("events", key="again", kwargs=job.kwargs))
    await drain(bus.queue, bus.functions())
    assert len(got) == 1
    assert [event.id async for event in bus.history()] == [published.event.id]


@pytest.mark.row("004.16")
async def test_a_delivery_whose_handler_has_ended_is_not_handled_again(bus: Bus) -> None:
    """Its process may die, or its time be over, between the handler's end and that of the job."""
    got = listener(bus, "reward.earned", "tell", retry=AT_ONCE)
    await bus.publish("reward.earned")
    await route(bus)
    for end in ("retry", "done"):
        job = await bus.queue.dequeue(timeout=5)
        assert job is not None
        await dict(bus.functions())["events:tell"]({"job": job}, **(job.kwargs or {}))
        await (bus.queue.retry(job, "lost") if end == "retry" else bus.queue.finish(job, Status.COMPLETE))
    assert len(got) == 1
    found = await bus.statistics()
    assert found[found.subscriber == "tell"].completed.tolist() == [1]


@pytest.mark.row("004.16")
async def test_nor_is_one_that_is_released_or_whose_claim_was_lost(bus: Bus) -> None:
    """Such a job is at its first attempt again."""
    got = listener(bus, "reward.earned", "tell", retry=AT_ONCE)
    await bus.publish("reward.earned")
    await route(bus)
    for end in ("release", "done"):
        job = await bus.queue.dequeue(timeout=5)
        assert job is not None
        claim = bus.queue.claim_of(job)
        assert claim is not None
        assert (claim.attempt, claim.crashes) == (1, 0)
        await dict(bus.functions())["events:tell"]({"job": job}, **(job.kwargs or {}))
        await (bus.queue.release(job) if end == "release" else bus.queue.finish(job, Status.COMPLETE))
    lost = Job("events:tell", key=job.key, kwargs=job.kwargs)
    assert bus.queue.claim_of(lost) is None
    await dict(bus.functions())["events:tell"]({"job": lost}, **(job.kwargs or {}))
    assert len(got) == 1


@pytest.mark.row("004.8", "004.16")
async def test_what_a_handler_publishes_is_caused_by_its_event_and_published_once(bus: Bus) -> None:
    attempts = 0

    @bus.subscribe("exam:results_published", retry=AT_ONCE)
    async def grade(ctx: dict[str, Any], event: Event) -> None:
        nonlocal attempts
        attempts += 1
        for pupil in (1, 2):
            await bus.publish("grade:updated", {"pupil": pupil, "of": {"exam": 3, "class": 7}})
        assert bus.trace() == {"event_id": event.id, "correlation_id": "request-9", "tenant": "a"}
        if attempts < 3:
            raise RuntimeError("not yet")

    @bus.subscribe("grade:updated")
    async def tell(ctx: dict[str, Any], event: Event) -> None:
        await bus.publish("notification:sent", institution="south", after=ctx["job"])

    graded = listener(bus, "grade:updated", "graded")
    sent = listener(bus, "notification:sent", "sent")
    first = await bus.publish("exam:results_published", tenant="a", institution="north", correlation_id="request-9")
    await drain(bus.queue, bus.functions())
    assert attempts == 3
    assert [event.data["pupil"] for event in graded] == [1, 2]
    assert {(e.tenant, e.institution, e.correlation_id, e.causation_id) for e in graded} == {
        ("a", "north", "request-9", first.event.id)
    }
    assert Counter(event.causation_id for event in sent) == Counter(event.id for event in graded)
    assert {(e.tenant, e.institution, e.correlation_id) for e in sent} == {("a", "south", "request-9")}
    assert bus.trace() == {}


async def test_a_handler_that_is_tried_again_and_publishes_other_events_loses_none(bus: Bus) -> None:
    """It goes on where it was, for instance, and does not begin again: what it says decides, not how much it said."""
    attempts = 0

    @bus.subscribe("exam:results_published", retry=AT_ONCE)
    async def grade(ctx: dict[str, Any], event: Event) -> None:
        nonlocal attempts
        attempts += 1
        for pupil in {1: (1, 2, 2), 2: (3, 2), 3: (4,)}[attempts]:
            await bus.publish("grade:updated", {"pupil": pupil}, institution="north")
        await bus.publish("grade:updated", {"pupil": 1}, institution="north", user=attempts)
        await bus.publish("notification:sent", {"attempt": attempts}, id=f"{event.id}.sent")
        if attempts < 3:
            raise RuntimeError("not yet")

    graded, sent = listener(bus, "grade:updated", "graded"), listener(bus, "notification:sent", "sent")
    await bus.publish("exam:results_published")
    await drain(bus.queue, bus.functions())
    assert Counter(event.data["pupil"] for event in graded if not event.user) == {1: 1, 2: 2, 3: 1, 4: 1}
    assert sorted(event.user for event in graded if event.user) == [1, 2, 3]  # type: ignore[type-var]  # all are int
    assert [event.data for event in sent] == [{"attempt": 1}], "an event of one id is one, whatever it says"


async def test_a_handler_speaks_for_its_own_tenant_only(bus: Bus) -> None:
    @bus.subscribe("grade:updated", retry=Retry(max_attempts=1))
    async def crosses(ctx: dict[str, Any], event: Event) -> None:
        await bus.publish("notification:sent", tenant="b")

    got = listener(bus, "notification:sent", "got")
    await bus.publish("grade:updated", tenant="a")
    await bus.publish("grade:updated")
    done = await drain(bus.queue, bus.functions())
    (dead,) = done.dead
    assert "speaks for the tenant of its event" in str(dead.exception)
    assert [event.tenant for event in got] == ["b"], "an event of nobody may speak for anybody"


async def test_after_a_job_the_event_is_published_by_its_end_and_not_if_it_fails(bus: Bus) -> None:
    got = listener(bus, "reward.earned", "tell")
    attempts = 0

    async def pay(ctx: dict[str, Any]) -> None:
        nonlocal attempts
        attempts += 1
        await bus.publish("reward.earned", {"attempt": attempts}, after=ctx["job"])
        assert await bus.queue.count("queued") == 0
        if attempts == 1:
            raise RuntimeError("declined")

    await bus.queue.enqueue("pay", retries=2)
    await drain(bus.queue, [("pay", pay), *bus.functions()])
    assert [event.data for event in got] == [{"attempt": 2}]


@pytest.mark.row("004.14")
async def test_who_has_unsubscribed_gets_nothing_more_also_not_what_waits(bus: Bus) -> None:
    stays, leaves = listener(bus, "exam:*", "stays"), listener(bus, "exam:*", "leaves")
    await bus.publish("exam:created")
    await drain(bus.queue, bus.functions())
    await bus.publish_many(Event(type="exam:created") for _ in range(3))

    for _ in range(3):
        await route(bus)
    assert await bus.queue.count("queued") == 6
    assert sorted(await bus.subscriptions()) == ["leaves", "stays"]
    assert await bus.unsubscribe("leaves") == 3
    await bus.publish("exam:created")
    await drain(bus.queue, bus.functions())
    assert (len(stays), len(leaves)) == (5, 1)
    assert sorted(await bus.subscriptions()) == ["stays"]
    found = await bus.statistics()
    assert found[found.subscriber == "leaves"].empty, "nor is it counted any more"


@pytest.mark.row("004.14")
async def test_who_unsubscribes_amid_a_delivery_is_not_tried_again(bus: Bus) -> None:
    """Nor is delivered to it what was routed meanwhile, or is replayed by an operator."""
    calls = Counter[int]()

    @bus.subscribe("exam:created", retry=AT_ONCE)
    async def leaves(ctx: dict[str, Any], event: Event) -> None:
        number = event.data["n"]
        assert isinstance(number, int)
        calls[number] += 1
        if number == 2:
            await bus.unsubscribe("leaves")
        raise RuntimeError("no")

    await bus.publish("exam:created", {"n": 1})
    await drain(bus.queue, bus.functions())
    (letter,) = [letter async for letter in dead_letters(bus.queue)]
    await bus.publish("exam:created", {"n": 2})
    await route(bus)
    delivery = await bus.queue.dequeue(timeout=5)
    late = await bus.publish("exam:created", {"n": 3})
    routing = await bus.queue.dequeue(timeout=5)
    assert delivery is not None
    assert routing is not None
    await dict(bus.functions())["events"]({"job": routing}, **(routing.kwargs or {}))
    with pytest.raises(RuntimeError):
        await dict(bus.functions())["events:leaves"]({"job": delivery}, **(delivery.kwargs or {}))
    await bus.queue.finish(routing, Status.COMPLETE)
    await bus.queue.retry(delivery, "no")
    assert await bus.queue.job(f"events:leaves:|{late.event.id}") is not None
    await replay(bus.queue, [letter.key])
    done = await drain(bus.queue, bus.functions())
    assert calls == {1: 3, 2: 1}
    assert done.dead == ()
    assert await bus.queue.count("dead") == 0
    found = await bus.statistics()
    assert found[found.subscriber == "leaves"].empty


async def test_deliveries_have_the_events_priority_or_their_own(bus: Bus) -> None:
    order: list[str] = []
    for name, level in [("plain", None), ("urgent", "critical")]:

        async def handle(ctx: dict[str, Any], event: Event, name: str = name) -> None:
            order.append(f"{name} {event.data['n']}")

        bus.subscribe("exam:created", name=name, priority=level)(handle)
    await bus.publish("exam:created", {"n": 1}, priority="low")
    await bus.publish("exam:created", {"n": 2}, priority="high")
    await drain(bus.queue, bus.functions())
    assert order == ["urgent 2", "plain 2", "urgent 1", "plain 1"]


async def test_subscribers_of_other_processes_are_known(queue: Queue, make_queue: Callable[..., Queue]) -> None:
    here, there, producer = Bus(queue), Bus(make_queue("school", **QUICK)), Bus(make_queue("school", **QUICK))
    got = listener(there, "exam:*", "there", retry=Retry(max_attempts=2))
    await there.start()
    await there.stop()
    await producer.publish("exam:created")
    await route(here)
    (job,) = [job async for job in queue.iter_jobs([Status.QUEUED])]
    assert (job.retries, job.timeout) == (2, 60)
    await drain(there.queue, there.functions())
    assert len(got) == 1


async def test_the_ids_stand_with_every_job_and_with_what_a_handler_enqueues(bus: Bus) -> None:
    @bus.subscribe("vote.created")
    async def email(ctx: dict[str, Any], event: Event) -> None:
        await bus.queue.follow_up(ctx["job"], "send_email", to=event.user, meta=bus.trace())

    seen: list[dict[str, Any]] = []

    async def send_email(ctx: dict[str, Any], *, to: int) -> None:
        seen.append(ctx["job"].meta)

    published = await bus.publish("vote.created", user=7, tenant="a")
    await drain(bus.queue, [("send_email", send_email), *bus.functions()])
    (meta,) = seen
    ids = {"event_id": published.event.id, "correlation_id": published.event.id, "tenant": "a"}
    assert meta == {**ids, "parent": f"events:email:a|{published.event.id}"}


@pytest.mark.row("002.11", "002.13")
async def test_statistics_by_topic_and_subscriber(bus: Bus) -> None:
    @bus.subscribe(["exam:created", "grade:updated"], retry=AT_ONCE)
    async def grades(ctx: dict[str, Any], event: Event) -> None:
        if event.data.get("bad"):
            raise RuntimeError("bad")

    @bus.subscribe("exam:created", retry=Retry(max_attempts=2, delay_s=3600))
    async def slow(ctx: dict[str, Any], event: Event) -> None:
        raise RuntimeError("later")

    for n in range(4):
        await bus.publish("exam:created", {"bad": n == 0}, tenant="a" if n < 3 else "b")
    await drain(bus.queue, bus.functions(), follow_time=False)
    await bus.publish("grade:updated", tenant="a")
    await bus.queue.submit("something_else")
    await bus.queue.submit_batch([NewJob("more")])
    found = await bus.statistics()
    assert [list(row) for row in found.itertuples(index=False)] == [
        ["exam:created", "", 0, 0, 0, 4, 0],
        ["exam:created", "grades", 0, 0, 0, 3, 1],
        ["exam:created", "slow", 0, 4, 0, 0, 0],
        ["grade:updated", "", 1, 0, 0, 0, 0],
        ["grade:updated", "grades", 0, 0, 0, 0, 0],
    ]
    of_a = await bus.statistics(tenant="a")
    assert [list(row) for row in of_a.itertuples(index=False)][:3] == [
        ["exam:created", "", 0, 0, 0, 3, 0],
        ["exam:created", "grades", 0, 0, 0, 2, 1],
        ["exam:created", "slow", 0, 3, 0, 0, 0],
    ]


async def test_statistics_of_nothing_have_the_same_columns(bus: Bus) -> None:
    from saqkit.bus.counting import COLUMNS

    found = await bus.statistics()
    assert dict(found.dtypes.astype(str)) == COLUMNS
    assert len(found) == 0
