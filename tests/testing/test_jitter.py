"""The delays that are stated are those that the queue uses."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from saq.job import Job

from saqkit import Queue
from saqkit.spec.backoff import Retry
from saqkit.spec.draws import Stream, uniform
from saqkit.testing import delays, drain

Factory = Callable[..., Queue]


@given(seed=st.integers(0, 2**64), event=st.integers(0, 2**40), user=st.integers(0, 2**40), kind=st.integers(0, 2))
@settings(max_examples=30, deadline=None)
def test_they_are_the_draws_that_the_model_makes(seed: int, event: int, user: int, kind: int) -> None:
    jitters: Any = ("none", "full", "equal")
    policy = Retry(max_attempts=5, delay_s=3, factor=4, jitter=jitters[kind])
    queue = Queue.from_url("redis://127.0.0.1:1", policies={"f": policy}, seed=seed)  # it connects to nothing
    job = Job("f", kwargs={"users": [user, 1]}, meta={"event": event})
    expected = [policy.delay_after(n, uniform(seed, Stream.JITTER, event, user, n)) for n in (1, 2, 3, 4)]
    assert delays(queue, job) == expected


def test_a_function_without_a_policy_has_its_jobs_own_retries() -> None:
    queue = Queue.from_url("redis://127.0.0.1:1")
    assert delays(queue, Job("f", retries=3, retry_delay=7)) == [7, 7]
    assert delays(queue, Job("f")) == []


@pytest.mark.parametrize("jitter", ["full", "equal"])
async def test_a_job_that_is_tried_again_waits_so_long(saqkit_queue_factory: Factory, jitter: Any) -> None:
    policy = Retry(max_attempts=4, delay_s=100, jitter=jitter)
    queue = saqkit_queue_factory(policies={"fail": policy}, seed=11)
    due: list[float] = []

    async def fail(ctx: dict[str, Any], *, users: list[int]) -> None:
        stated.append(delays(queue, ctx["job"]))
        ready = await queue.redis.hmget(queue.key_of("k"), ["at_r", "at_q"])  # type: ignore[misc]
        due.append(float(ready[0] or ready[1]))
        raise ConnectionError

    stated: list[list[float]] = []
    await queue.enqueue("fail", key="k", users=[41], meta={"event": "3"})
    drained = await drain(queue, {"fail": fail})
    assert len(drained.retried) == 3
    assert stated[0] == stated[1] == stated[2] == stated[3], "the same while it runs, at any attempt"
    assert stated[0] != sorted(set(policy.schedule()))
    assert sum(stated[0]) - 5 < drained.travelled_s <= sum(stated[0]) + 3 * 2 * queue.tick_s
