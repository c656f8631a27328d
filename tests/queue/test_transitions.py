"""Every transition of the life-cycle on a real server, and every one that is not allowed."""

from __future__ import annotations

import asyncio
import time
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from redis.exceptions import ConnectionError
from saq.job import Job, Status

from saqkit.queue.audit import Audit, audit
from saqkit.queue.dead_letters import purge, replay
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import digest, source
from saqkit.spec.lifecycle import NEXT, TRANSITIONS, Action, State, Transition

PLACE = {State.QUEUED: ["queued:3"], State.SCHEDULED: ["incomplete"], State.ACTIVE: ["leases"], State.DEAD: ["dead"],
         State.OUTGOING: ["outgoing"]}  # fmt: skip
COUNTED = {
    Action.FINISH: ["complete"],
    Action.RETRY: ["retried"],
    Action.RETRY_NOW: ["retried"],
    Action.BURY: ["failed"],
    Action.RELEASE: ["released"],
    Action.RECOVER: ["lost"],
    Action.POISON: ["failed", "lost"],
    Action.CANCEL: ["aborted"],
    Action.REPLAY: ["dead_replayed"],
    Action.DELIVER: ["dead_moved"],
}
Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Places = Callable[[Queue, str], Awaitable[list[str]]]


async def reach(queue: Queue, state: State) -> Job:
    """A job in a state, the way a user brings it there."""
    job = Job("f", key="k", queue=queue, retries=5, retry_delay=100)
    if state == State.ABSENT:
        return job
    if state == State.SCHEDULED:
        job.scheduled = int(time.time()) + 3600
    assert await queue.enqueue_many([job]) == [True]
    if state in (State.ACTIVE, State.DONE, State.DEAD, State.OUTGOING):
        job = await taken(queue)
    if state == State.DONE:
        await queue.finish(job, Status.COMPLETE, result=1)
    elif state in (State.DEAD, State.OUTGOING):
        await queue.finish(job, Status.FAILED, error="ValueError: no")
    elif state == State.CANCELLED:
        await queue.abort(job, "stopped")
    if state == State.OUTGOING:
        await do(queue, job, Action.MOVE)
    return job


async def taken(queue: Queue) -> Job:
    job = await queue.dequeue(timeout=5)
    assert job is not None
    job.attempts += 1  # as SAQ's worker does
    return job


async def do(queue: Queue, job: Job, action: Action) -> None:
    """Carry an allowed action out."""
    match action:
        case Action.ENQUEUE:
            assert await queue.enqueue_many([Job("f", key="k", queue=queue)]) == [True]
        case Action.DELAY:
            later = Job("f", key="k", queue=queue, scheduled=int(time.time()) + 3600)
            assert await queue.enqueue_many([later]) == [True]
        case Action.PROMOTE:
            await queue.redis.zadd(queue.namespace("incomplete"), {queue.job_id("k"): 1})
            assert await queue.schedule() == [job.id]
        case Action.TAKE:
            assert (await taken(queue)).key == "k"
        case Action.FINISH:
            await queue.finish(job, Status.COMPLETE, result=1)
        case Action.RETRY | Action.RETRY_NOW:
            job.retry_delay = 100 if action == Action.RETRY else 0
            await queue.retry(job, "ValueError: no")
        case Action.BURY:
            await queue.finish(job, Status.FAILED, error="ValueError: no")
        case Action.RELEASE:
            await queue.release(job)
        case Action.RECOVER | Action.POISON:
            if action == Action.POISON:
                await queue.redis.hset(queue.key_of("k"), "crash", 2)  # type: ignore[misc,arg-type]
            await queue.redis.zadd(queue.namespace("leases"), {"k": 1})
            assert await queue.sweep() == [job.id]
        case Action.CANCEL:
            await queue.abort(job, "stopped")
        case Action.REPLAY:
            assert await replay(queue, ["k"]) == [True]
        case Action.HASTEN:
            assert await queue.run_script("hasten", "k") == [1]
        case Action.PRIORITISE:
            for level in ("low", "normal"):
                await queue.set_priority("k", level)
        case Action.MOVE:
            assert await queue.run_script("move", "elsewhere", "k", "", "{}", 0, "m") == [1]
        case Action.DELIVER | Action.REFUSE:
            accepted = int(action == Action.DELIVER)
            assert await queue.run_script("deliver", "k", "m", accepted) == [accepted]
        case Action.FORGET:
            if not await purge(queue, ["k"]):  # done and cancelled jobs expire by themselves
                assert 0 < await queue.redis.ttl(queue.key_of("k")) <= job.ttl
                await queue.redis.delete(queue.key_of("k"))


