"""Values that nobody would think of: refused before anything is stored, or a job with them runs like any other."""

from __future__ import annotations

import asyncio
import pickle
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import SaqkitError, UsageError
from saqkit.queue.counting import recorded_attempts, statistics
from saqkit.queue.dead_letters import dead_letters_frame
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import NewJob
from saqkit.spec.topology import RateLimit, RunningLimit

MakeQueue = Callable[..., Queue]
Sound = Callable[[Queue], Awaitable[None]]

TENANTS: dict[Any, str] = {
    **{tenant: tenant for tenant in ("", "ünï {x}:y 日本", '"\\\n', "x" * 3000)},
    **{None: "", 0: "0", 7: "7", 1.5: "1.5", True: "true"},
}


async def take(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    return job


async def test_a_priority_that_equals_a_level_is_that_level(queue: Queue, sound: Sound) -> None:
    await queue.enqueue("f", key="low", priority=4)
    await queue.enqueue("f", key="high", priority=2.0)
    assert [(await take(queue)).key, (await take(queue)).key] == ["high", "low"]
    await sound(queue)


async def test_a_priority_that_is_none_is_refused(queue: Queue) -> None:
    for priority in (True, 2.5, "high", "2", 5, -1):
        with pytest.raises(UsageError, match="1 critical, 2 high"):
            await queue.enqueue("f", priority=priority)
    for priority in (True, 2.0, 0, "2"):
        with pytest.raises(UsageError, match="there is no priority"):
            await queue.submit("f", priority=priority)  # type: ignore[arg-type]
    await queue.enqueue("f", key="k", priority=3)
    for priority in (True, 2.0, 0, "2"):
        with pytest.raises(UsageError, match="1 critical, 2 high"):
            await queue.set_priority("k", priority)  # type: ignore[arg-type]
    assert (await take(queue)).priority == 3


async def test_a_unique_id_that_is_no_text_is_refused(queue: Queue) -> None:
    for id in (7, "", b"x", True):
        with pytest.raises(UsageError, match="says nothing"):
            await queue.submit("f", unique=id)  # type: ignore[arg-type]
    assert await queue.count("queued") == 0


async def test_statistics_know_a_tenant_by_the_name_that_limits_know(make_queue: MakeQueue, sound: Sound) -> None:
    queue = make_queue(fairness="tenants", running_limits=(RunningLimit(key="tenant", limit=1),))
    await queue.record_attempts(100)
    for tenant in TENANTS:
        assert await queue.enqueue("f", meta={"tenant": tenant})
    waiting = (await statistics(queue, tenants=True)).tenants
    assert waiting is not None
    assert {name: group.waiting for name, group in waiting.items()} == {
        name: list(TENANTS.values()).count(name) for name in TENANTS.values()
    }
    jobs = [await take(queue) for _ in set(TENANTS.values())]
    running = await queue.redis.hlen(queue.namespace("running"))  # type: ignore[misc]
    assert running == len(set(TENANTS.values()))
    for job in [*jobs, None]:
        await queue.finish(job or await take(queue), Status.COMPLETE)
    ended = (await statistics(queue, tenants=True)).tenants
    assert ended is not None
    assert set(ended) == set(TENANTS.values())
    await sound(queue)


async def test_what_is_recorded_of_jobs_with_odd_meta_and_arguments_can_be_read(queue: Queue) -> None:
    await queue.record_attempts(100)
    for meta in ({"event_at": "yesterday"}, {"parent": 7}, {"event": None, "tenant": ["x"]}):
        await queue.enqueue("f", meta=meta)
        await queue.finish(await take(queue), Status.COMPLETE)
    for users in (5, "all", None):
        await queue.enqueue("f", key="k", users=users)
        await take(queue)
        await queue.cancel_jobs(grace_s=0)
    table = await recorded_attempts(queue)
    assert list(table["outcome"]) == ["done"] * 3 + ["cancelled"] * 3
    assert list(table["parent"]) == ["", "7", "", "", "", ""]


async def test_what_is_recorded_of_bodies_that_are_no_text_can_be_read(make_queue: MakeQueue) -> None:
    queue = make_queue(dump=lambda job: b"\xff" + pickle.dumps(job), load=lambda body: pickle.loads(body[1:]))
    await queue.record_attempts(100)
    await queue.enqueue("f", key="k")
    await take(queue)
    assert (await queue.cancel_keys(["k"])).done == 1
    assert list((await recorded_attempts(queue))["outcome"]) == ["cancelled"]


@pytest.mark.parametrize("times", [{"ttl": 1.5}, {"ttl": 10**18}, {"meta": {"keep_key_s": 1e18}}])
async def test_a_job_ends_however_long_it_is_to_be_kept(queue: Queue, sound: Sound, times: dict[str, Any]) -> None:
    await queue.enqueue("f", key="k", **times)
    await asyncio.wait_for(queue.finish(await take(queue), Status.COMPLETE), 10)
    assert await queue.redis.ttl(queue.key_of("k")) > 0
    await sound(queue)


async def test_a_time_to_keep_a_key_that_is_none_is_refused(queue: Queue) -> None:
    for keep_s in ("x", float("inf"), [1]):
        with pytest.raises(UsageError, match="keep_key_s"):
            await queue.enqueue("f", meta={"keep_key_s": keep_s})


async def test_a_batch_ends_however_long_it_and_dead_letters_are_to_be_kept(
    make_queue: MakeQueue, sound: Sound
) -> None:
    queue = make_queue(dead_retention_s=float("inf"))
    await queue.submit_batch([NewJob("f"), NewJob("f")], id="b", keep_s=1e18)
    for status in (Status.FAILED, Status.COMPLETE):
        await asyncio.wait_for(queue.finish(await take(queue), status, error="ValueError: no"), 10)
    batch = await queue.get_batch("b")
    assert batch is not None
    assert (batch.done, batch.dead, batch.complete) == (1, 1, True)
    await sound(queue)


async def test_the_window_of_a_tenant_may_be_longer_than_the_server_can_keep_a_key(make_queue: MakeQueue) -> None:
    queue = make_queue(tenant_rate_limit=RateLimit(limit=1, period_s=1e30))
    await queue.enqueue_each("f", ({} for _ in range(2)))
    await queue.finish(await take(queue), Status.COMPLETE)
    assert await queue.dequeue(timeout=0.3) is None


async def test_a_setting_that_the_scripts_could_not_write_down_is_refused_and_not_stored(queue: Queue) -> None:
    for name, value in {
        "rate_limit": {"limit": 10**30},
        "tenant_rate_limit": {"limit": 10**10},
        "running_limits": [{"key": "tenant", "limit": 10**30}],
        "weights": {"critical": 1e308, "high": 1, "normal": 1, "low": 1e-308},
    }.items():
        with pytest.raises(SaqkitError, match=name):
            await queue.configure({name: value})
    assert (await queue.settings()).configured == ()


HALF = "caf\udce9.txt"  # what os.listdir makes of a name that is not UTF-8


async def test_a_key_that_cannot_be_written_harms_nobody_else(queue: Queue, sound: Sound) -> None:
    good = [queue.submit("f", key=f"k{n}") for n in range(5)]
    odd = [queue.submit("f", key=HALF), queue.submit("f", unique=HALF)]
    answers = await asyncio.wait_for(asyncio.gather(*good[:2], *odd, *good[2:], return_exceptions=True), 10)
    assert [isinstance(answer, UsageError) for answer in answers] == [False, False, True, True, False, False, False]
    assert await queue.count("queued") == 5
    await sound(queue)


async def test_a_call_that_cannot_be_written_leaves_the_answers_with_their_calls(queue: Queue) -> None:
    await queue.enqueue("f", key="k")
    for wrong in (HALF, True):
        with pytest.raises(Exception, match=r"surrogates|Invalid input"):
            await queue.line.call("GET", wrong)
        assert await asyncio.wait_for(queue.line.call("ECHO", "a"), 5) == b"a"
    assert await queue.slots() is None
    with pytest.raises(UnicodeEncodeError):
        await queue.cancel_keys(["k"], reason=HALF)
    assert (await queue.cancel_keys(["k"], reason="é")).done == 1


@pytest.mark.parametrize("status", [Status.FAILED, Status.ABORTED])
async def test_an_error_that_cannot_be_written_is_kept_as_python_writes_it(queue: Queue, status: Status) -> None:
    await queue.record_attempts(10)
    await queue.enqueue("f", key="k", file=HALF)
    job = await take(queue)
    assert job.kwargs == {"file": HALF}
    await asyncio.wait_for(queue.finish(job, status, error=f"FileNotFoundError: {HALF}"), 10)
    ended = await queue.job("k")
    assert ended is not None
    assert (ended.status, ended.error) == (status, "FileNotFoundError: caf\\udce9.txt")
    letters = await dead_letters_frame(queue)
    assert list(letters["kwargs"]) == ['{"file": "caf\\udce9.txt"}'] * (status == Status.FAILED)
    assert len(await recorded_attempts(queue)) == 1


async def test_numbers_of_slots_and_of_attempts_to_keep_are_whole(queue: Queue) -> None:
    for number in (2.5, True, 0):
        with pytest.raises(UsageError):
            await queue.set_slots(number)  # type: ignore[arg-type]
        with pytest.raises(UsageError):
            await queue.record_attempts(number)  # type: ignore[arg-type]
    assert await queue.slots() is None


async def test_an_end_that_cannot_be_written_harms_no_neighbour(queue: Queue) -> None:
    for key in ("a", "odd", "b"):
        await queue.enqueue("f", key=key)
    jobs = [await take(queue) for _ in range(3)]
    jobs[1].ttl = None  # type: ignore[assignment]  # the function has changed its own job
    said = [queue.finish(job, Status.COMPLETE) for job in jobs]
    ends = await asyncio.wait_for(asyncio.gather(*said, return_exceptions=True), 10)
    assert [isinstance(end, Exception) for end in ends] == [False, True, False]
    assert [(await queue.job(key)).status for key in ("a", "b")] == [Status.COMPLETE] * 2  # type: ignore[union-attr]


async def test_a_key_that_could_be_one_on_its_way_to_another_queue_is_refused(queue: Queue) -> None:
    with pytest.raises(UsageError, match="queue's own"):
        await queue.enqueue("f", key=">mail>k")
    with pytest.raises(UsageError, match="queue's own"):
        await queue.enqueue_each("f", [{}, {}], keys=["k", ">mail>k"])
    assert await queue.count("incomplete") == 0


async def test_a_delay_without_end_lets_the_others_rest(queue: Queue, sound: Sound) -> None:
    assert await queue.submit("f", key="never", delay_s=1e308)
    waiting = asyncio.create_task(queue.dequeue())
    await asyncio.sleep(0.3)
    before = (await queue.redis.info("stats"))["total_commands_processed"]
    await asyncio.sleep(1.0)
    assert (await queue.redis.info("stats"))["total_commands_processed"] - before < 30
    waiting.cancel()
    await asyncio.wait([waiting])
    await sound(queue)
