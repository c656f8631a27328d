"""What operators do to a queue: to the jobs that are meant, to no other, and repeatably."""

from __future__ import annotations

import asyncio
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.audit import Audit, audit
from saqkit.queue.counting import recorded_attempts, statistics
from saqkit.queue.letter import Filter
from saqkit.queue.live_jobs import LiveJob, Which, live_jobs
from saqkit.queue.queue import Queue
from saqkit.queue.tables import workers_frame
from saqkit.worker.worker import Worker

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Until = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]


@pytest.fixture(autouse=True)
def workers_ask_often(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("saqkit.worker.worker.FOLLOW_S", 0.2)


@asynccontextmanager
async def working(queue: Queue, slots: int = 1, name: str = "w", **functions: Any) -> AsyncIterator[Worker]:
    worker = Worker({queue.name: queue}, functions, {queue.name: slots}, name=name, grace_s=5.0)
    task = asyncio.create_task(worker.run())
    try:
        yield worker
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)


async def waiting(queue: Queue, *keys: str, function: str = "f", level: int = 0, **more: Any) -> None:
    jobs = [Job(function, key=key, priority=level, meta=dict(more.get("meta", {})), scheduled=more.get("scheduled", 0))
            for key in keys]  # fmt: skip
    assert all(await queue.enqueue_many(jobs))


async def states(queue: Queue) -> dict[str, str]:
    return {job.key: job.state async for job in live_jobs(queue)}


class Gate:
    """A function that runs until it is let go, and counts how many do."""

    def __init__(self) -> None:
        self.open, self.running, self.most, self.stopped = asyncio.Event(), 0, 0, 0

    async def __call__(self, ctx: dict[str, Any]) -> None:
        self.running += 1
        self.most = max(self.most, self.running)
        try:
            await self.open.wait()
        except asyncio.CancelledError:
            self.stopped += 1
            raise
        finally:
            self.running -= 1

    async def holds(self, number: int) -> bool:
        return self.running == number


# --- pause -----------------------------------------------------------------------------------------------------------


async def test_a_paused_queue_takes_nothing_what_runs_ends_and_resume_is_at_once(
    queue: Queue, make_queue: Callable[[], Queue], until: Until, sound: Sound
) -> None:
    gate, began = Gate(), []

    async def quick(ctx: dict[str, Any]) -> None:
        began.append(ctx["job"].key)

    async with working(queue, slots=2, gate=gate, quick=quick):
        await waiting(queue, "running", function="gate")
        await until(lambda: gate.holds(1), 10)
        assert await queue.pause("database moves", by="ada") is False
        await waiting(queue, "a", "b", function="quick")
        gate.open.set()
        await until(lambda: gate.holds(0), 10)
        job = await queue.enqueue("quick", key="soon", scheduled=int(time.time()) - 5)
        assert job is not None
        await until(lambda: _count(queue, "complete", 1), 10)
        assert (await make_queue().dequeue(timeout=0.5), began) == (None, [])
        paused = await queue.pause_of()
        assert paused is not None
        assert (paused.by, paused.reason) == ("ada", "database moves")
        assert abs(paused.since - time.time()) < 60
        assert await queue.pause("still", by="bob") is True
        again = await queue.pause_of()
        assert again is not None
        assert (again.since, again.by) == (paused.since, "bob"), "it is paused since it was first"
        assert await queue.resume() is True
        at = time.monotonic()
        await until(lambda: _count(queue, "complete", 4), 10)
        assert time.monotonic() - at < 1.5, "resume wakes who waits"
        assert sorted(began) == ["a", "b", "soon"]
    assert await queue.resume() is False
    assert await queue.pause_of() is None
    await sound(queue)


async def _count(queue: Queue, what: str, number: int) -> bool:
    return int(await queue.redis.hget(queue.namespace("counts"), what) or 0) == number  # type: ignore[misc]


async def test_a_pause_that_was_set_by_hand_is_a_pause(queue: Queue) -> None:
    await queue.redis.set(queue.namespace("paused"), 1)
    paused = await queue.pause_of()
    assert paused is not None
    assert (paused.by, paused.reason) == ("", "")
    assert paused.since != paused.since  # NaN: nobody knows since when
    assert (await statistics(queue)).paused is not None


# --- clear and cancel ------------------------------------------------------------------------------------------------


