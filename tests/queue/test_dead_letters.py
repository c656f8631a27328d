"""Dead letters: what they hold, which are meant, how many are kept, and that a replay happens once."""

from __future__ import annotations

import asyncio
import json
import time
from collections.abc import Awaitable, Callable, Iterable
from datetime import UTC, datetime

import numpy as np
import pandas as pd
import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.audit import Audit, audit
from saqkit.queue.dead_letters import (
    Chosen,
    Filter,
    dead_letters,
    dead_letters_frame,
    get,
    groups,
    purge,
    purge_all,
    replay,
    replay_all,
)
from saqkit.queue.queue import Queue
from saqkit.spec.lifecycle import POISON_CRASHES

STACK = 'Traceback (most recent call last):\n  File "x.py", line 1, in f\nValueError: no such user'
Counts = Callable[[Queue], Awaitable[dict[str, int]]]


async def die(queue: Queue, *keys: str, function: str = "f", error: str = STACK, tenant: str = "") -> None:
    meta = {"tenant": tenant} if tenant else {}
    kwargs = {"users": [1, 2], "note": "é"}
    await queue.enqueue_many(Job(function, key=key, kwargs=dict(kwargs), meta=dict(meta)) for key in keys)
    for _ in keys:
        job = await queue.dequeue(timeout=5)
        assert job is not None
        job.attempts += 1
        await queue.finish(job, Status.FAILED, error=error)


async def died_at(queue: Queue, **times: float) -> None:
    """Move the deaths of letters to other times."""
    await queue.redis.zadd(queue.namespace("dead"), times, xx=True)


async def keys_of(queues: Queue | Iterable[Queue], *filters: Filter, **options: int) -> str:
    where = filters[0] if filters else Filter()
    return " ".join([letter.key async for letter in dead_letters(queues, where=where, **options)])


