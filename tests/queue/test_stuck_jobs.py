"""Jobs that have been active for too long: the statistics see them, health tells of them."""

from __future__ import annotations

import asyncio
import dataclasses
import math
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from saqkit.judging_health import NEVER, Thresholds, judge
from saqkit.queue.counting import statistics
from saqkit.queue.queue import Queue
from saqkit.worker.worker import Worker


async def test_for_how_long_jobs_have_been_active_is_seen_while_they_run(
    queue: Queue, until: Callable[..., Awaitable[float]]
) -> None:
    """A real worker; its first job stays in its function, the second came later, a third has ended."""
    stay, began = asyncio.Event(), list[str]()

    async def work(ctx: dict[str, Any], *, wait: bool) -> None:
        began.append(ctx["job"].key)
        if wait:
            await stay.wait()

    async def has_begun(key: str) -> bool:
        return key in began

    worker = Worker({queue.name: queue}, {"work": work}, {queue.name: 3}, name="host.1.0")
    task = asyncio.create_task(worker.run())
    try:
        await queue.enqueue("work", key="first", wait=True, priority=1)
        await until(lambda: has_begun("first"), 30)
        first = await statistics(queue)
        assert (len(first.active_s), first.longest_active_s) == (1, first.active_s[0])
        assert first.priorities[1].active == 1
        await asyncio.sleep(0.3)
        await queue.enqueue("work", key="second", wait=True)
        await queue.enqueue("work", key="third", wait=False)
        await until(lambda: has_begun("third"), 30)
        await until(lambda: _active(queue, 2), 30)
        found = await statistics(queue, times=False)
        longest, shortest = found.active_s
        # what passed on the broker's clock between two looks has passed for the job
        assert longest - first.longest_active_s == pytest.approx(found.at - first.at, abs=1e-3)
        assert longest - shortest >= 0.3
        assert [one.active for one in found.priorities.values()] == [1, 0, 1, 0]
        one = dataclasses.replace(found, workers=1)
        assert judge([one]) == []
        (problem,) = judge([one], Thresholds(active_s=(longest, NEVER)))
        assert (problem.level, problem.what, problem.queue) == ("warning", "active", queue.name)
        assert problem.text.startswith("1 job has been active for ")
        (problem,) = judge([one], Thresholds(active_s=(1e-9, shortest)))
        assert problem.level == "unhealthy"
        assert problem.text.startswith("2 jobs have been active for ")
        assert found.to_dict()["longest_active_s"] == longest
    finally:
        stay.set()
        worker.stop()
        await asyncio.wait_for(task, 20)
    ended = await statistics(queue)
    assert (ended.active_s, ended.completed) == ((), 3)
    assert math.isnan(ended.longest_active_s)


async def _active(queue: Queue, number: int) -> bool:
    return await queue.count("active") == number


@pytest.mark.parametrize(
    ("ages", "said"),
    [
        ((599.0, 1.0), None),
        ((), None),
        ((600.0, 1.0), "warning: 1 job has been active for 600 s or more, the longest for 600 s: stuck, or the workers "
                       "are stalled (warning)"),
        ((1200.4, 700.0, 599.0), "warning: 2 jobs have been active for 600 s or more, the longest for 1,200 s: stuck, "
                                 "or the workers are stalled (warning)"),
        ((3600.0, 3599.0), "unhealthy: 1 job has been active for 3,600 s or more, the longest for 3,600 s: stuck, or "
                           "the workers are stalled (unhealthy)"),
    ],
)  # fmt: skip
@pytest.mark.row("001.11", "001.12", "004.11", "004.16")
async def test_health_tells_how_many_jobs_are_stuck_and_for_how_long(
    queue: Queue, ages: tuple[float, ...], said: str | None
) -> None:
    one = dataclasses.replace(await statistics(queue), workers=1, active=len(ages), active_s=ages)
    found = [f"{problem.level}: {problem.text}" for problem in judge([one])]
    assert found == ([said] if said else [])
    assert judge([one], Thresholds(active_s=(NEVER, NEVER))) == []