async def test_clear_takes_what_waits_or_is_delayed_and_leaves_what_runs(
    queue: Queue, counts: Counts, sound: Sound
) -> None:
    await waiting(queue, "held")
    held = await queue.dequeue(timeout=5)
    assert held is not None
    await waiting(queue, *(f"f{n}" for n in range(1200)), level=1)
    await waiting(queue, "g1", "g2", function="g", level=4)
    await waiting(queue, "later", scheduled=int(time.time()) + 900)
    would = await queue.clear(dry_run=True)
    expected = {("waiting", "f", 1): 1200, ("waiting", "g", 4): 2, ("delayed", "f", 3): 1}
    assert (would.found, would.done, dict(would.counts)) == (1203, 0, expected)
    assert await queue.count("incomplete") == 1204, "a dry run changes nothing"
    only = await queue.clear(Which(function="g"))
    assert (only.found, only.done) == (2, 2)
    done = await queue.clear()
    assert (done.found, done.done, dict(done.counts)) == (
        1201, 1201, {("waiting", "f", 1): 1200, ("delayed", "f", 3): 1},
    )  # fmt: skip
    assert await audit(queue) == Audit(0, 0, 1, 0, ())
    assert await queue.job("f0") is None
    assert (await queue.clear()).found == 0, "it can be repeated"
    await queue.finish(held, Status.COMPLETE)
    assert await counts(queue) == {"aborted": 1203, "complete": 1}
    await waiting(queue, "f0")  # its key is free again


async def test_clear_of_many_jobs_never_holds_the_server_up(queue: Queue) -> None:
    await queue.enqueue_each("f", ({"n": n} for n in range(20_000)))
    await queue.redis.config_set("slowlog-log-slower-than", 150_000)  # µs; generous, the machine is shared
    await queue.redis.slowlog_reset()
    try:
        said = await queue.clear()
        assert (said.found, said.done) == (20_000, 20_000)
        assert await queue.redis.slowlog_len() == 0
    finally:
        await queue.redis.config_set("slowlog-log-slower-than", 10_000)
    assert await queue.count("incomplete") == 0


async def test_what_is_taken_while_it_is_cleared_is_left_alone(queue: Queue, sound: Sound) -> None:
    await waiting(queue, *map(str, range(300)))
    taken: list[Job] = []

    async def take() -> None:
        while (job := await queue.dequeue(timeout=0.2)) is not None:
            taken.append(job)

    said, _ = await asyncio.gather(queue.clear(), take())
    assert said.done + len(taken) == 300
    assert await audit(queue) == Audit(0, 0, len(taken), 0, ())
    for job in taken:
        await queue.finish(job, Status.COMPLETE)


@pytest.mark.parametrize("operation", ["clear", "cancel", "cancel keys", "promote", "promote keys"])
async def test_a_job_that_took_the_key_of_one_that_was_found_is_left_alone(
    queue: Queue, make_queue: Callable[[], Queue], monkeypatch: pytest.MonkeyPatch, operation: str, sound: Sound
) -> None:
    later = time.time() + 3600 if "promote" in operation else 0
    await waiting(queue, "again", "stays", scheduled=later)
    others, run_script = make_queue(), queue.run_script

    async def after_others(name: str, *words: Any) -> Any:
        """Between the look and the change `again` ends elsewhere, and another job gets its key."""
        if name in ("cancel", "hasten"):
            job = await others.job("again")
            assert job is not None
            await others.update(job, status=Status.ACTIVE)
            job.ttl = -1
            await others.finish(job, Status.COMPLETE)
            await waiting(others, "again", scheduled=later)
        return await run_script(name, *words)

    monkeypatch.setattr(queue, "run_script", after_others)
    said = await {
        "clear": lambda: queue.clear(),
        "cancel": lambda: queue.cancel_jobs(),
        "cancel keys": lambda: queue.cancel_keys(["again", "stays"]),
        "promote": lambda: queue.hasten_jobs(),
        "promote keys": lambda: queue.hasten_keys(["again", "stays"]),
    }[operation]()
    assert (said.found, said.done) == (2, 1)
    assert await states(queue) == ({"again": "delayed", "stays": "waiting"} if later else {"again": "waiting"})
    await sound(queue)


