"""What a topology's fan-out calls back: one job per event, when its batch jobs have ended, whoever is killed."""

from __future__ import annotations

import asyncio
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from measured import lab, run
from test_handlers import system, until

from saqkit import Queue, Topology
from saqkit.errors import DescriptionError
from saqkit.queue.audit import audit
from saqkit.queue.batches import Batch, BatchedJobs
from saqkit.spec.showing import describe

REPORTS = {name: {"queue": "notifications"} for name in ("ended", "served", "alarm")}


def reporting(**changes: Any) -> Topology:
    fan_out = {"to": "notify", "batch_size": 10, "page_size": 30,
               "on_complete": "ended", "on_success": "served", "on_death": "alarm"}  # fmt: skip
    types = {f"job_types__{name}": job for name, job in REPORTS.items()}
    return lab(job_types__announce__fan_out=fan_out, **types, **changes)


async def all_ended(queue: Queue) -> None:
    async with asyncio.timeout(60):
        while await queue.count("incomplete"):
            await asyncio.sleep(0.02)
    assert (await audit(queue)).problems == ()


async def test_a_fan_out_that_is_killed_calls_back_once(redis_url: str, tmp_path: Path) -> None:
    users = 5_000
    topology = reporting(job_types__notify__per_user={"database": "none"})
    async with system(topology, redis_url, tmp_path, users) as made, made.processes(2, 5) as launcher:
        event = (await made.announcer.announce(title="Closed", patience_s=5)).event

        async def under_way() -> bool:
            return await made.store.fan_out_cursor(event, "announce") > 500

        await until(under_way)
        for number in range(2):
            launcher.kill(number)
        assert await made.store.fan_out_cursor(event, "announce") < users, "it was to be killed in the middle"

        async def finished() -> bool:
            return (await made.store.progress(event)).fan_out_finished

        await until(finished)
        await all_ended(made.queue)
        batch = await made.queue.get_batch(f"announce:{event}")
        assert batch is not None
        assert (batch.done, batch.jobs, batch.users, batch.percent_done) == (500, 500, users, 100.0)
        rows = await made.rows()
        done = Counter(row["job_type"] for row in rows if row["outcome"] == "done")
        assert done == {"announce": 1, "notify": 500, "ended": 1, "served": 1}
        (ended,) = (row for row in rows if row["job_type"] == "ended")
        assert (ended["users"], ended["parent"]) == (0, f"announce:{event}")


@pytest.mark.parametrize("before", [True, False])
async def test_one_that_fails_as_it_closes_its_batch_closes_it_when_it_is_tried_again(
    redis_url: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, before: bool
) -> None:
    close = BatchedJobs.close_batch
    failures: list[str] = []

    async def fails_once(queue: BatchedJobs, id: str) -> Batch:
        closed = await close(queue, id) if failures or not before else None
        if not failures:
            failures.append(id)
            raise ValueError("gone")
        assert closed is not None
        return closed

    monkeypatch.setattr(BatchedJobs, "close_batch", fails_once)
    topology = reporting(job_types__announce__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0})
    async with system(topology, redis_url, tmp_path, 100) as made, made.worker():
        event = (await made.announcer.announce(title="Closed", patience_s=5)).event
        await all_ended(made.queue)
        done = Counter(row["job_type"] for row in await made.rows() if row["outcome"] == "done")
        assert (failures, done) == ([f"announce:{event}"], {"announce": 1, "notify": 10, "ended": 1, "served": 1})


async def test_a_death_and_callbacks_of_another_queue_are_measured(tmp_path: Path) -> None:
    retry = {"max_attempts": 1}
    topology = reporting(
        queues__other={}, job_types__notify__retry=retry, providers__email__temporary_share=1.0,
        providers__email__latency={"kind": "constant", "mean_s": 0.001},
    )  # fmt: skip
    data = topology.to_dict()
    for name in ("ended", "alarm"):
        data["job_types"][name]["queue"] = "other"
    measured = await run(Topology.parse(data, "lab"), users=50, seed=1)
    rows = measured.attempts
    assert Counter(rows["job_type"]) == {"announce": 1, "notify": 5, "ended": 1, "alarm": 1}
    last = rows[rows["job_type"] == "notify"]["finished_at"]
    at = rows.set_index("job_type")["queued_at"]
    assert at["alarm"] >= last.min()
    assert at["ended"] >= last.max()


async def test_it_is_shown_and_a_wrong_one_is_refused() -> None:
    text = describe(reporting())
    for line in ("all ended → ended", "all done → served", "first dead → alarm"):
        assert line in text
    for wrong, says in [("nobody", 'no job type "nobody"'), ("announce", "fans out to all users of the event again")]:
        with pytest.raises(DescriptionError, match=says):
            lab(job_types__announce__fan_out={"to": "notify", "on_death": wrong})
