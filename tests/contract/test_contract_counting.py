"""C7: `max_attempts` counts what the function did wrong, and nothing else."""

from __future__ import annotations

import asyncio
import signal
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from saqkit.queue.dead_letters import dead_letters
from saqkit.queue.queue import Queue

Counts = Callable[[Queue], Awaitable[dict[str, int]]]
Eventually = Callable[..., Awaitable[float]]
Sound = Callable[[Queue], Awaitable[None]]


@pytest.mark.parametrize("kind", ["saq", "saqkit"])
async def test_failures_crashes_and_stops_are_counted_apart(
    make_queue: Callable[..., Queue], workers: Any, runs: Counts, counts: Counts, until: Eventually, sound: Sound,
    kind: str,
) -> None:  # fmt: skip
    """Two attempts, in this order: killed, stopped, failed, failed. It dies of the two failures."""
    queue = make_queue(lease_s=1.0, sweep_s=0.3)
    stages = ["crash", "hold", "fail", "fail"]
    await queue.redis.rpush("stages", *stages)  # type: ignore[misc]
    await queue.enqueue("staged", key="k", retries=2, retry_delay=0.05, timeout=0)
    grace = {"worker": kind, "slots": 1, "lease_s": 1.0, "sweep_s": 0.3}

    def has_run(number: int) -> Callable[[], Awaitable[bool]]:
        async def check() -> bool:
            return (await runs(queue)).get("k", 0) >= number

        return check

    process = workers.start(**grace)
    assert await asyncio.to_thread(process.wait, 30) == -signal.SIGKILL
    assert await runs(queue) == {"k": 1}
    process = workers.start(**grace)
    await until(has_run(2), 30)
    assert await workers.end(process) == 0
    assert await queue.count("active") == 0

    workers.start(**grace)

    async def dead() -> bool:
        return await queue.count("dead") == 1

    await until(dead, 30)
    assert await runs(queue) == {"k": 4}
    (letter,) = [letter async for letter in dead_letters(queue)]
    assert (letter.attempts, letter.crashes) == (2, 1)
    assert letter.error.endswith("ValueError: this execution fails\n")
    assert await counts(queue) == {"lost": 1, "released": 1, "retried": 1, "failed": 1}
    await sound(queue)
