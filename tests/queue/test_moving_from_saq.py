"""The page on moving from SAQ: its script carries jobs over and back, and what it says of both queues is so."""

from __future__ import annotations

import inspect
import re
import time
from pathlib import Path
from typing import Any

import pytest
from redis import asyncio as aioredis
from saq.job import Job, Status
from saq.queue.redis import RedisQueue

from saqkit.queue.queue import Queue

PAGE = Path(__file__).parent.parent.parent / "docs" / "moving_from_saq.md"


@pytest.fixture
def script() -> dict[str, Any]:
    """The names that the page's script defines."""
    blocks = re.findall(r"^```python\n(.*?)^```", PAGE.read_text(encoding="utf-8"), re.DOTALL | re.MULTILINE)
    (block,) = (block for block in blocks if "async def carry_over" in block)
    names: dict[str, Any] = {"__name__": "script"}
    exec(block, names)
    return names


@pytest.mark.parametrize("back", [False, True], ids=["to-saqkit", "back-to-saq"])
async def test_the_script_of_the_page_carries_every_waiting_job_over(
    redis_url: str, script: dict[str, Any], back: bool
) -> None:
    def stock() -> RedisQueue:
        return RedisQueue(aioredis.from_url(redis_url), "mail")

    def ours() -> RedisQueue:
        return Queue.from_url(redis_url, name="mail")

    first, second = (ours, stock) if back else (stock, ours)
    later = int(time.time()) + 1000
    old, new = first(), second()
    for number in range(5):
        assert await old.enqueue(Job("send", key=f"n{number}", kwargs={"n": number}, retries=4, meta={"a": number}))
    assert await old.enqueue("send", key="later", scheduled=later, timeout=77)
    assert await new.count("incomplete") == 0  # neither sees the other's jobs, though they have one name

    await script["carry_over"](first(), second())

    assert (await old.count("incomplete"), await new.count("queued"), await new.count("incomplete")) == (0, 5, 6)
    jobs = {job.key: job async for job in new.iter_jobs([Status.QUEUED])}
    assert {key: (job.kwargs, job.retries, job.meta) for key, job in jobs.items() if key != "later"} == {
        f"n{number}": ({"n": number}, 4, {"a": number}) for number in range(5)
    }
    assert (jobs["later"].scheduled, jobs["later"].timeout) == (later, 77)
    await old.disconnect()
    await new.disconnect()


def _parameters(function: Any) -> dict[str, inspect.Parameter]:
    return dict(inspect.signature(function).parameters)


PUBLIC = sorted(name for name, _ in inspect.getmembers(RedisQueue, callable) if not name.startswith("_"))


@pytest.mark.parametrize("name", ["__init__", *PUBLIC])
def test_every_call_of_saqs_queue_can_be_made_of_ours(name: str) -> None:
    theirs, ours = _parameters(getattr(RedisQueue, name)), _parameters(getattr(Queue, name))
    for position, (parameter, known) in enumerate(theirs.items()):
        assert parameter in ours, f"{name}({parameter}) is missing"
        assert (ours[parameter].kind, ours[parameter].default) == (known.kind, known.default)
        if known.kind == known.POSITIONAL_OR_KEYWORD:
            assert list(ours)[position] == parameter
    for parameter in set(ours) - set(theirs):
        assert ours[parameter].default is not inspect.Parameter.empty or ours[parameter].kind == known.VAR_KEYWORD
