"""Running what is queued in this process: what is reported, in which order, and when it ends."""

from __future__ import annotations

import asyncio
import time
from collections.abc import Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit import Queue
from saqkit.errors import RunError, UsageError
from saqkit.queue.audit import audit
from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.replaying import relay
from saqkit.spec.backoff import Retry
from saqkit.spec.topology import RateLimit
from saqkit.testing import Attempt, Drained, advance, drain

Factory = Callable[..., Queue]


async def greet(ctx: dict[str, Any], *, name: str) -> str:
    return f"hello {name}"


async def test_it_returns_results_and_errors_in_order(saqkit_queue: Queue) -> None:
    fault = ValueError("no such user")

    async def fail(ctx: dict[str, Any], *, user: int) -> None:
        raise fault

    await saqkit_queue.enqueue("greet", name="Ada")
    await saqkit_queue.enqueue("fail", key="f", user=3, retries=2)
    drained = await drain(saqkit_queue, [greet, ("fail", fail)])
    name = saqkit_queue.name
    first = drained.attempts[0]
    assert (first.function, first.queue, first.number, first.outcome) == ("greet", name, 1, "done")
    assert (first.kwargs, first.result, first.exception, first.error) == ({"name": "Ada"}, "hello Ada", None, "")
    assert drained.attempts[1:] == (
        Attempt("f", "fail", name, 1, "retry", {"user": 3}, None, fault, "ValueError"),
        Attempt("f", "fail", name, 2, "dead", {"user": 3}, None, fault, "ValueError"),
    )
    assert (drained.done, drained.retried, drained.dead) == tuple((attempt,) for attempt in drained.attempts)
    assert drained.failed == drained.attempts[1:]
    expected = "<Drained: 1 done, 1 retried, 1 dead: greet 1 done, fail 1 retry ValueError, fail 2 dead ValueError>"
    assert repr(drained) == expected
    with pytest.raises(ValueError, match="no such user"):
        drained.raise_first()
    assert [letter.key async for letter in dead_letters(saqkit_queue)] == ["f"]


async def test_nothing_to_do_is_done_at_once(saqkit_queue: Queue) -> None:
    began = time.monotonic()
    drained = await drain(saqkit_queue, {})
    assert (drained, repr(drained)) == (Drained(), "<Drained: nothing ran>")
    drained.raise_first()
    assert time.monotonic() - began < 5


async def test_jobs_that_jobs_enqueue_are_run_too_over_several_queues(saqkit_queue_factory: Factory) -> None:
    first, second = saqkit_queue_factory(name="first"), saqkit_queue_factory(name="second")

    async def count(ctx: dict[str, Any], *, left: int) -> None:
        if left:
            await (second if ctx["queue"] is first else first).enqueue("count", left=left - 1)

    await first.enqueue("count", left=5)
    drained = await drain([first, second], {"count": count})
    assert [attempt.kwargs["left"] for attempt in drained.done] == [5, 4, 3, 2, 1, 0]
    assert [attempt.queue for attempt in drained.done] == [first.name, second.name] * 3


@pytest.mark.parametrize("names", [("first", "second"), ("second", "first")])
async def test_what_is_on_its_way_into_another_queue_is_run_too(
    saqkit_queue_factory: Factory, names: tuple[str, str], monkeypatch: pytest.MonkeyPatch
) -> None:
    queues = {name: saqkit_queue_factory(name=name) for name in names}

    async def late(queue: Queue) -> int:
        await asyncio.sleep(0.2)
        return await relay(queue)

    async def parent(ctx: dict[str, Any]) -> None:
        await queues["second"].follow_up(ctx["job"], "greet", name="Ada")

    monkeypatch.setattr("saqkit.queue.following.relay", late)
    await queues["first"].enqueue("parent")
    drained = await drain(queues.values(), [("parent", parent), greet])
    assert [attempt.function for attempt in drained.done] == ["parent", "greet"]