async def test_cancel_by_keys_reaches_waiting_delayed_and_running_jobs(
    queue: Queue, until: Until, sound: Sound
) -> None:
    gate = Gate()
    await queue.record_attempts(100)
    async with working(queue, slots=1, gate=gate):
        await waiting(queue, "runs", function="gate")
        await until(lambda: gate.holds(1), 10)
        await waiting(queue, "waits", "stays", function="gate")
        await waiting(queue, "later", scheduled=int(time.time()) + 900)
        assert await states(queue) == {"runs": "active", "waits": "waiting", "stays": "waiting", "later": "delayed"}
        said = await queue.cancel_keys(["runs", "waits", "later", "waits"], reason="not wanted")
        assert (said.found, said.done) == (3, 3)

        async def next_runs() -> bool:
            return gate.stopped == 1 and gate.running == 1

        await until(next_runs, 10)
        gate.open.set()
        await until(lambda: _count(queue, "complete", 1), 10)
    assert {key: await _status(queue, key) for key in ("runs", "waits", "later", "stays")} == {
        "runs": Status.ABORTED, "waits": Status.ABORTED, "later": Status.ABORTED, "stays": Status.COMPLETE,
    }  # fmt: skip
    job = await queue.job("runs")
    assert job is not None
    assert job.error == "not wanted"
    attempts = await recorded_attempts(queue)
    assert list(zip(attempts["job"], attempts["outcome"], strict=True)) == [("runs", "cancelled"), ("stays", "done")]
    await sound(queue)


async def _status(queue: Queue, key: str) -> Status | None:
    job = await queue.job(key)
    return None if job is None else job.status


async def test_what_has_ended_or_is_not_there_cannot_be_cancelled_and_nothing_is_done(queue: Queue) -> None:
    await waiting(queue, "done")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.finish(job, Status.COMPLETE)
    await waiting(queue, "a")
    with pytest.raises(UsageError, match=r'^job "done" of queue q is done, it cannot be cancelled \(only one that is'):
        await queue.cancel_keys(["a", "done"])
    with pytest.raises(UsageError, match='there is no job "none" in queue q'):
        await queue.cancel_keys(["a", "none"])
    with pytest.raises(UsageError, match='job "a" of queue q is waiting, it cannot be promoted'):
        await queue.hasten_keys(["a"])
    assert await states(queue) == {"a": "waiting"}


async def test_cancel_by_filter(queue: Queue, sound: Sound) -> None:
    for n, (function, tenant, level) in enumerate([("f", "x", 1), ("f", "y", 2), ("g", "x", 2), ("g", "", 3)]):
        await waiting(queue, str(n), function=function, level=level, meta={"tenant": tenant} if tenant else {})
    await waiting(queue, "later", function="g", level=2, meta={"tenant": "x"}, scheduled=int(time.time()) + 900)

    async def keys(which: Which) -> list[str]:
        return [job.key async for job in live_jobs(queue, which)]

    assert await keys(Which(function="f")) == ["0", "1"]
    assert await keys(Which(tenant="x")) == ["0", "2", "later"]
    assert await keys(Which(priority="high", states=("waiting",))) == ["1", "2"]
    assert await keys(Which(tenant="x", priority=2, states=("delayed",))) == ["later"]
    assert (await queue.cancel_jobs(Which(tenant="x"), dry_run=True)).found == 3
    said = await queue.cancel_jobs(Which(tenant="x"))
    assert said.rows() == [
        {"state": "delayed", "function": "g", "priority": 2, "jobs": 1},
        {"state": "waiting", "function": "f", "priority": 1, "jobs": 1},
        {"state": "waiting", "function": "g", "priority": 2, "jobs": 1},
    ]
    assert await states(queue) == {"1": "waiting", "3": "waiting"}
    await sound(queue)


async def test_a_filter_of_running_jobs_reaches_their_worker(queue: Queue, until: Until, sound: Sound) -> None:
    gate = Gate()
    async with working(queue, slots=2, gate=gate):
        await waiting(queue, "a", "b", "c", function="gate")
        await until(lambda: gate.holds(2), 10)
        said = await queue.cancel_jobs(Which(states=("active",)))
        assert (said.found, said.done) == (2, 2)

        async def the_third_runs() -> bool:
            return (gate.stopped, gate.running) == (2, 1)

        await until(the_third_runs, 10)
        gate.open.set()
        await until(lambda: _count(queue, "complete", 1), 10)
    await sound(queue)


@pytest.mark.parametrize(
    ("wrong", "reason"),
    [({"priority": "urgent"}, 'no priority "urgent" (1 critical'), ({"priority": 0}, 'no priority "0"'),
     ({"states": ("wating",)}, 'did you mean "waiting"?')],
)  # fmt: skip
def test_a_filter_that_means_nothing_is_refused(wrong: dict[str, Any], reason: str) -> None:
    with pytest.raises(UsageError) as caught:
        Which(**wrong)
    assert reason in str(caught.value)


async def test_a_job_that_nobody_can_read_is_listed_and_cleared(queue: Queue) -> None:
    await waiting(queue, "strange")
    await queue.redis.hset(queue.key_of("strange"), "body", "{no json")  # type: ignore[misc]
    (job,) = [job async for job in live_jobs(queue)]
    assert isinstance(job, LiveJob)
    assert (job.key, job.function, job.users, job.tenant) == ("strange", "", 0, "")
    assert (await queue.clear()).done == 1


