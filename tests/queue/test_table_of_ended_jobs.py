"""Jobs that are done or cancelled as a table, while the queue keeps them."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path

import pandas as pd
import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.queue.queue import Queue
from saqkit.queue.tables import ENDED, ended_frame, jobs_frame, read_csv


async def end(queue: Queue, key: str, status: Status, ttl: int = 600) -> None:
    await queue.enqueue(Job("f", key=key, kwargs={"users": [1, 2]}, ttl=ttl, meta={"tenant": "north"}))
    job = await queue.dequeue(timeout=5)
    assert job is not None
    job.attempts += 1
    await queue.finish(job, status, error="ValueError: no" if status == Status.FAILED else None)


async def test_done_and_cancelled_jobs_are_a_table_while_they_are_kept(
    make_queue: Callable[..., Queue], tmp_path: Path
) -> None:
    queues = [make_queue("a"), make_queue("b")]
    began = time.time()
    await end(queues[0], "first", Status.COMPLETE)
    await end(queues[1], "second", Status.COMPLETE)
    await end(queues[0], "gone at once", Status.COMPLETE, ttl=-1)
    await end(queues[0], "dead", Status.FAILED)
    await queues[0].enqueue("f", key="third")
    await queues[0].cancel_keys(["third"], reason="by hand")
    await queues[0].enqueue("f", key="waits")
    table = await ended_frame(queues)
    assert {name: str(dtype) for name, dtype in table.dtypes.items()} == ENDED
    assert table[["key", "queue", "state", "users", "tenant", "error"]].to_numpy().tolist() == [
        ["first", "a", "done", 2, "north", ""],
        ["second", "b", "done", 2, "north", ""],
        ["third", "a", "cancelled", 0, "", "by hand"],
    ]
    ended_at = table["ended_at"].map(lambda moment: moment.timestamp())
    assert ended_at.is_monotonic_increasing
    assert ended_at.between(began - 1, time.time() + 1).all()
    assert list((await ended_frame(queues[0], ["cancelled"]))["key"]) == ["third"]
    assert list((await jobs_frame(queues))["key"]) == ["waits"]
    table.to_csv(tmp_path / "t.csv", index=False)
    pd.testing.assert_frame_equal(read_csv(tmp_path / "t.csv", ENDED), table)
    empty = await ended_frame([])
    assert {name: str(dtype) for name, dtype in empty.dtypes.items()} == ENDED
    with pytest.raises(UsageError, match='ended jobs that are "dead"'):
        await ended_frame(queues, ["dead"])
