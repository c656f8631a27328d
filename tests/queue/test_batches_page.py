"""docs/batches.md: its examples run as they stand."""

from __future__ import annotations

import re
import tomllib
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from textwrap import indent
from typing import Any

import pytest
from measured import lab
from saq.job import Job, Status

from saqkit import NewJob
from saqkit.queue.queue import Queue

MakeQueue = Callable[..., Queue]
PAGE = (Path(__file__).parents[2] / "docs" / "batches.md").read_text(encoding="utf-8")
BLOCKS = re.findall(r"```python\n(.*?)```", PAGE, re.S)


async def run(block: str, **known: Any) -> dict[str, Any]:
    """What the names of a block are after it."""
    exec(f"async def example(batch=None):\n{indent(block, '    ')}\n    return locals()", known)
    found: dict[str, Any] = await known["example"]()
    return found


@pytest.fixture
def mail(make_queue: MakeQueue) -> Queue:
    return make_queue("mail")


async def test_a_follow_up_here_and_there(queue: Queue, mail: Queue) -> None:
    pay = (await run(BLOCKS[0], queue=queue, mail=mail))["pay"]
    await queue.enqueue("pay", key="p", order=7)
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await pay({"job": job}, order=7)
    await queue.finish(job, Status.COMPLETE)
    for one, name in [(queue, "ship"), (mail, "receipt")]:
        follower = await one.dequeue(timeout=5)
        assert follower is not None
        assert (follower.key, follower.kwargs) == (f"{name}:p", {"order": 7})


async def test_a_batch(queue: Queue) -> None:
    found = await run(BLOCKS[1], queue=queue, Job=Job, NewJob=NewJob, images=range(3))
    assert (found["batch"].jobs, found["batch"].pending) == (3, 3)
    for _ in range(3):
        job = await queue.dequeue(timeout=5)
        assert job is not None
        await queue.finish(job, Status.COMPLETE)
    called = [job.function async for job in queue.iter_jobs([Status.QUEUED])]
    assert sorted(called) == ["publish", "tidy"]


async def test_an_open_batch(queue: Queue) -> None:
    async def pages() -> AsyncIterator[list[int]]:
        for n in range(3):
            yield [n]

    await run(BLOCKS[2], queue=queue, NewJob=NewJob, pages=pages)
    batch = await queue.get_batch("import-7")
    assert batch is not None
    assert (batch.jobs, batch.open) == (3, False)


def test_a_topology() -> None:
    (block,) = re.findall(r"```toml\n(.*?)```", PAGE, re.S)
    fan_out = tomllib.loads(block)["job_types"]["announce"]["fan_out"]
    types = {f"job_types__{fan_out[name]}": {"queue": "notifications"} for name in fan_out if name.startswith("on_")}
    topology = lab(job_types__announce__fan_out=fan_out, **types)
    spec = topology.job_types["announce"].fan_out
    assert spec is not None
    assert (spec.on_complete, spec.on_success, spec.on_death) == ("report", "celebrate", "alarm")
