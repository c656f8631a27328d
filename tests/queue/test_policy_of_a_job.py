"""A job with a retry policy of its own: how often it is tried and when, whatever its function's policy says."""

from __future__ import annotations

import json
import time
from collections.abc import Callable
from typing import Any

import pytest

from saqkit.errors import UsageError
from saqkit.queue.dead_letters import replay
from saqkit.queue.queue import Queue
from saqkit.spec.backoff import LONGEST_DELAY_S, Retry
from saqkit.testing import Drained, delays, drain

MakeQueue = Callable[..., Queue]
OF_FUNCTION = {"fail": Retry(max_attempts=2, backoff="fixed", delay_s=1)}
OWN = Retry(max_attempts=4, backoff="list", delays_s=(3, 5, 8))


async def fail(ctx: dict[str, Any], **given: Any) -> None:
    raise ValueError("no")


def numbers(drained: Drained) -> dict[str, list[tuple[int, str]]]:
    found: dict[str, list[tuple[int, str]]] = {}
    for attempt in drained.attempts:
        found.setdefault(attempt.job, []).append((attempt.number, attempt.outcome))
    return found


USUAL = [(1, "retry"), (2, "dead")]
FOUR = [(1, "retry"), (2, "retry"), (3, "retry"), (4, "dead")]


async def test_a_job_follows_its_own_policy_however_it_is_enqueued_and_when_it_is_replayed(
    make_queue: MakeQueue,
) -> None:
    queue = make_queue(policies=OF_FUNCTION, tick_s=0.05)
    meta = {"retry_policy": OWN.to_dict()}
    await queue.enqueue("fail", key="enqueued", meta=meta)
    await queue.submit("fail", key="submitted", meta=meta)
    await queue.enqueue_each("fail", [{}], keys=["each"], meta=meta)
    await queue.enqueue("fail", key="usual")
    job = await queue.job("enqueued")
    assert job is not None
    assert (job.retries, delays(queue, job)) == (4, [3.0, 5.0, 8.0])
    drained = await drain(queue, {"fail": fail})
    assert numbers(drained) == {"enqueued": FOUR, "submitted": FOUR, "each": FOUR, "usual": USUAL}
    assert 15.5 < drained.travelled_s < 17.5
    assert await replay(queue, ["enqueued", "usual"]) == [True, True]
    assert numbers(await drain(queue, {"fail": fail})) == {"enqueued": FOUR, "usual": USUAL}


async def test_a_function_without_a_policy_can_have_jobs_with_one(make_queue: MakeQueue) -> None:
    queue = make_queue(tick_s=0.05)
    await queue.enqueue("fail", key="own", meta={"retry_policy": OWN.to_dict()}, retries=1)
    await queue.enqueue("fail", key="once", retries=1)
    assert numbers(await drain(queue, {"fail": fail})) == {"own": FOUR, "once": [(1, "dead")]}


@pytest.mark.parametrize("own", [None, {}])
async def test_an_empty_policy_is_none(make_queue: MakeQueue, own: Any) -> None:
    queue = make_queue(policies=OF_FUNCTION, tick_s=0.05)
    await queue.enqueue("fail", key="odd", meta={"retry_policy": own})
    assert numbers(await drain(queue, {"fail": fail})) == {"odd": USUAL}


WRONG = [5, "fast", [], {"max_attempts": 0}, {"attempts": 9}, {"delay_s": "soon"}]


@pytest.mark.parametrize("own", WRONG)
async def test_what_is_no_policy_is_refused_however_it_is_enqueued(make_queue: MakeQueue, own: Any) -> None:
    queue = make_queue(policies=OF_FUNCTION, tick_s=0.05)
    meta = {"retry_policy": own}
    said = r"^job odd \(fail\): its retry_policy"
    with pytest.raises(UsageError, match=said):
        await queue.enqueue("fail", key="odd", meta=meta)
    with pytest.raises(UsageError, match=said):
        await queue.submit("fail", key="odd", meta=meta)
    with pytest.raises(UsageError, match=r"\(fail\): its retry_policy"):
        await queue.enqueue_each("fail", [{}], meta=meta)
    assert await queue.count("incomplete") == 0