async def strewn(queue: Queue, number: int, same_time: int = 1) -> None:
    """Dead letters put there by hand, many of them, `same_time` of which died together; each seventh differs."""
    pipe, at = queue.redis.pipeline(transaction=False), time.time() - 100
    for n in range(number):
        job = Job("odd" if n % 7 == 0 else "f", key=f"k{n}", queue=queue, error=f"ValueError: no user {n}")
        fields = {"body": queue.serialize(job), "state": 5, "prio": 3, "att": 1, "at_q": at, "at_t": at}
        pipe.hset(queue.key_of(job.key), mapping=fields)
        pipe.zadd(queue.namespace("dead"), {job.key: at + n // same_time * 1e-3})
        if n % 1000 == 999:
            await pipe.execute()
    await pipe.execute()


@pytest.mark.row("002.9", "004.12")
async def test_a_dead_letter_has_payload_stack_attempts_and_times(queue: Queue) -> None:
    before = time.time()
    await die(queue, "k", tenant="north")
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert (letter.key, letter.queue, letter.function, letter.priority) == ("k", "q", "f", 3)
    assert letter.kwargs == {"users": [1, 2], "note": "é"}
    assert (letter.meta, letter.tenant, letter.users) == ({"tenant": "north"}, "north", 2)
    assert (letter.error, letter.reason, letter.error_class) == (STACK, "ValueError: no such user", "ValueError")
    assert (letter.attempts, letter.crashes, letter.worker) == (1, 0, queue.worker_name)
    assert before - 1 <= letter.queued_at <= letter.started_at <= letter.died_at <= time.time() + 1
    assert await get(queue, "k") == letter
    assert await get(queue, "nobody") is None
    job = await queue.job("k")
    assert job is not None
    assert job.status == Status.FAILED
    assert await queue.redis.ttl(queue.key_of("k")) == -1  # kept by its retention, not by the job's ttl


async def test_two_replays_at_once_queue_it_once_with_all_its_attempts(
    queue: Queue, make_queue: Callable[..., Queue]
) -> None:
    await die(queue, "k")
    said = await asyncio.gather(*(replay(q, ["k"]) for q in [queue, make_queue()] * 5))
    assert sum(one for (one,) in said) == 1
    assert await audit(queue) == Audit(1, 0, 0, 0, ())
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert (job.attempts, job.kwargs) == (0, {"users": [1, 2], "note": "é"})


async def test_two_replays_of_all_at_once_queue_each_letter_once(
    queue: Queue, make_queue: Callable[..., Queue], counts: Counts
) -> None:
    await strewn(queue, 2_500)
    said = await asyncio.gather(*(replay_all(q) for q in (queue, make_queue(), make_queue())))
    assert sum(one.done for one in said) == 2_500
    assert await audit(queue) == Audit(2_500, 0, 0, 0, ())
    assert await counts(queue) == {"dead_replayed": 2_500}


async def test_a_letter_that_was_replayed_and_died_again_is_another_one(queue: Queue) -> None:
    await die(queue, "k")
    first = await get(queue, "k")
    assert first is not None
    assert await replay(queue, [first]) == [True]
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.finish(job, Status.FAILED, error="ValueError: again")
    assert await replay(queue, [first]) == [False]
    assert await purge(queue, [first]) == 0
    assert await replay(queue, ["k"]) == [True]


async def test_what_dies_again_while_all_are_replayed_is_not_replayed_again(queue: Queue) -> None:
    await die(queue, "a", "b")

    async def die_again(chunk: list[object]) -> None:
        await die(queue, "new")

    assert await replay_all(queue, before=die_again) == Chosen(2, 2)
    assert await keys_of(queue) == "new"


@pytest.mark.row("002.9")
async def test_other_arguments_are_merged_in_and_nothing_else_changes(queue: Queue) -> None:
    await queue.enqueue_many([Job("f", key="k", kwargs={"users": [1, 2], "a": 1}, priority=2, timeout=77)])
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.finish(job, Status.FAILED, error=STACK)
    assert await replay(queue, ["k", "unknown"], kwargs={"users": [7], "b": {"c": None}}) == [True, False]
    assert int(await queue.redis.hget(queue.key_of("k"), "users")) == 1  # type: ignore[misc,arg-type]
    again = await queue.dequeue(timeout=5)
    assert again is not None
    assert again.kwargs == {"users": [7], "a": 1, "b": {"c": None}}
    assert (again.priority, again.timeout, again.attempts, again.error) == (2, 77, 0, None)


async def test_a_body_that_nobody_can_read_is_a_dead_letter_and_harms_no_neighbour(queue: Queue) -> None:
    await queue.enqueue_many(Job("f", key=key) for key in ("a", "bad", "c"))
    await queue.redis.hset(queue.key_of("bad"), "body", '{"queue": "q", "surprise": 1}')  # type: ignore[misc]
    jobs = await asyncio.gather(*(queue.dequeue(timeout=5) for _ in range(2)))
    assert sorted(job.key for job in jobs if job) == ["a", "c"]
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert (letter.key, letter.function, letter.error_class) == ("bad", "", "unreadable")
    assert letter.error.startswith("unreadable: TypeError")
    await queue.redis.hset(queue.key_of("bad"), "body", b"\xff")  # type: ignore[misc]
    assert await replay(queue, ["bad"], kwargs={"a": 1}) == [False]
    assert await keys_of(queue) == "bad"
    assert await replay(queue, ["bad"]) == [True]


async def test_each_filter_chooses(queue: Queue) -> None:
    await die(queue, "a", function="send", error="Traceback (most recent call last):\n  x\nsmtplib.Refused: 5 no")
    await die(queue, "b", function="send", tenant="north", error="TimeoutError")
    await die(queue, "c", tenant="south")
    await queue.redis.hset(queue.key_of("c"), "att", 3)  # type: ignore[misc]
    now = time.time()
    await died_at(queue, a=now - 300, b=now - 200, c=now - 100)
    assert await keys_of(queue) == "a b c"
    assert await keys_of(queue, newest_first=True) == "c b a"
    assert await keys_of(queue, limit=1, offset=1) == "b"
    assert await keys_of(queue, Filter(function="send")) == "a b"
    assert await keys_of(queue, Filter(tenant="north")) == "b"
    assert await keys_of(queue, Filter(error_class="smtplib.Refused")) == "a"
    assert await keys_of(queue, Filter(error_class="Refused")) == "a"
    assert await keys_of(queue, Filter(error_class="Error")) == ""
    assert await keys_of(queue, Filter(text="NO SUCH")) == "c"
    assert await keys_of(queue, Filter(since=now - 250)) == "b c"
    assert await keys_of(queue, Filter(until=now - 150)) == "a b"
    assert await keys_of(queue, Filter(since=now - 250, until=now - 150), newest_first=True) == "b"
    assert await keys_of(queue, Filter(min_attempts=2)) == "c"
    assert await keys_of(queue, Filter(function="send", tenant="south")) == ""

    assert await purge_all(queue, Filter(tenant="north"), dry_run=True) == Chosen(1, 0)
    assert await replay_all(queue, Filter(function="send"), dry_run=True) == Chosen(2, 0)
    assert await keys_of(queue) == "a b c"
    assert await purge_all(queue, Filter(tenant="north")) == Chosen(1, 1)
    assert await replay_all(queue, Filter(function="send")) == Chosen(1, 1)
    assert await keys_of(queue) == "c"


async def test_several_queues_are_read_in_the_order_of_their_deaths(make_queue: Callable[..., Queue]) -> None:
    queues, now = [make_queue("one"), make_queue("two"), make_queue("none")], time.time()
    await die(queues[0], "a", "d")
    await die(queues[1], "b", "c")
    await died_at(queues[0], a=now - 40, d=now - 10)
    await died_at(queues[1], b=now - 30, c=now - 20)
    assert await keys_of(queues) == "a b c d"
    assert await keys_of(queues, newest_first=True, limit=3) == "d c b"
    assert [(g.by["queue"], g.count) for g in await groups(queues, ["queue"])] == [("one", 2), ("two", 2)]


async def test_errors_are_grouped_without_what_varies(queue: Queue) -> None:
    now = time.time()
    for n, key in enumerate(("a", "b", "c")):
        await die(queue, key, error=STACK[:-24] + f"KeyError: 'user {n}' of p{n}@x.org, id {n}")
    await die(queue, "d", error="KeyError: something else", tenant="north")
    await die(queue, "e", error="gave up after 3 of 5")
    await died_at(queue, a=now - 50, b=now - 40, c=now - 30)
    first, *others = await groups(queue)
    assert first.by == {"error_class": "KeyError", "message": "'…' of …@…, id #"}
    assert (first.count, first.example) == (3, "c")
    assert (first.first_died_at, first.last_died_at) == pytest.approx((now - 50, now - 30), abs=1e-5)
    assert [(one.by["error_class"], one.by["message"]) for one in others] == [
        ("", "gave up after # of #"),
        ("KeyError", "something else"),
    ]
    by_class = await groups(queue, ["error_class"], where=Filter(error_class="KeyError"))
    assert [(one.by, one.count) for one in by_class] == [({"error_class": "KeyError"}, 4)]
    assert {one.by["tenant"]: one.count for one in await groups(queue, ["tenant"])} == {"": 4, "north": 1}
    with pytest.raises(UsageError, match="cannot be grouped by colour"):
        await groups(queue, ["colour"])


@pytest.mark.parametrize(
    ("error", "reason", "error_class"),
    [
        (STACK, "ValueError: no such user", "ValueError"),
        (STACK + "\n  and a second line: of it\nthird", "ValueError: no such user", "ValueError"),
        (f"{STACK}\n\nDuring it\n\n{STACK.replace('ValueError', 'a.Other')}", "a.Other: no such user", "a.Other"),
        ("poison: its worker died 3 times", "poison: its worker died 3 times", "poison"),
        ("TimeoutError", "TimeoutError", "TimeoutError"),
        ("it just failed: badly", "it just failed: badly", ""),
        ("", "", ""),
    ],
)
async def test_the_reason_is_the_line_that_says_what_happened(
    queue: Queue, error: str, reason: str, error_class: str
) -> None:
    await die(queue, "k", error=error)
    letter = await get(queue, "k")
    assert letter is not None
    assert (letter.error, letter.reason, letter.error_class) == (error, reason, error_class)


@pytest.mark.parametrize("same_time", [1, 1_300])
async def test_20_000_letters_are_read_in_pages_without_leaving_one_out(queue: Queue, same_time: int) -> None:
    await strewn(queue, 20_000, same_time)
    began, seen = time.monotonic(), []
    async for letter in dead_letters(queue, None):
        seen.append(letter.key)
        if len(seen) == 700:  # what goes meanwhile makes nobody be left out
            await purge(queue, seen[:650])
    assert len(seen) == len(set(seen)) == 20_000
    assert [letter.key async for letter in dead_letters(queue, 3, newest_first=True)] == seen[-1:-4:-1]
    odd = [one.key async for one in dead_letters(queue, None, where=Filter(function="odd"))]
    assert odd == [key for key in seen[650:] if int(key[1:]) % 7 == 0]
    assert [one.count for one in await groups(queue)] == [20_000 - 650]
    assert time.monotonic() - began < 60


async def test_old_ones_are_forgotten_and_chosen_ones_purged(make_queue: Callable[..., Queue], counts: Counts) -> None:
    queue = make_queue(dead_retention_s=1000)
    await die(queue, "a", "b", "c")
    await died_at(queue, a=time.time() - 2000)
    assert await queue.run_script("forget", queue.dead_retention_s) == 1
    assert await purge(queue, ["b", "unknown"]) == 1
    assert await keys_of(queue) == "c"
    assert await queue.job("a") is None
    assert await counts(queue) == {"failed": 3, "dead_expired": 1, "dead_purged": 1}


@pytest.mark.row("000.9")
async def test_the_upkeep_of_any_process_forgets_old_ones(
    make_queue: Callable[..., Queue], until: Callable[..., Awaitable[float]]
) -> None:
    await die(make_queue(), "a", "b")
    await died_at(make_queue(), a=time.time() - 8 * 86_400)
    other = make_queue()
    assert await other.dequeue(timeout=0.01) is None

    async def forgotten() -> bool:
        return await keys_of(other) == "b"

    await until(forgotten, 10)


@pytest.mark.row("004.5", "004.14")
async def test_beyond_the_cap_the_oldest_go_and_are_counted(make_queue: Callable[..., Queue], counts: Counts) -> None:
    queue = make_queue(dead_cap=3)
    await die(queue, "a", "b", "c", "d", "e")
    assert await keys_of(queue) == "c d e"
    assert await queue.job("a") is None
    assert await counts(queue) == {"failed": 5, "dead_dropped": 2}
    lowered, none = make_queue(dead_cap=1), make_queue(dead_cap=0)
    await die(none, "f")
    assert await keys_of(queue) == "c d e f"
    await die(lowered, "g")
    assert await keys_of(queue) == "g"
    assert await audit(queue) == Audit(0, 0, 0, 1, ())
    assert await counts(queue) == {"failed": 7, "dead_dropped": 6}


async def test_poison_goes_through_the_same_cap(make_queue: Callable[..., Queue], counts: Counts) -> None:
    queue = make_queue(dead_cap=2)
    await queue.enqueue_many(Job("f", key=key) for key in "abcd")
    for key in "abcd":
        assert await queue.dequeue(timeout=5) is not None
        await queue.redis.hset(queue.key_of(key), "crash", POISON_CRASHES - 1)  # type: ignore[misc]
        await queue.redis.zadd(queue.namespace("leases"), {key: 1})
        await queue.sweep()
    assert await keys_of(queue) == "c d"
    assert (await counts(queue))["dead_dropped"] == 2
    assert [one.by["error_class"] for one in await groups(queue)] == ["poison"]


async def test_a_dead_key_can_be_enqueued_anew(queue: Queue) -> None:
    await die(queue, "k")
    assert await queue.enqueue("g", key="k") is not None
    assert await audit(queue) == Audit(1, 0, 0, 0, ())


async def test_the_frame_has_a_row_for_each_letter_with_stated_columns(queue: Queue) -> None:
    empty = await dead_letters_frame(queue)
    await die(queue, "a", "b", tenant="north")
    frame = await dead_letters_frame(queue)
    kinds = {name: str(dtype) for name, dtype in frame.dtypes.items()}
    assert kinds == {
        **dict.fromkeys(["key", "queue", "function", "tenant", "error_class", "reason"], "str"),
        **dict.fromkeys(["attempts", "crashes"], "int32"), "priority": "int8", "users": "int32",
        **dict.fromkeys(["queued_at", "started_at", "died_at"], "datetime64[us, UTC]"),
        **dict.fromkeys(["worker", "kwargs", "meta", "error"], "str"),
    }  # fmt: skip
    assert list(kinds) == list(empty.columns)
    assert {name: str(dtype) for name, dtype in empty.dtypes.items()} == kinds
    assert (len(empty), len(frame)) == (0, 2)
    assert frame["key"].tolist() == ["a", "b"]
    assert json.loads(frame["kwargs"][0]) == {"users": [1, 2], "note": "é"}
    assert (frame["users"] == 2).all()
    assert frame["error"].tolist() == [STACK, STACK]
    assert (frame["queued_at"] <= frame["started_at"]).all()
    assert (frame["started_at"] <= frame["died_at"]).all()
    assert abs(frame["died_at"] - datetime.now(UTC)).max() < pd.Timedelta(seconds=60)
    assert np.array_equal((await dead_letters_frame(queue, 1))["key"], ["a"])