# --- promote ---------------------------------------------------------------------------------------------------------


async def test_delayed_jobs_and_retries_are_promoted_now_at_the_end_of_their_lines(queue: Queue, sound: Sound) -> None:
    in_an_hour = int(time.time()) + 3600
    await waiting(queue, "later", "last", scheduled=in_an_hour)
    await queue.enqueue("f", key="retried", retries=3, retry_delay=900)
    job = await queue.dequeue(timeout=5)
    assert job is not None
    job.attempts += 1
    await queue.retry(job, "no luck")
    await waiting(queue, "first")
    assert (await queue.hasten_jobs(Which(function="f"), dry_run=True)).found == 3
    said = await queue.hasten_keys(["later"])
    assert (said.found, said.done) == (1, 1)
    said = await queue.hasten_jobs()
    assert (said.found, said.done) == (2, 2)
    assert (await queue.hasten_jobs()).found == 0
    assert [job.key async for job in live_jobs(queue)] == ["first", "later", "retried", "last"]
    assert max([job.ready_at async for job in live_jobs(queue)]) < time.time() + 60
    await sound(queue)


async def test_an_idle_worker_gets_what_is_promoted_at_once(queue: Queue, until: Until) -> None:
    began: list[float] = []

    async def f(ctx: dict[str, Any]) -> None:
        began.append(time.monotonic())

    async with working(queue, f=f):
        await waiting(queue, "later", scheduled=int(time.time()) + 3600)
        at = time.monotonic()
        await queue.hasten_keys(["later"])
        await until(lambda: _count(queue, "complete", 1), 10)
    assert began[0] - at < 1.5


# --- clean, retry, record --------------------------------------------------------------------------------------------


async def ended(queue: Queue, key: str, how: Status, **more: Any) -> None:
    await queue.enqueue("f", key=key, **more)
    job = await queue.dequeue(timeout=5)
    assert job is not None
    job.attempts += 1
    await queue.finish(job, how, error="ValueError: no" if how == Status.FAILED else None)


@pytest.mark.row("001.15", "004.14")
async def test_clean_forgets_what_ended_long_enough_ago_and_nothing_else(queue: Queue, sound: Sound) -> None:
    await ended(queue, "done", Status.COMPLETE)
    await ended(queue, "kept", Status.COMPLETE, meta={"keep_key_s": 600})
    await ended(queue, "dead", Status.FAILED)
    await waiting(queue, "cancelled", "waits")
    await queue.cancel_keys(["cancelled"])
    await ended(queue, "waits", Status.ABORTED)
    for state in ("done", "cancelled", "dead"):
        assert (await queue.clean(state, 60)).found == 0
    said = {state: await queue.clean(state, dry_run=True) for state in ("done", "cancelled", "dead")}
    assert {state: (one.found, one.done) for state, one in said.items()} == {
        "done": (2, 0), "cancelled": (2, 0), "dead": (1, 0),
    }  # fmt: skip
    said = {state: await queue.clean(state) for state in ("done", "cancelled", "dead")}
    assert {state: one.done for state, one in said.items()} == {"done": 1, "cancelled": 2, "dead": 1}
    left = [key for key in ("done", "kept", "dead", "cancelled", "waits") if await queue.job(key) is not None]
    assert left == ["kept"], "its key stays taken"
    assert await queue.enqueue("f", key="kept") is None
    await sound(queue)


@pytest.mark.parametrize(("state", "age", "reason"), [("dne", 0, 'did you mean "done"'), ("done", -1, "is no age")])
async def test_clean_of_something_that_is_not_refuses(queue: Queue, state: str, age: float, reason: str) -> None:
    with pytest.raises(UsageError, match=reason):
        await queue.clean(state, age)


async def test_failed_jobs_are_retried_the_oldest_first_up_to_a_limit(queue: Queue, sound: Sound) -> None:
    for n in range(5):
        await ended(queue, str(n), Status.FAILED)
    assert (await queue.retry_failed(2, dry_run=True)).found == 2
    said = await queue.retry_failed(2)
    assert (said.found, said.done) == (2, 2)
    assert [job.key async for job in live_jobs(queue)] == ["0", "1"]
    assert (await queue.retry_failed(where=Filter(function="g"))).found == 0
    assert (await queue.retry_failed()).done == 3
    assert await queue.count("dead") == 0
    await sound(queue)