@pytest.mark.parametrize("own", WRONG)
async def test_what_others_have_stored_and_is_no_policy_counts_as_none(make_queue: MakeQueue, own: Any) -> None:
    queue = make_queue(policies=OF_FUNCTION, tick_s=0.05)
    await queue.enqueue("fail", key="odd", retries=2)
    body = json.dumps({"function": "fail", "key": "odd", "retries": 2, "meta": {"retry_policy": own}})
    await queue.redis.hset(queue.key_of("odd"), "body", body)  # type: ignore[misc]
    assert numbers(await drain(queue, {"fail": fail})) == {"odd": USUAL}


async def test_a_job_without_a_delay_never_waits(make_queue: MakeQueue) -> None:
    queue = make_queue(tick_s=0.05)
    for key, delay in (("none", None), ("zero", 0.0)):
        await queue.enqueue("fail", key=key, retries=3000, retry_delay=delay, retry_backoff=True)
        await queue.redis.hset(queue.key_of(key), "att", 1999)  # type: ignore[misc]
        job = await queue.dequeue(timeout=5)
        assert job is not None
        assert queue.delay_s(job) == 0.0
        await queue.finish(job, "complete")  # type: ignore[arg-type]


@pytest.mark.parametrize("backoff", [True, 7.5])
async def test_the_two_thousandth_attempt_waits_no_longer_than_others(make_queue: MakeQueue, backoff: Any) -> None:
    """SAQ doubles the delay with each attempt, until it is no number."""
    queue = make_queue(tick_s=0.05)
    await queue.enqueue("fail", key="old", retries=3000, retry_delay=0.5, retry_backoff=backoff)
    await queue.redis.hset(queue.key_of("old"), "att", 1999)  # type: ignore[misc]
    drained = await drain(queue, {"fail": fail}, follow_time=False)
    assert numbers(drained) == {"old": [(2000, "retry")]}
    due = await queue.redis.zscore(queue.namespace("incomplete"), queue.job_id("old"))
    assert due is not None
    assert -2 < due - time.time() <= (LONGEST_DELAY_S if backoff is True else backoff) + 1


@pytest.mark.parametrize(
    "own",
    [
        {"meta": {"retry_policy": {"backoff": "fixed", "delay_s": 1e308, "cap_s": 1e308}}},
        {"meta": {"retry_policy": {"delay_s": 1e308, "factor": 1e308, "cap_s": 1e308}}},
        {"meta": {"retry_policy": {"backoff": "list", "delays_s": [1e308], "cap_s": 1e308}}},
        {"retries": 3, "retry_delay": 1e308},
    ],
    ids=["fixed", "exponential", "list", "saq"],
)
async def test_no_delay_is_so_long_that_the_server_cannot_reckon_with_it(
    make_queue: MakeQueue, own: dict[str, Any]
) -> None:
    queue = make_queue(tick_s=0.05)
    await queue.enqueue("fail", key="odd", **own)
    assert numbers(await drain(queue, {"fail": fail}, follow_time=False)) == {"odd": [(1, "retry")]}
    due = await queue.redis.zscore(queue.namespace("incomplete"), queue.job_id("odd"))
    assert due is not None
    assert 1 < due - time.time() <= LONGEST_DELAY_S + 1
    assert numbers(await drain(queue, {"fail": fail})) == {"odd": [(2, "retry"), (3, "dead")]}


@pytest.mark.parametrize("meta", [None, [], "odd", 5])
async def test_a_meta_that_is_no_table_does_not_stand_in_the_way_of_a_retry(make_queue: MakeQueue, meta: Any) -> None:
    queue = make_queue(policies=OF_FUNCTION, tick_s=0.05)

    async def spoil(ctx: dict[str, Any]) -> None:
        ctx["job"].meta = meta
        raise ValueError("no")

    await queue.enqueue("fail", key="odd")
    assert numbers(await drain(queue, {"fail": spoil})) == {"odd": USUAL}
