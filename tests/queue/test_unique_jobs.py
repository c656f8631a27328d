"""Unique jobs: for how long only one is accepted, what whoever asks is told, and the traps that others have."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue import fault_sites
from saqkit.queue.dead_letters import replay
from saqkit.queue.queue import Queue
from saqkit.queue.submitting import NewJob
from saqkit.queue.unique import Unique
from saqkit.worker.worker import Worker

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=10)
    assert job is not None
    job.attempts += 1
    return job


async def bring(queue: Queue, state: str, unique: Unique) -> str:
    """A job that has this unique id, brought into a state."""
    delay_s = 3600 if state == "delayed" else 0
    told = await queue.submit("f", unique=unique, delay_s=delay_s, retries=2, retry_delay=3600.0)
    assert told
    if state in ("waiting", "delayed"):
        return told.key
    if state == "cancelled":
        job = await queue.job(told.key)
        assert job is not None
        await queue.abort(job, "not wanted")
        return told.key
    held = await taken(queue)
    if state == "between attempts":
        await queue.retry(held, "ValueError: no")
    elif state == "done":
        await queue.finish(held, Status.COMPLETE)
    elif state == "dead":
        await queue.finish(held, Status.FAILED, error="ValueError: no")
    elif state == "cancelled as it ran":
        await queue.abort(held, "not wanted", ttl=3600)  # its worker has not stopped it yet
    else:
        assert state == "running"
    return told.key


TABLE = {
    "waiting": {"start": True, "end": True},
    "delayed": {"start": True, "end": True},
    "running": {"start": False, "end": True},
    "between attempts": {"start": True, "end": True},
    "cancelled as it ran": {"start": False, "end": True},
    "cancelled": {"start": False, "end": False},
    "done": {"start": False, "end": False},
    "dead": {"start": False, "end": False},
}
"""Whether a job in this state still has its unique id, by `until`. The documentation has the same table."""


@pytest.mark.parametrize("until", ["start", "end", None])
@pytest.mark.parametrize("state", TABLE)
async def test_an_id_is_taken_as_long_as_it_was_asked_for(queue: Queue, sound: Sound, state: str, until: Any) -> None:
    unique = Unique("report:7", until=until, for_s=0 if until else 0.001)
    first = await bring(queue, state, unique)
    await asyncio.sleep(0.002)
    second = await queue.submit("f", unique=unique)
    expected = TABLE[state].get(str(until), False)
    assert (second.accepted, second.key == first) == (not expected, expected)
    assert await queue.submit("f", unique=Unique("report:8", until=until, for_s=1))
    await sound(queue)


@pytest.mark.parametrize("state", TABLE)
async def test_for_a_period_it_is_taken_however_soon_its_job_ends(queue: Queue, state: str) -> None:
    unique = Unique("report:7", until=None, for_s=3600)
    first = await bring(queue, state, unique)
    told = await queue.submit("f", unique=unique)
    assert (told.accepted, told.key) == (False, first)


async def test_a_period_ends_on_the_servers_clock(queue: Queue, until: Until) -> None:
    unique = Unique("report:7", until=None, for_s=0.3)
    began = await queue.redis.time()
    assert await queue.submit("f", unique=unique)
    assert not await queue.submit("f", unique=unique)

    async def accepted() -> bool:
        return bool(await queue.submit("f", unique=unique))

    await until(accepted, 10)
    ended = await queue.redis.time()
    assert ended[0] - began[0] + (ended[1] - began[1]) / 1e6 >= 0.3


async def test_whoever_is_refused_is_told_which_job_stands_in_the_way(queue: Queue) -> None:
    first = await queue.submit("f", key="first", unique="report:7")
    assert (bool(first), first.key) == (True, "first")
    assert (await queue.submit("f", key="second", unique="report:7")).key == "first"
    assert (await queue.submit("f", key="first")).key == "first"  # its key
    assert await queue.enqueue("f", key="first") is None  # SAQ's answer
    assert await queue.count("queued") == 1


async def test_jobs_without_a_key_are_never_one_job(queue: Queue) -> None:
    for key in (None, ""):
        assert await queue.enqueue("f", key=key) is not None
        assert await queue.enqueue("f", key=key) is not None
        assert await queue.enqueue_many([Job("f", key=key), Job("f", key=key)]) == [True, True]  # type: ignore[arg-type]
        assert await queue.submit("f", key=key)
        keys = await queue.enqueue_each("f", [{}, {}], keys=[key, key])  # type: ignore[list-item]
        assert len({*keys, None, ""}) == 4
    assert await queue.count("queued") == 14


async def test_a_finished_job_blocks_neither_its_key_nor_its_id(queue: Queue) -> None:
    for _ in range(3):
        assert await queue.submit("f", key="k", unique="id", ttl=600)
        await queue.finish(await taken(queue), Status.COMPLETE)
    assert await queue.submit("f", key="k", unique="id", meta={"keep_key_s": 600})
    await queue.finish(await taken(queue), Status.COMPLETE)
    assert not await queue.submit("f", key="k", unique="id")  # its key was asked to stay taken
    assert await queue.submit("f", unique="id")  # its id was not


@pytest.mark.parametrize("way", ["key", "unique"])
async def test_aborted_while_it_runs_and_added_again_it_runs_once_the_old_one_has_stopped(
    queue: Queue, until: Until, way: str
) -> None:
    running, most, stopped = 0, 0, asyncio.Event()
    runs: list[str] = []

    async def work(ctx: dict[str, Any], patient: bool) -> None:
        nonlocal running, most
        running += 1
        most = max(most, running)
        runs.append("patient" if patient else "quick")
        try:
            if patient:
                await asyncio.Event().wait()
        finally:
            running -= 1
            stopped.set()

    worker = Worker({"q": queue}, {"work": work}, {"q": 5}, name="w", grace_s=1)
    task = asyncio.create_task(worker.run())
    same: dict[str, Any] = {way: "again"}
    try:
        first = await queue.submit("work", {"patient": True}, timeout=0, **same)

        async def begun() -> bool:
            return runs == ["patient"]

        await until(begun, 10)
        job = await queue.job(first.key)
        assert job is not None
        await queue.abort(job, "not wanted", ttl=30)
        assert not stopped.is_set()
        assert not await queue.submit("work", {"patient": False}, **same)

        async def accepted() -> bool:
            return bool(await queue.submit("work", {"patient": False}, **same))

        await until(accepted, 10)
        assert stopped.is_set()

        async def both() -> bool:
            return runs == ["patient", "quick"] and queue.complete == 1

        await until(both, 10)
        assert most == 1
    finally:
        worker.stop()
        await task


async def test_a_replayed_letter_has_its_id_again_unless_somebody_else_has(queue: Queue) -> None:
    first = await bring(queue, "dead", Unique("id"))
    assert await replay(queue, [first]) == [True]
    assert (await queue.submit("f", unique="id")).key == first
    await queue.finish(await taken(queue), Status.FAILED, error="ValueError: no")
    second = await queue.submit("f", unique="id")
    assert second
    assert await replay(queue, [first]) == [True]  # nobody holds up an operator
    assert (await queue.submit("f", unique="id")).key == second.key


async def test_twenty_who_submit_at_once_are_told_of_one_job(make_queue: MakeQueue) -> None:
    queues = [make_queue() for _ in range(4)]
    for turn in range(5):
        told = await asyncio.gather(*(queues[n % 4].submit("f", {"n": n}, unique=f"id {turn}") for n in range(20)))
        assert sum(one.accepted for one in told) == 1
        assert len({one.key for one in told}) == 1


@pytest.mark.parametrize("site", ["enqueue.before", "enqueue.after"])
async def test_a_lost_answer_is_no_refusal(queue: Queue, monkeypatch: pytest.MonkeyPatch, site: str) -> None:
    await queue.submit("f")
    faults = fault_sites.parse(f"rate=1,most=1,actions=lose,only={site}")
    monkeypatch.setattr(fault_sites, "armed", faults)
    assert await queue.submit("f", key="k", unique="id")
    monkeypatch.setattr(fault_sites, "armed", None)
    assert (await queue.submit("f", unique="id")).key == "k"
    assert await queue.count("queued") == 2


async def test_ids_that_are_free_again_do_not_pile_up(queue: Queue) -> None:
    entries = queue.namespace("unique")
    async for told in queue.submit_many(NewJob("f", unique=f"id {n}", properties={"ttl": -1}) for n in range(700)):
        assert told
    assert await queue.redis.hlen(entries) == 700  # type: ignore[misc]
    for _ in range(700):
        await queue.finish(await taken(queue), Status.COMPLETE)
    for _ in range(20):  # the upkeep of each process does so every minute
        await queue.run_script("forget", 3600)
    assert await queue.redis.hlen(entries) < 20  # type: ignore[misc]
    for n in range(400):  # and whoever submits looks at two
        assert await queue.submit("f", unique=f"other {n}", ttl=-1)
        await queue.finish(await taken(queue), Status.COMPLETE)
    assert await queue.redis.hlen(entries) < 100  # type: ignore[misc]


async def test_a_queue_without_unique_jobs_stores_nothing_of_them_and_asks_nothing_more(queue: Queue) -> None:
    await queue.enqueue_each("f", ({"n": n} for n in range(50)), meta={"keep_key_s": 60})
    calls = await queue.redis.info("commandstats")
    await queue.enqueue_each("f", ({"n": n} for n in range(1000)))
    after = await queue.redis.info("commandstats")
    spent = {name: stats["calls"] - calls.get(name, {"calls": 0})["calls"] for name, stats in after.items()}
    assert spent["cmdstat_hset"] == spent["cmdstat_hmget"] == 1000
    assert spent.get("cmdstat_hget", 0) == spent.get("cmdstat_hrandfield", 0) == 0
    assert await queue.redis.exists(queue.namespace("unique"), queue.namespace("schedules")) == 0


@pytest.mark.parametrize("seed", range(4))
async def test_at_random_nobody_is_accepted_beside_one_that_has_the_id(
    make_queue: MakeQueue, sound: Sound, seed: int
) -> None:
    draws, queue = random.Random(seed), make_queue(tick_s=0.001)
    ids = ["a", "b", "c"]
    has: dict[str, tuple[str, str] | None] = dict.fromkeys(ids)  # id -> (key, until), as the docs say
    states: dict[str, str] = {}
    held: dict[str, Job] = {}

    def blocks(name: str) -> bool:
        key, until = has[name] or ("", "")
        return states.get(key) == "waits" or (until == "end" and states.get(key) == "runs")

    for _ in range(150):
        action = draws.choice(["submit", "submit", "take", "finish", "bury", "retry", "abort", "replay"])
        name, until = draws.choice(ids), draws.choice(["start", "end"])
        keys = sorted(states)
        if action == "submit":
            expected = not blocks(name)
            told = await queue.submit("f", unique=Unique(name, until=until), retries=99)  # type: ignore[arg-type]
            assert told.accepted == expected
            if expected:
                has[name], states[told.key] = (told.key, until), "waits"
            else:
                assert told.key == (has[name] or ("",))[0]
        elif action == "take" and any(state == "waits" for state in states.values()):
            job = await taken(queue)
            held[job.key], states[job.key] = job, "runs"
        elif action in ("finish", "bury", "retry") and held:
            job = held.pop(draws.choice(sorted(held)))
            if action == "retry":
                await queue.retry(job, "ValueError: no")
            else:
                await queue.finish(job, Status.COMPLETE if action == "finish" else Status.FAILED, error="no")
            states[job.key] = {"finish": "done", "bury": "dead", "retry": "waits"}[action]
        elif action == "abort" and (waiting := [key for key in keys if states[key] == "waits"]):
            job = await queue.job(draws.choice(waiting))  # type: ignore[assignment]
            await queue.abort(job, "not wanted")
            states[job.key] = "done"
        elif action == "replay" and (dead := [key for key in keys if states[key] == "dead"]):
            key = draws.choice(dead)
            assert await replay(queue, [key]) == [True]
            states[key] = "waits"
        await sound(queue)


@pytest.mark.parametrize(
    ("wrong", "text"),
    [
        ({"id": ""}, "'' says nothing"),
        ({"id": 7}, "7 says nothing"),
        ({"id": "a", "until": "running"}, 'until "running"'),
        ({"id": "a", "for_s": -1}, "for_s -1"),
        ({"id": "a", "for_s": float("nan")}, "for_s nan"),
        ({"id": "a", "until": None}, "for no time at all"),
    ],
)
def test_uniqueness_that_says_nothing_is_refused_in_one_line(wrong: dict[str, Any], text: str) -> None:
    with pytest.raises(UsageError, match=r"^unique[^\n]*\([^\n]*\)$") as caught:
        Unique(**wrong)
    assert text in str(caught.value)


async def test_it_is_the_same_in_a_queue_whose_tenants_take_turns(make_queue: MakeQueue, sound: Sound) -> None:
    queue = make_queue(fairness="tenants", weights={"critical": 8, "high": 4, "normal": 2, "low": 1})
    first = await queue.submit("f", unique="id", meta={"tenant": "a"})
    assert (await queue.submit("f", unique="id", meta={"tenant": "b"}, priority="low")).key == first.key
    job = await taken(queue)
    assert not await queue.submit("f", unique="id")
    await sound(queue)
    await queue.finish(job, Status.COMPLETE)
    assert await queue.submit("f", unique=Unique("id", until="start"), meta={"tenant": "b"})
    await taken(queue)
    assert await queue.submit("f", unique="id", meta={"tenant": "a"})
    await sound(queue)