async def test_the_last_attempts_are_kept_and_no_more(queue: Queue) -> None:
    await queue.record_attempts(3)
    for n in range(5):
        await ended(queue, str(n), Status.COMPLETE)
    assert list((await recorded_attempts(queue))["job"]) == ["2", "3", "4"]
    assert (await statistics(queue)).attempts == 3
    await queue.record_attempts(None)
    assert (await statistics(queue)).recording == 0
    assert (await recorded_attempts(queue)).empty
    await queue.redis.set(queue.namespace("recording"), 1)  # as `measure` does
    with pytest.raises(UsageError, match="a measured run records all its attempts"):
        await queue.record_attempts(10)
    assert await queue.redis.get(queue.namespace("recording")) == b"1"
    for wrong in (1, 0, 1_000_000):
        with pytest.raises(UsageError, match="cannot be kept"):
            await queue.record_attempts(wrong)


@pytest.mark.parametrize(("keep", "number"), [(1_000, 25), (25, 25), (25, 30)])
async def test_no_recorded_attempt_is_missed_or_doubled_because_others_end_meanwhile(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, keep: int, number: int
) -> None:
    monkeypatch.setattr("saqkit.queue.counting._PAGE", 10)
    await queue.record_attempts(keep)
    for n in range(number):
        await ended(queue, str(n), Status.COMPLETE)
    lrange, later = queue.redis.lrange, 0

    async def while_others_end(*words: Any) -> Any:
        nonlocal later
        page = await lrange(*words)
        for _ in range(3):
            await ended(queue, f"later {later}", Status.COMPLETE)
            later += 1
        return page

    monkeypatch.setattr(queue.redis, "lrange", while_others_end)
    found = list((await recorded_attempts(queue))["job"])
    assert later >= 9
    assert len(set(found)) == len(found)
    pushed_out = max(0, number + later - keep)
    assert found[-(number - pushed_out) :] == [str(n) for n in range(pushed_out, number)]


async def test_at_most_a_hundred_thousand_recorded_attempts_are_read_the_last_ones(
    queue: Queue, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.queue.counting._PAGE", 10)
    monkeypatch.setattr("saqkit.queue.counting.MOST_RECORDED", 15)
    await queue.record_attempts(100)
    for n in range(25):
        await ended(queue, str(n), Status.COMPLETE)
    assert list((await recorded_attempts(queue))["job"]) == [str(n) for n in range(10, 25)]


# --- slots of running workers ----------------------------------------------------------------------------------------


async def test_running_workers_follow_what_operators_set_and_so_do_those_that_start_later(
    queue: Queue, until: Until, sound: Sound
) -> None:
    gate = Gate()
    async with working(queue, slots=2, gate=gate):
        await waiting(queue, *(f"a{n}" for n in range(9)), function="gate")
        await until(lambda: gate.holds(2), 10)
        assert await queue.set_slots(5) is None
        await until(lambda: gate.holds(5), 10)
        assert await queue.set_slots(1) == 5

        async def told() -> bool:
            frame = await workers_frame(queue)
            return list(zip(frame["slots"], frame["running"], strict=True)) == [(1, 5)]

        await until(told, 10)
        assert gate.running == 5, "what runs ends first"
        gate.open.set()
        gate.most = 0
        await until(lambda: _count(queue, "complete", 9), 10)
        assert gate.most == 1
    again = Gate()
    async with working(queue, slots=4, name="w2", gate=again):
        await waiting(queue, "b0", "b1", "b2", function="gate")
        await until(lambda: again.holds(1), 10)
        assert await queue.set_slots(None) == 1
        await until(lambda: again.holds(3), 10)
        again.open.set()
        await until(lambda: _count(queue, "complete", 12), 10)
    with pytest.raises(UsageError, match="0 slots would take nothing"):
        await queue.set_slots(0)
    await sound(queue)


async def test_a_job_that_comes_to_a_slot_that_is_gone_is_given_back_to_its_place(queue: Queue, until: Until) -> None:
    """An idle worker has asked for three; when they come it may have one slot."""
    gate = Gate()
    async with working(queue, slots=3, gate=gate):
        await queue.set_slots(1)

        async def told() -> bool:
            return list((await workers_frame(queue))["slots"]) == [1]

        await until(told, 10)
        await waiting(queue, "a", "b", "c", function="gate")
        await until(lambda: gate.holds(1), 10)
        await until(lambda: _has(queue, {"a": "active", "b": "waiting", "c": "waiting"}), 10)
        gate.open.set()
        await until(lambda: _count(queue, "complete", 3), 10)
        assert gate.most == 1


async def _has(queue: Queue, wanted: dict[str, str]) -> bool:
    return await states(queue) == wanted
