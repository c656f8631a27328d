"""What is counted by priority level and by tenant, and what of it cannot be known."""

from __future__ import annotations

import pandas as pd
import pytest
from saq.job import Job, Status

from saqkit.queue.counting import statistics
from saqkit.queue.queue import Queue
from saqkit.queue.tables import statistics_frame


async def end(queue: Queue, key: str, level: int, tenant: str, status: Status) -> None:
    await queue.enqueue(Job("f", key=key, priority=level, meta={"tenant": tenant}))
    job = await queue.dequeue(timeout=5)
    assert job is not None
    assert job.key == key
    job.attempts += 1
    await queue.finish(job, status, error="ValueError: no" if status == Status.FAILED else None)


@pytest.mark.row("004.11")
async def test_what_ended_is_counted_by_level_and_tenant_where_it_can_be_known(queue: Queue) -> None:
    await end(queue, "before", 1, "north", Status.COMPLETE)  # nothing is recorded yet
    await end(queue, "dead before", 2, "south", Status.FAILED)
    bare = await statistics(queue, tenants=True)
    assert [(one.completed, one.failed, one.dead) for one in bare.priorities.values()] == [
        (None, None, 0), (None, None, 1), (None, None, 0), (None, None, 0),
    ]  # fmt: skip
    assert bare.tenants is not None
    assert {name: (one.completed, one.failed, one.dead) for name, one in bare.tenants.items()} == {
        "south": (None, None, 1)
    }

    await queue.record_attempts(100)
    await end(queue, "a", 1, "north", Status.COMPLETE)
    await end(queue, "b", 1, "south", Status.COMPLETE)
    await end(queue, "c", 3, "north", Status.COMPLETE)
    await end(queue, "d", 3, "south", Status.FAILED)
    await end(queue, "e", 4, "", Status.FAILED)
    await end(queue, "f", 4, "", Status.ABORTED)
    found = await statistics(queue, tenants=True)
    assert (found.completed, found.failed, found.dead) == (4, 3, 3)
    assert [(one.completed, one.failed, one.dead) for one in found.priorities.values()] == [
        (2, 0, 0), (0, 0, 1), (1, 1, 1), (0, 1, 1),
    ]  # fmt: skip
    assert found.tenants is not None
    assert {name: (one.completed, one.failed, one.dead) for name, one in found.tenants.items()} == {
        "": (0, 1, 1), "north": (2, 0, 0), "south": (1, 1, 2),
    }  # fmt: skip
    told = found.to_dict()["tenants"]["south"]
    assert (told["completed"], told["failed"], told["dead"]) == (1, 1, 2)

    frame = (await statistics_frame(queue, tenants=True)).set_index(["by", "of"])
    assert frame.loc[("priority", "3"), ["completed", "failed", "dead"]].tolist() == [1, 1, 1]
    assert frame.loc[("tenant", "south"), ["completed", "failed", "dead"]].tolist() == [1, 1, 2]
    assert frame.loc[("queue", ""), ["completed", "failed", "dead"]].tolist() == [4, 3, 3]
    without = (await statistics_frame(queue)).set_index(["by", "of"])
    assert without.loc[("priority", "3"), "dead"] is pd.NA  # every dead letter would have to be read
    assert without.loc[("priority", "3"), "active"] == 0