@pytest.mark.parametrize("step", TRANSITIONS, ids=lambda t: f"{t.source.name}-{t.action.name}".lower())
async def test_an_allowed_transition_moves_the_job_and_counts_it(
    queue: Queue, places: Places, counts: Counts, step: Transition
) -> None:
    job = await reach(queue, step.source)
    assert await places(queue, "k") == PLACE.get(step.source, [])
    before = await counts(queue)

    await do(queue, job, step.action)

    state = await queue.redis.hget(queue.key_of("k"), "state")  # type: ignore[misc]
    assert State(int(state or 0)) == step.target
    assert await places(queue, "k") == PLACE.get(step.target, [])
    told = COUNTED.get(step.action, [])
    if step.source == State.DEAD:
        again = ["superseded"] if step.action <= Action.DELAY else told
        told = {Action.FORGET: ["dead_purged"]}.get(step.action, again)
    after = await counts(queue)
    assert Counter(after) - Counter(before) == Counter(told)
    where = [int(step.target == kind) for kind in (State.QUEUED, State.SCHEDULED, State.ACTIVE, State.DEAD)]
    assert await audit(queue) == Audit(*where, problems=(), outgoing=int(step.target == State.OUTGOING))


async def everything(queue: Queue) -> dict[str, Any]:
    """The whole content of the server but for the time of the last contact and the counters."""
    found: dict[str, Any] = {}
    redis: Any = queue.redis
    async for key in redis.scan_iter():
        if key.decode() not in (queue.namespace("alive"), queue.namespace("seq"), queue.namespace("counts")):
            kind = (await redis.type(key)).decode()
            if kind == "hash":
                found[key.decode()] = await redis.hgetall(key)
            elif kind == "zset":
                found[key.decode()] = await redis.zrange(key, 0, -1, withscores=True)
            elif kind == "list":
                found[key.decode()] = await redis.lrange(key, 0, -1)
            else:
                found[key.decode()] = await redis.get(key)
    return found


def forbidden() -> list[tuple[State, Action]]:
    same = {(State.ACTIVE, Action.RECOVER), (State.ACTIVE, Action.POISON)}
    return [(s, a) for s in State for a in Action if NEXT[s][a] < 0 and (s, a) not in same]


@pytest.mark.parametrize(("state", "action"), forbidden(), ids=lambda value: value.name.lower())
async def test_what_the_life_cycle_does_not_allow_changes_nothing(queue: Queue, state: State, action: Action) -> None:
    await reach(queue, state)
    raw: dict[Action, tuple[Any, ...]] = {
        Action.ENQUEUE: ("enqueue", 0.2, "x", 0, "k", "{}", 3, 0, 0, 0),
        Action.DELAY: ("enqueue", 0.2, "x", 0, "k", "{}", 3, 3600, 0, 0),
        Action.PROMOTE: ("promote",),
        Action.TAKE: ("take", 1, "w", 5, 0, 1, "jobs", "x", 0, "" if state == State.SCHEDULED else "k"),
        Action.FINISH: ("finish", "k", "0", "{}", 600, "{}"),
        Action.RETRY: ("retry", 0.2, "k", "0", "{}", 1, "{}"),
        Action.RETRY_NOW: ("retry", 0.2, "k", "0", "{}", 0, "{}"),
        Action.BURY: ("bury", "k", "0", "{}", "", "{}"),
        Action.RELEASE: ("release", "k", "0", "", "{}"),
        Action.RECOVER: ("recover", 3, 5),
        Action.POISON: ("recover", 1, 5),
        Action.CANCEL: ("cancel", "k", "no", 600, "", "{}", 5),
        Action.HASTEN: ("hasten", "k"),
        Action.PRIORITISE: ("prioritise", "k", 1),
        Action.REPLAY: ("replay", "k"),
        Action.FORGET: ("forget", -1, "k"),
        Action.MOVE: ("move", "elsewhere", "k", "", "{}", 0, "m"),
        Action.DELIVER: ("deliver", "k", "m", 1),
        Action.REFUSE: ("deliver", "k", "m", 0),
    }
    before = await everything(queue)
    said = await queue.run_script(*raw[action])
    assert await everything(queue) == before
    if state != State.ABSENT and action not in (Action.TAKE, Action.FORGET, Action.DELIVER, Action.REFUSE):
        assert said in ([], [0], [0, int(state)])
    assert (await audit(queue)).problems == ()


async def test_a_late_result_is_refused_and_counted(
    queue: Queue, make_queue: Callable[..., Queue], counts: Counts
) -> None:
    other = make_queue()
    await queue.enqueue("f", key="k")
    late = await taken(queue)
    await queue.redis.zadd(queue.namespace("leases"), {"k": 1})
    await other.sweep()
    again = await taken(other)

    await queue.finish(late, Status.COMPLETE, result="late")
    assert (await counts(queue))["fenced"] == 1
    assert (await queue.redis.hget(queue.key_of("k"), "state")) == b"3"  # type: ignore[misc]
    await other.finish(again, Status.COMPLETE, result="right")
    await queue.update(late, meta={"late": True})
    stored = await queue.job("k")
    assert stored is not None
    assert (stored.status, stored.result, stored.meta) == (Status.COMPLETE, "right", {})
    assert (await counts(queue)) == {"lost": 1, "fenced": 1, "complete": 1}


