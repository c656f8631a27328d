"""Batches: each callback once, whatever becomes of the members; counts that are in step with the members' states."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit import NewJob
from saqkit.errors import UsageError
from saqkit.queue.audit import audit
from saqkit.queue.batches import Batch
from saqkit.queue.live_jobs import Which
from saqkit.queue.queue import Queue
from saqkit.queue.replaying import purge, relay, replay
from saqkit.queue.unique import Unique

MakeQueue = Callable[..., Queue]
Until = Callable[..., Awaitable[float]]
BACK: dict[str, Any] = {"on_complete": "completed", "on_success": "succeeded", "on_death": "died"}


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    return job


async def sound(queue: Queue) -> None:
    assert (await audit(queue)).problems == ()


async def called(queue: Queue, id: str) -> list[str]:
    """The functions that batch has called back, those that wait; they are all there is in its queue."""
    await sound(queue)
    jobs = [job async for job in queue.iter_jobs([Status.QUEUED]) if job.meta.get("batch")]
    assert {job.meta["batch"] for job in jobs} <= {id}
    return sorted(job.function for job in jobs)


async def known(queue: Queue, id: str) -> Batch:
    batch = await queue.get_batch(id)
    assert batch is not None
    return batch


async def end(queue: Queue, *statuses: Status) -> list[str]:
    keys = []
    for status in statuses:
        job = await taken(queue)
        await queue.finish(job, status, error=None if status == Status.COMPLETE else "ValueError: no")
        keys.append(job.key)
    return keys


def members(*users: int, prefix: str = "m") -> list[Job]:
    """Jobs that go before callbacks, of so many users."""
    return [Job("f", key=f"{prefix}{n}", kwargs={"users": list(range(many))}, priority=1, retries=1)
            for n, many in enumerate(users)]  # fmt: skip


async def test_all_are_done(queue: Queue) -> None:
    batch = await queue.submit_batch(members(1, 2, 7), id="b", **BACK)
    assert (batch.jobs, batch.pending, batch.users, batch.open, batch.refused) == (3, 3, 10, False, ())
    assert (batch.percent, batch.complete, batch.success) == (0.0, False, False)
    await end(queue, Status.COMPLETE)
    assert (await known(queue, "b")).percent == 10.0
    await end(queue, Status.COMPLETE)
    assert (await known(queue, "b")).percent_done == 30.0
    assert await called(queue, "b") == []
    await end(queue, Status.COMPLETE)
    assert await called(queue, "b") == ["completed", "succeeded"]
    batch = await known(queue, "b")
    assert (batch.done, batch.done_users, batch.pending, batch.percent) == (3, 10, 0, 100.0)
    assert batch.success
    assert batch.opened_at < batch.complete_at == batch.success_at
    assert 86_000 < await queue.redis.ttl(queue.namespace("batch:b")) <= 86_400
    job = await taken(queue)
    assert (job.function, job.key, job.meta["batch"]) == ("completed", "completed:b:complete", "b")


async def test_a_member_dies_and_is_replayed(queue: Queue) -> None:
    await queue.submit_batch(members(1, 1, 2), id="b", **BACK)
    _, *dead = await end(queue, Status.COMPLETE, Status.FAILED)
    assert await called(queue, "b") == ["died"]
    await end(queue, Status.COMPLETE)
    assert await called(queue, "b") == ["completed", "died"]
    batch = await known(queue, "b")
    assert (batch.dead, batch.done, batch.percent, batch.percent_done, batch.success) == (1, 2, 100.0, 75.0, False)
    assert await queue.redis.ttl(queue.namespace("batch:b")) > 86_400, "it is known as long as its dead letters"
    for status, back in [(Status.FAILED, ["completed", "died"]), (Status.COMPLETE, ["completed", "died", "succeeded"])]:
        assert await replay(queue, dead, kwargs={"users": [1, 2, 3, 4, 5]}) == [True]
        batch = await known(queue, "b")
        assert (batch.pending, batch.dead, batch.users, batch.percent) == (1, 0, 4, 75.0)
        assert await queue.redis.ttl(queue.namespace("batch:b")) == -1
        assert await called(queue, "b") == (["completed", "died"])
        assert await end(queue, status) == dead
        assert await called(queue, "b") == back
    assert (await known(queue, "b")).percent_done == 100.0


async def test_a_replayed_member_has_ended_once_and_keeps_nobody_waiting(queue: Queue) -> None:
    await queue.submit_batch(members(1, 1), id="b", **BACK)
    dead = await end(queue, Status.FAILED)
    await replay(queue, dead)
    assert await end(queue, Status.COMPLETE) == ["m1"]
    assert await called(queue, "b") == ["completed", "died"]
    await end(queue, Status.COMPLETE)
    assert await called(queue, "b") == ["completed", "died", "succeeded"]


@pytest.mark.parametrize("where", ["queued", "active", "delayed"])
async def test_a_cancelled_member_has_ended_and_there_is_no_success(queue: Queue, where: str) -> None:
    jobs = members(3, 1)
    jobs[0].scheduled = 99_999_999_999 if where == "delayed" else 0
    await queue.submit_batch(jobs, id="b", **BACK)
    job = await queue.job("m0")
    assert job is not None
    if where == "active":
        job = await taken(queue)
    await queue.abort(job, "not wanted")
    if where == "active":
        await queue.finish_abort(job)
    await end(queue, Status.COMPLETE)
    assert await called(queue, "b") == ["completed"]
    batch = await known(queue, "b")
    assert (batch.cancelled, batch.cancelled_users, batch.done, batch.percent, batch.percent_done) == (1, 3, 1, 100, 25)


async def test_members_that_are_cleared_retried_released_and_lost(make_queue: MakeQueue) -> None:
    queue = make_queue(lease_s=0.5, sweep_s=60)
    jobs = members(1, 1, 1, 1)
    jobs[0].retries = 5
    await queue.submit_batch(jobs, id="b", **BACK)
    job = await taken(queue)
    await queue.retry(job, "once")
    for _ in range(2):
        await queue.release(await taken(queue))
    assert (await known(queue, "b")).pending == 4
    lost = await taken(queue)
    for crash in range(3):
        claim = queue.claim_of(lost)
        assert claim is not None
        assert queue._leases is not None
        queue._leases.discard(claim)
        await queue.redis.zadd(queue.namespace("leases"), {lost.key: 1})
        assert len(await queue.sweep()) == 1
        queue._claims.clear()
        if crash < 2:
            assert (await taken(queue)).key == lost.key
    assert await called(queue, "b") == ["died"]
    batch = await known(queue, "b")
    assert (batch.dead, batch.pending) == (1, 3)
    async with asyncio.timeout(10):
        while await queue.count("queued") < 4:  # the callback, and what waits for its retry
            await queue.schedule()
    assert (await queue.clear(Which(function="f"))).done == 3
    assert await called(queue, "b") == ["completed", "died"]
    assert (await known(queue, "b")).cancelled == 3


async def test_dead_members_that_go_are_counted_as_gone(make_queue: MakeQueue) -> None:
    queue, there = make_queue(dead_cap=3), make_queue("there")
    await queue.submit_batch(members(*range(1, 8)), id="b", **BACK)
    await end(queue, *[Status.FAILED] * 7)  # four are dropped, the cap is three
    batch = await known(queue, "b")
    assert (batch.dead, batch.gone, batch.gone_users) == (3, 4, 1 + 2 + 3 + 4)
    assert await purge(queue, ["m4"]) == 1
    assert await replay(queue, ["m5"], to=there) == [True]
    assert await queue.enqueue(Job("f", key="m6", priority=4)) is not None  # a new job, and no member
    batch = await known(queue, "b")
    assert (batch.dead, batch.gone, batch.gone_users, batch.jobs, batch.users) == (0, 7, 28, 7, 28)
    assert await called(queue, "b") == ["completed", "died"]
    await queue.submit_batch(members(1, prefix="x"), id="c")
    await end(queue, Status.FAILED)
    await queue.run_script("forget", 0)
    assert (await known(queue, "c")).gone == 1
    await sound(queue)


async def test_an_open_batch_waits_until_it_is_closed(queue: Queue) -> None:
    opened = await queue.open_batch("b", **BACK)
    assert (opened.open, opened.jobs, opened.percent) == (True, 0, 0.0)
    assert await queue.add_to_batch("b", members(2, 2)) == [True, True]
    await end(queue, Status.COMPLETE, Status.COMPLETE)
    batch = await known(queue, "b")
    assert (batch.percent, batch.complete) == (100.0, False)
    await queue.add_to_batch("b", [NewJob("f", key="new", priority="critical", properties={"retries": 1})])
    await end(queue, Status.FAILED)
    assert await called(queue, "b") == ["died"], "a death is told at once"
    closed = await queue.close_batch("b")
    assert (closed.open, closed.complete) == (False, True)
    assert await called(queue, "b") == ["completed", "died"]
    assert await queue.close_batch("b") == closed
    with pytest.raises(UsageError, match="batch b of queue q is closed"):
        await queue.add_to_batch("b", members(1, prefix="late"))
    assert await queue.job("late0") is None
    assert await called(queue, "b") == ["completed", "died"]


async def test_an_open_batch_that_is_closed_without_members_has_succeeded(queue: Queue) -> None:
    await queue.open_batch("b", **BACK)
    batch = await queue.close_batch("b")
    assert (batch.success, batch.complete, batch.percent) == (True, True, 100.0)
    assert await called(queue, "b") == ["completed", "succeeded"]


async def test_asking_again_adds_what_is_missing_and_calls_back_once(queue: Queue) -> None:
    await queue.open_batch("b", **BACK)
    await queue.add_to_batch("b", members(1, 1))  # and then its process died
    batch = await queue.submit_batch(members(1, 1, 1), id="b", **BACK)
    assert (batch.jobs, batch.refused, batch.open) == (3, (), False)
    assert await queue.submit_batch(members(1, 1, 1, 1), id="b", **BACK) == await known(queue, "b")
    assert await queue.job("m3") is None
    await end(queue, *[Status.COMPLETE] * 3)
    assert await queue.submit_batch(members(1, 1, 1), id="b", **BACK) == await known(queue, "b")
    assert await called(queue, "b") == ["completed", "succeeded"]


async def test_asking_again_when_members_have_ended_neither_runs_nor_counts_them_twice(queue: Queue) -> None:
    await queue.open_batch("b", **BACK)
    assert await queue.add_to_batch("b", members(1, 1, 1)) == [True] * 3  # and then its process died
    await end(queue, Status.COMPLETE, Status.FAILED)
    await queue.abort(Job("f", key="m2", queue=queue), "not wanted")
    assert await queue.add_to_batch("b", members(1, 1, 1)) == [True] * 3
    batch = await queue.submit_batch(members(1, 1, 1), id="b", **BACK)
    assert (batch.jobs, batch.done, batch.dead, batch.cancelled, batch.gone) == (3, 1, 1, 1, 0)
    assert await called(queue, "b") == ["completed", "died"]
    await sound(queue)


async def test_a_chunk_whose_answer_is_lost_counts_its_members_once(queue: Queue) -> None:
    await queue.open_batch("b")
    words = [queue.enqueuer.words(job) for job in members(1, 1)]
    for _ in range(2):
        said = await queue.run_script("enqueue", 0.2, "batch b xyz", 0, *(part for one in words for part in one))
        assert said == [1, 1]
    assert (await known(queue, "b")).jobs == 2
    await sound(queue)


async def test_jobs_that_are_refused_are_no_members(queue: Queue) -> None:
    await queue.enqueue(Job("f", key="m1"))
    batch = await queue.submit_batch(members(1, 1, 1), id="b", **BACK)
    assert (batch.jobs, batch.refused) == (2, ("m1",))
    twin = NewJob("f", key="u", unique=Unique("one"))
    await queue.submit("f", unique=Unique("one"))
    assert (await queue.submit_batch([twin, NewJob("f", key="v")], id="c")).refused == ("u",)
    with pytest.raises(UsageError, match="no job of batch d was accepted"):
        await queue.submit_batch(members(1, 1), id="d", **BACK)
    assert await queue.get_batch("d") is None
    assert await called(queue, "b") == []


async def test_callbacks_into_another_queue_and_as_jobs(make_queue: MakeQueue, until: Until) -> None:
    here, there = make_queue("here"), make_queue("there", policies={})
    await here.submit_batch(
        members(1, 1), id="b", on_complete=Job("mail", key="k", kwargs={"to": "x"}, queue=there, priority=2),
        on_success=NewJob("note", {"n": 1}, priority="low"), on_death=Job("never"),
    )  # fmt: skip
    await end(here, Status.COMPLETE, Status.COMPLETE)

    async def delivered() -> bool:
        return await there.count("queued") == 1

    await until(delivered, 5)
    mail = await taken(there)
    assert (mail.key, mail.kwargs, mail.priority, mail.meta["batch"]) == ("k", {"to": "x"}, 2, "b")
    note = await taken(here)
    assert (note.function, note.kwargs, note.priority) == ("note", {"n": 1}, 4)
    await until(lambda: empty(here), 5)
    await there.finish(mail, Status.COMPLETE)
    await sound(there)


@pytest.mark.parametrize("how", ["abort", "abort_running", "stopped", "cancel_keys", "clear", "recovered"])
async def test_callbacks_into_another_queue_leave_at_once_however_the_last_member_ends(
    make_queue: MakeQueue, until: Until, how: str
) -> None:
    here, there = make_queue("here"), make_queue("there")
    await here.submit_batch(members(1), id="b", on_complete=Job("mail", key="k", queue=there))
    job = await here.job("m0")
    assert job is not None
    if how in ("abort_running", "stopped", "recovered"):
        job = await taken(here)
    match how:
        case "abort" | "abort_running":
            await here.abort(job, "not wanted")
        case "stopped":
            await here.finish(job, Status.ABORTED, error="not wanted")
        case "cancel_keys":
            await here.cancel_keys(["m0"])
        case "clear":
            await here.clear()
        case "recovered":
            assert here._leases is not None
            here._leases.discard(here._claims["m0"])
            await here.redis.hset(here.key_of("m0"), "crash", "2")  # type: ignore[misc]  # typed for both clients
            await here.redis.zadd(here.namespace("leases"), {"m0": 1})
            assert len(await here.sweep()) == 1
            here._claims.clear()

    async def delivered() -> bool:
        return await there.count("queued") == 1 and await empty(here)

    await until(delivered, 1)
    assert await relay(here) == 0
    assert (await taken(there)).key == "k"
    assert await there.count("queued") == 0
    await sound(here)


async def empty(queue: Queue) -> bool:
    return (await audit(queue)).outgoing == 0


async def test_batches_are_listed_and_forgotten(queue: Queue, until: Until) -> None:
    await queue.open_batch("open")
    await queue.submit_batch(members(1), id="short", keep_s=1)
    await end(queue, Status.COMPLETE)
    assert [batch.id for batch in await queue.batches()] == ["short", "open"]
    await until(lambda: gone(queue, "short"), 10)
    await queue.open_batch("another")
    assert await queue.redis.zrange(queue.namespace("batches"), 0, -1) == [b"another", b"open"]
    await sound(queue)


async def gone(queue: Queue, id: str) -> bool:
    return await queue.get_batch(id) is None


async def test_a_dead_letter_that_outlives_its_batch_is_replayed_all_the_same(queue: Queue) -> None:
    await queue.submit_batch(members(1), id="b", **BACK)
    dead = await end(queue, Status.FAILED)
    await queue.redis.delete(queue.namespace("batch:b"))
    assert await replay(queue, dead) == [True]
    await end(queue, Status.COMPLETE)
    assert await queue.get_batch("b") is None


async def test_a_queue_without_batches_keeps_nothing_of_them(queue: Queue) -> None:
    await queue.enqueue_many(members(1, 1, 1))
    dead = await end(queue, Status.COMPLETE, Status.FAILED)
    await replay(queue, dead[1:])
    await end(queue, Status.COMPLETE, Status.COMPLETE)
    keys = [key async for key in queue.redis.scan_iter(count=1000)]
    assert not [key for key in keys if b"batch" in key]
    assert not await queue.redis.hexists(queue.key_of("m0"), "batch")  # type: ignore[misc]


@pytest.mark.parametrize(
    ("field", "value", "says"),
    [
        ("pending", 1, "pending 1, but there are 2"),
        ("dead", 0, "dead 0, but there are 1"),
        ("pending_users", 1, "its members do not add up"),
        ("complete", 1, "complete or not, wrongly"),
        ("success", 1, "a success or not, wrongly"),
        ("death", None, "nobody was told of a death"),
        (None, None, "members of batch b are pending"),
    ],
)
async def test_the_audit_sees_what_is_out_of_step(queue: Queue, field: str | None, value: object, says: str) -> None:
    await queue.submit_batch(members(1, 1, 1), id="b")
    await end(queue, Status.FAILED)
    await sound(queue)
    name = queue.namespace("batch:b")
    if field is None:
        await queue.redis.delete(name, queue.namespace("batches"))
    elif value is None:
        await queue.redis.hdel(name, field)  # type: ignore[misc]
    else:
        await queue.redis.hset(name, field, str(value))  # type: ignore[misc]
    assert any(says in problem for problem in (await audit(queue)).problems)


@pytest.mark.parametrize(("given", "says"), [
    ({"jobs": []}, "a batch without jobs"),
    ({"id": "a b"}, "cannot be called"),
    ({"id": "a\n"}, "cannot be called"),
    ({"keep_s": 0}, "keep_s 0"),
    ({"keep_s": float("nan")}, "keep_s nan"),
    ({"on_death": 7}, "the on_death of batch .* is a int"),
    ({"on_success": NewJob("f", delay_s=9)}, "the on_success of batch .* has a time"),
    ({"on_complete": NewJob("f", unique="x")}, "the on_complete of batch .* is unique"),
    ({"on_complete": Job("f", kwargs={"x": object()})}, "JSON cannot hold"),
    ({"jobs": [Job("f", priority=9)]}, "priority 9"),
])  # fmt: skip
async def test_bad_input_is_refused_and_leaves_nothing(queue: Queue, given: dict[str, Any], says: str) -> None:
    with pytest.raises(UsageError, match=says):
        await queue.submit_batch(**{"jobs": members(1), **given})
    assert await queue.batches() == []
    assert await queue.count("queued") == 0


async def test_more_bad_input(make_queue: MakeQueue) -> None:
    queue, there = make_queue(), make_queue("there")
    for call in (queue.close_batch("none"), queue.add_to_batch("none", members(1))):
        with pytest.raises(UsageError, match="none"):
            await call
    assert await queue.get_batch("none") is None
    with pytest.raises(UsageError, match="is of queue there, batch b of queue q"):
        await queue.submit_batch([Job("f", queue=there)], id="b")
    with pytest.raises(UsageError, match="batch b has members already"):
        await queue.submit_batch([*members(1, 1), Job("f", priority=9)], id="b", chunk=1)
    assert (await known(queue, "b")).jobs == 2
    assert not (await queue.submit_batch(members(1, 1), id="b")).open


# --- at random -------------------------------------------------------------------------------------------------------


class Books:
    """What batch "b" should be, kept apart from the server: its members, and what it has called back."""

    def __init__(self) -> None:
        self.states: dict[str, str] = {}
        self.users: dict[str, int] = {}
        self.ended: set[str] = set()
        self.closed = False
        self.called: set[str] = set()

    def note(self, key: str, state: str) -> None:
        self.states[key] = state
        if state in ("done", "dead", "cancelled"):
            self.ended.add(key)
        if state == "dead":
            self.called.add("died")
        self.look()

    def look(self) -> None:
        if self.closed and self.ended == self.states.keys():
            self.called.add("completed")
        if self.closed and set(self.states.values()) <= {"done"}:
            self.called.add("succeeded")

    def of(self, *states: str) -> list[str]:
        return sorted(key for key, state in self.states.items() if state in states)

    def equal(self, batch: Batch) -> bool:
        told: dict[str, tuple[int, int]] = {}
        for name in ("pending", "done", "dead", "cancelled", "gone"):
            keys = self.of(*(["waits", "runs"] if name == "pending" else [name]))
            told[name] = len(keys), sum(self.users[key] for key in keys)
        return told == {name: (getattr(batch, name), getattr(batch, f"{name}_users")) for name in told}


@pytest.mark.parametrize("seed", range(10))
async def test_at_random_two_processes_are_called_back_once_each(make_queue: MakeQueue, seed: int) -> None:
    draws, books = random.Random(seed), Books()
    queues = [make_queue(tick_s=0.001), make_queue(tick_s=0.001)]
    held: dict[str, tuple[Queue, Job, bytes]] = {}
    ended: list[tuple[str, str, bytes]] = []
    await queues[0].open_batch("b", **BACK)
    usual = ["take", "take", "take", "done", "done", "fail", "fail", "retry", "release", "replay", "again"]
    usual += [] if seed % 2 else ["abort", "purge"]  # after these there is no success
    for turn in range(70):
        queue = draws.choice(queues)
        action = "close" if turn == 30 else draws.choice(usual + ["add"] * 3 * (turn < 30))
        dead = books.of("dead")
        if action == "add":
            job = Job("f", kwargs={"users": list(range(draws.randint(0, 3)))}, priority=1, retries=99)
            books.users[job.key] = max(1, len((job.kwargs or {})["users"]))
            assert await queue.add_to_batch("b", [job]) == [True]
            assert await draws.choice(queues).add_to_batch("b", [Job("f", key=job.key)]) == [True], "it is one already"
            books.note(job.key, "waits")
        elif action == "close":
            await queue.close_batch("b")
            books.closed = True
            books.look()
        elif action == "take" and books.of("waits"):
            job = await taken(queue)
            claim = queue.claim_of(job)
            assert claim is not None
            held[job.key] = queue, job, claim.token
            books.note(job.key, "runs")
        elif action in ("done", "fail", "retry", "release") and held:
            holder, job, token = held.pop(draws.choice(sorted(held)))
            if action == "release":
                await holder.release(job)
            elif action == "retry":
                await holder.retry(job, "ValueError: no")
            else:
                await holder.finish(job, Status.COMPLETE if action == "done" else Status.FAILED, error="no")
                ended.append(("finish" if action == "done" else "bury", job.key, token))
            books.note(job.key, {"done": "done", "fail": "dead"}.get(action, "waits"))
        elif action == "again" and ended:  # the answer was lost, and the same is said again
            name, key, token = draws.choice(ended)
            facts = ("{}", 600, "") if name == "finish" else ("", "", "")
            assert (await queue.run_script(name, key, token, *facts))[0] in (0, 2)
        elif action == "abort" and (live := books.of("waits", "runs")):
            key = draws.choice(live)
            stored = await queue.job(key)
            assert stored is not None
            await queue.abort(stored, "not wanted")
            if key in held:
                holder, job, _ = held.pop(key)
                await holder.finish_abort(job)
            books.note(key, "cancelled")
        elif action == "replay" and dead:
            said = await asyncio.gather(*(replay(one, dead[:1]) for one in queues))
            assert sorted(said) == [[False], [True]]
            books.note(dead[0], "waits")
        elif action == "purge" and dead and draws.random() < 0.3:
            assert await purge(queue, dead[-1:]) == 1
            books.states[dead[-1]] = "gone"
        assert await called(queue, "b") == sorted(books.called), (turn, action)
        assert books.equal(await known(queue, "b")), (turn, action)
    while live := books.of("waits", "runs", "dead"):  # let all of them be done that can be
        key = live[0]
        if books.states[key] == "dead":
            assert await replay(queues[0], [key]) == [True]
        elif key not in held:
            job = await taken(queues[1])
            held[job.key] = queues[1], job, b""
            books.note(job.key, "runs")
            continue
        else:
            holder, job, _ = held.pop(key)
            await holder.finish(job, Status.COMPLETE)
        books.note(key, "done" if books.states[key] == "runs" else "waits")
        assert await called(queues[0], "b") == sorted(books.called)
    assert books.called >= ({"completed", "succeeded"} if seed % 2 else {"completed"})