async def test_what_nobody_has_delivered_is(saqkit_queue_factory: Factory, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = saqkit_queue_factory(name="first"), saqkit_queue_factory(name="second")
    await first.enqueue("parent")
    job = await first.dequeue(timeout=5)
    assert job is not None
    await second.follow_up(job, "greet", name="Ada")
    with monkeypatch.context() as patch:
        patch.setattr("saqkit.queue.following.Courier.go", lambda _: None)
        await first.finish(job, Status.COMPLETE)
    assert (await audit(first)).outgoing == 1
    drained = await drain([second, first], [greet], timeout_s=10)
    assert [attempt.queue for attempt in drained.done] == [second.name]


async def test_what_is_enqueued_after_a_job_has_ended_is_run_too(saqkit_queue: Queue) -> None:
    async def after(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(0.1)  # the queue looks empty meanwhile
        if ctx["job"].kwargs["name"] == "Ada":
            await saqkit_queue.enqueue("greet", name=ctx["motto"])

    await saqkit_queue.enqueue("greet", name="Ada")
    drained = await drain(saqkit_queue, [greet], context={"motto": "Grace"}, after_process=after)
    assert [attempt.result for attempt in drained.done] == ["hello Ada", "hello Grace"]


async def test_retries_of_days_take_no_time(saqkit_queue_factory: Factory) -> None:
    queue = saqkit_queue_factory(policies={"fail": Retry(max_attempts=4, backoff="list", delays_s=(60, 3600, 86_400))})

    async def fail(ctx: dict[str, Any]) -> None:
        raise ConnectionError

    await queue.enqueue("fail")
    await queue.enqueue("greet", name="Ada", scheduled=int(time.time()) + 600)
    began = time.monotonic()
    drained = await drain(queue, {"fail": fail, "greet": greet})
    assert time.monotonic() - began < 10
    assert [str(attempt) for attempt in drained.attempts] == [
        "fail 1 retry ConnectionError",
        "fail 2 retry ConnectionError",
        "greet 1 done",
        "fail 3 retry ConnectionError",
        "fail 4 dead ConnectionError",
    ]
    delays_s = 60 + 3600 + 86_400
    assert delays_s - 10 < drained.travelled_s <= delays_s + 3 * 2 * queue.tick_s


async def test_without_following_time_what_is_delayed_stays(saqkit_queue: Queue) -> None:
    async def fail(ctx: dict[str, Any]) -> None:
        raise ConnectionError

    await saqkit_queue.enqueue("fail", retries=2, retry_delay=30)
    assert repr(await drain(saqkit_queue, {"fail": fail}, follow_time=False)) == (
        "<Drained: 1 retried: fail 1 retry ConnectionError>"
    )
    assert await saqkit_queue.count("scheduled") == 1
    await advance(saqkit_queue, 31)
    drained = await drain(saqkit_queue, {"fail": fail}, follow_time=False)
    assert repr(drained) == "<Drained: 1 dead: fail 2 dead ConnectionError>", "its time has come"


async def test_a_rate_limit_is_kept_but_not_waited_for(saqkit_queue_factory: Factory) -> None:
    queue = saqkit_queue_factory(rate_limit=RateLimit(limit=2, period_s=3600))
    running = most = 0

    async def note(ctx: dict[str, Any]) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.02)
        running -= 1

    await queue.enqueue_many(Job("note") for _ in range(6))
    drained = await drain(queue, {"note": note}, slots=6)
    assert (len(drained.done), most) == (6, 2)
    assert 2 * 3600 - 10 < drained.travelled_s <= 2 * 3600 + 1


async def test_one_slot_runs_them_one_after_the_other_in_their_order(saqkit_queue: Queue) -> None:
    await saqkit_queue.enqueue_many(
        Job("greet", kwargs={"name": str(n)}, priority=level) for n, level in enumerate((4, 3, 1, 2, 1))
    )
    drained = await drain(saqkit_queue, [greet])
    assert [attempt.kwargs["name"] for attempt in drained.done] == ["2", "4", "3", "1", "0"]


async def test_it_ends_when_enough_has_happened(saqkit_queue: Queue) -> None:
    async def again(ctx: dict[str, Any]) -> None:  # for ever, as a job does that keeps itself going
        await saqkit_queue.enqueue("again", scheduled=int(time.time()) + 60)

    await saqkit_queue.enqueue("again")
    drained = await drain(saqkit_queue, {"again": again}, until=lambda so_far: len(so_far.done) >= 3)
    assert len(drained.done) >= 3
    assert await saqkit_queue.count("incomplete") == 1


async def test_the_first_error_is_raised_on_request(saqkit_queue: Queue) -> None:
    async def fail(ctx: dict[str, Any]) -> None:
        raise ValueError("no such user")

    await saqkit_queue.enqueue("fail", retries=3, retry_delay=30)
    with pytest.raises(ValueError, match="no such user"):
        await drain(saqkit_queue, {"fail": fail}, raise_errors=True)
    found = await audit(saqkit_queue)
    assert (found.scheduled, found.problems) == (1, ())


async def test_a_job_without_a_function_and_one_that_takes_too_long_have_an_error(saqkit_queue: Queue) -> None:
    async def hang(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    await saqkit_queue.enqueue("nobody_knows", retries=5)
    await saqkit_queue.enqueue("hang", timeout=1)
    drained = await drain(saqkit_queue, {"hang": hang})
    assert repr(drained) == "<Drained: 2 dead: nobody_knows 1 dead UnknownFunction, hang 1 dead TimeoutError>"
    with pytest.raises(RunError, match=r"nobody_knows, attempt 1 of job .*: UnknownFunction"):
        drained.raise_first()


async def test_a_drain_that_does_not_end_says_what_is_left(saqkit_queue: Queue) -> None:
    async def hang(ctx: dict[str, Any]) -> None:
        await asyncio.sleep(60)

    await saqkit_queue.enqueue("greet", name="Ada")
    await saqkit_queue.enqueue("hang", key="h", timeout=0)
    await saqkit_queue.enqueue("greet", name="Grace")
    with pytest.raises(RunError) as caught:
        await drain(saqkit_queue, {"greet": greet, "hang": hang}, timeout_s=0.3)
    assert str(caught.value) == (
        f"not drained within 0.3 s: queue {saqkit_queue.name} has 1 queued, 1 active, 0 delayed; running: hang 1; "
        "so far <Drained: 1 done: greet 1 done>"
    )
    job = await saqkit_queue.job("h")
    assert job is not None
    assert job.status == Status.QUEUED, "it was given back"


async def test_a_paused_queue_is_named_as_the_reason(saqkit_queue: Queue) -> None:
    await saqkit_queue.redis.set(saqkit_queue.namespace("paused"), 1)
    await saqkit_queue.enqueue("greet", name="Ada")
    with pytest.raises(RunError, match="1 queued, 0 active, 0 delayed, and is paused"):
        await drain(saqkit_queue, [greet], timeout_s=0.2)


@pytest.mark.parametrize("recorded", [False, True])
async def test_a_recording_is_left_as_it_was(saqkit_queue: Queue, recorded: bool) -> None:
    flag, trace = saqkit_queue.namespace("recording"), saqkit_queue.namespace("trace")
    for length in range(2):
        if recorded:
            await saqkit_queue.redis.set(flag, 1)
        await saqkit_queue.enqueue("greet", name="Ada")
        assert len((await drain(saqkit_queue, [greet])).done) == 1
        assert await saqkit_queue.redis.exists(flag) == recorded
        assert await saqkit_queue.redis.llen(trace) == (length + 1) * recorded  # type: ignore[misc]


async def test_what_is_no_function_is_refused(saqkit_queue: Queue) -> None:
    with pytest.raises(UsageError, match="no function with a name"):
        await drain(saqkit_queue, [3])  # type: ignore[list-item]