@pytest.mark.parametrize("ttl", [600, 0, -1])
@pytest.mark.parametrize("name", ["finish", "retry", "bury", "release", "cancel"])
async def test_saying_the_end_of_an_attempt_twice_changes_nothing(queue: Queue, name: str, ttl: int) -> None:
    await reach(queue, State.QUEUED)
    claim = queue.claim_of(await taken(queue))
    assert claim is not None
    words: dict[str, tuple[Any, ...]] = {
        "finish": ("k", claim.token, "{}", ttl, "{}"),
        "retry": (0.2, "k", claim.token, "{}", 50, "{}"),
        "bury": ("k", claim.token, "{}", "", "{}"),
        "release": ("k", claim.token, "", "{}"),
        "cancel": ("k", "stopped", ttl, claim.token, "{}", 0),
    }
    assert (await queue.run_script(name, *words[name]))[0] != 0
    before = await everything(queue)
    marked = [f"{word.decode()}?" if word == claim.token and name != "cancel" else word for word in words[name]]
    repeated = (await queue.run_script(name, *marked))[0]
    assert repeated != 0 or (name, ttl) == ("cancel", -1)
    assert await everything(queue) == before
    assert await queue.redis.hget(queue.namespace("counts"), "fenced") is None  # type: ignore[misc]


async def test_a_late_result_of_a_job_that_is_gone_is_refused_and_counted(
    queue: Queue, make_queue: Callable[..., Queue], counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    other = make_queue()
    await queue.enqueue("f", key="k", ttl=-1)
    late = await taken(queue)
    await queue.redis.zadd(queue.namespace("leases"), {"k": 1})
    await other.sweep()
    await other.finish(await taken(other), Status.COMPLETE)
    assert not await queue.redis.exists(queue.key_of("k"))

    await queue.finish(late, Status.COMPLETE, result="late")
    assert await counts(queue) == {"lost": 1, "complete": 1, "fenced": 1}
    assert "job k: the claim of this worker was no longer held, its result is refused" in caplog.text


async def test_a_lost_reply_to_the_end_of_a_job_that_is_kept_for_no_time_is_no_late_result(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, counts: Counts, caplog: pytest.LogCaptureFixture
) -> None:
    await queue.enqueue("f", key="k", ttl=-1)
    job = await taken(queue)
    await lose_next_reply(queue, monkeypatch, "finish")
    await queue.finish(job, Status.COMPLETE)
    assert await counts(queue) == {"complete": 1}
    assert "refused" not in caplog.text


async def lose_next_reply(queue: Queue, monkeypatch: pytest.MonkeyPatch, name: str) -> None:
    """The server carries the next call of this script out; its answer never arrives."""
    send, lost = queue.redis.evalsha, []
    await queue.redis.script_load(source(name))

    async def losing(sha: str, *args: Any) -> Any:
        answer = await send(sha, *args)  # type: ignore[misc]
        if sha == digest(name) and not lost:
            lost.append(sha)
            raise ConnectionError("the reply was lost")
        return answer

    monkeypatch.setattr(queue.redis, "evalsha", losing)


async def test_a_lost_reply_to_enqueue_reports_success(queue: Queue, monkeypatch: pytest.MonkeyPatch) -> None:
    await lose_next_reply(queue, monkeypatch, "enqueue")
    assert await queue.enqueue_many([Job("f", key=str(n)) for n in range(20)]) == [True] * 20
    assert await queue.enqueue("f", key="3") is None
    assert await queue.count("queued") == 20


async def test_a_lost_reply_to_take_strands_nothing(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, counts: Counts
) -> None:
    await queue.enqueue_many([Job("f", key=str(n)) for n in range(5)])
    await lose_next_reply(queue, monkeypatch, "take")
    assert [(await taken(queue)).key for _ in range(5)] == list("01234")
    assert (await counts(queue)) == {}
    assert await audit(queue) == Audit(0, 0, 5, 0, ())


@pytest.mark.parametrize("name", ["finish", "retry", "bury", "release"])
async def test_a_lost_reply_to_the_end_of_an_attempt_does_it_once(
    queue: Queue, monkeypatch: pytest.MonkeyPatch, counts: Counts, name: str
) -> None:
    job = await reach(queue, State.ACTIVE)
    await lose_next_reply(queue, monkeypatch, name)
    await do(queue, job, {"finish": Action.FINISH, "retry": Action.RETRY, "bury": Action.BURY,
                          "release": Action.RELEASE}[name])  # fmt: skip
    assert sum((await counts(queue)).values()) == 1
    assert queue.claim_of(Job("f", key="k", queue=queue)) is None


async def test_enqueue_is_idempotent_while_the_job_lives_and_as_long_as_its_key_is_kept(queue: Queue) -> None:
    kept = [Job("f", key="kept", meta={"keep_key_s": 60}) for _ in range(20)]
    accepted = await asyncio.gather(*(queue.enqueue(job) for job in kept))
    assert sum(job is not None for job in accepted) == 1
    await queue.finish(await taken(queue), Status.COMPLETE)
    assert await queue.enqueue("f", key="kept") is None
    await queue.enqueue("f", key="free")
    await queue.finish(await taken(queue), Status.COMPLETE)
    assert await queue.enqueue("f", key="free") is not None
