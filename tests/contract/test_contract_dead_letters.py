"""C8: what died for good is a dead letter, from the step on that ended it; a replay happens once.

That a kill at any step loses none is shown with the other kills.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
from saq.job import Job, Status

from saqkit.queue.audit import audit
from saqkit.queue.dead_letters import dead_letters, replay
from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]
LETTERS = 50


@pytest.mark.parametrize("times", [3, pytest.param(100, marks=[pytest.mark.chaos, pytest.mark.timeout(600)])])
async def test_replays_of_the_same_letters_by_several_at_once_queue_each_once(
    make_queue: Callable[..., Queue], sound: Sound, times: int
) -> None:
    operators = [make_queue() for _ in range(4)]
    queue = operators[0]
    keys = [str(n) for n in range(LETTERS)]
    await queue.enqueue_many(Job("f", key=key) for key in keys)
    for turn in range(times):
        for _ in keys:
            job = await queue.dequeue(timeout=5)
            assert job is not None
            assert job.attempts == 0
            job.attempts += 1
            await queue.finish(job, Status.FAILED, error="ValueError: no")
        assert await queue.count("dead") == LETTERS

        async def replayed(operator: Queue, seed: int) -> int:
            order = random.Random(seed).sample(keys, LETTERS)
            parts = [order[n : n + 7] for n in range(0, LETTERS, 7)]
            return sum(sum(said) for said in await asyncio.gather(*(replay(operator, part) for part in parts)))

        said = await asyncio.gather(*(replayed(operator, turn * 4 + n) for n, operator in enumerate(operators)))
        assert sum(said) == LETTERS
        found = await audit(queue)
        assert (found.queued, found.dead, found.problems) == (LETTERS, 0, ())


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_an_unknown_function_and_a_last_timeout_are_dead_letters_at_once(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, kind: str
) -> None:
    queue = make_queue()
    await queue.enqueue_many(
        [
            Job("nobody_has_it", key="unknown", retries=5),
            Job("brief", key="late", kwargs={"seconds": 30}, timeout=1, retries=1),
            Job("brief", key="late twice", kwargs={"seconds": 30}, timeout=1, retries=2, retry_delay=0.05),
            Job("brief", key="well", kwargs={"seconds": 0.01}),
        ]
    )
    workers.start(worker=kind, slots=4)

    seen: set[tuple[int, int]] = set()

    async def over() -> bool:
        found = await audit(queue)
        assert found.problems == ()
        here = found.queued + found.scheduled + found.active + found.dead
        seen.add((here, (await counts(queue)).get("complete", 0)))
        return found.dead == 3 and here == 3

    await until(over, 30)
    assert min(here + done for here, done in seen) >= 4 - 1  # (the two are read one after the other)
    letters = {letter.key: letter async for letter in dead_letters(queue)}
    assert {key: letter.attempts for key, letter in letters.items()} == {"unknown": 1, "late": 1, "late twice": 2}
    assert "nobody_has_it" in letters["unknown"].error
    assert "TimeoutError" in letters["late"].error
    assert await runs(queue) == {"late": 1, "late twice": 2, "well": 1}
    assert await counts(queue) == {"failed": 3, "retried": 1, "complete": 1}
