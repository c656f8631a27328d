"""What is shown of queues: statistics equal to what pandas computes on the attempts table, health, tables."""

from __future__ import annotations

import asyncio
import dataclasses
import math
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from saq.job import Job, Status

from saqkit.errors import UsageError
from saqkit.judging_health import NEVER, Thresholds, judge
from saqkit.queue.counting import TIMES, Statistics, recorded_attempts, statistics
from saqkit.queue.operating import Pause
from saqkit.queue.queue import Queue
from saqkit.queue.tables import JOBS, STATISTICS, WORKERS, jobs_frame, read_csv, statistics_frame, workers_frame
from saqkit.spec.trace import ATTEMPTS
from saqkit.worker.worker import Worker

Until = Callable[..., Awaitable[float]]
TENANTS = ("north", "south", "")


async def a_real_run(queue: Queue, until: Until, ran: list[float] | None = None, slowest_s: float = 0.007) -> None:
    """Ninety jobs of three tenants and levels on a real worker; some fail once, some for good.

    `ran`: where the functions note how long they run.
    """

    @contextmanager
    def noted() -> Iterator[None]:
        began = time.perf_counter()
        try:
            yield
        finally:
            if ran is not None:
                ran.append(time.perf_counter() - began)

    async def work(ctx: dict[str, Any], *, n: int) -> None:
        with noted():
            await served(ctx, n)

    async def served(ctx: dict[str, Any], n: int) -> None:
        await asyncio.sleep(slowest_s / 7 * (n % 7))
        if n % 10 == 3 or (n % 10 == 4 and ctx["job"].attempts == 1):
            raise ValueError("no luck")

    await queue.record_attempts(1000)
    await queue.enqueue_many(
        Job("work", key=str(n), kwargs={"n": n}, priority=1 + n % 3, retries=2,
            meta={"tenant": TENANTS[n % 3]} if n % 3 < 2 else {})
        for n in range(90)
    )  # fmt: skip
    worker = Worker({queue.name: queue}, {"work": work}, {queue.name: 4}, name="host.1.0")
    task = asyncio.create_task(worker.run())
    try:

        async def over() -> bool:
            return await queue.count("incomplete") == 0

        await until(over, 30)
    finally:
        worker.stop()
        await asyncio.wait_for(task, 20)


def by_pandas(attempts: pd.DataFrame) -> list[float]:
    wait = attempts["started_at"] - attempts["ready_at"]
    service = attempts["finished_at"] - attempts["started_at"]
    return [one.quantile(share) for one in (wait, service) for share in (0.5, 0.95, 0.99)]


async def test_statistics_are_what_pandas_computes_on_the_attempts_table(queue: Queue, until: Until) -> None:
    await a_real_run(queue, until)
    found, attempts = await statistics(queue, tenants=True), await recorded_attempts(queue)
    assert {name: str(dtype) for name, dtype in attempts.dtypes.items()} == ATTEMPTS
    outcomes = attempts["outcome"].value_counts()
    assert len(attempts) == found.attempts == 90 + 9 + 9
    assert (found.completed, found.failed, found.dead, found.retried) == (
        outcomes["done"], outcomes["dead"], outcomes["dead"], outcomes["retry"],
    )  # fmt: skip
    assert (found.completed, found.failed, found.retried) == (81, 9, 18)
    assert (found.waiting, found.active, found.delayed, found.paused) == (0, 0, 0, None)
    assert math.isnan(found.oldest_s)
    assert tuple(found.times) == TIMES
    assert list(found.times.values()) == by_pandas(attempts)
    assert found.tenants is not None
    assert sorted(found.tenants) == sorted(TENANTS)
    for by, groups in (("priority", found.priorities), ("tenant", found.tenants)):
        for value, group in groups.items():
            those = attempts[attempts[by] == value]
            assert group.attempts == len(those)
            if len(those):
                assert list(group.times.values()) == by_pandas(those), (by, value)
    assert found.priorities[4].attempts == 0
    assert all(math.isnan(value) for value in found.priorities[4].times.values())
    frame = await statistics_frame(queue, tenants=True)
    assert list(frame["by"]) == ["queue", *["priority"] * 4, *["tenant"] * 3]
    pd.testing.assert_series_equal(frame.loc[0, list(TIMES)].astype(float), pd.Series(found.times), check_names=False)


def by_hand(times: list[float], share: float) -> float:
    """The percentile by its definition: between the two of that rank."""
    ordered = sorted(times)
    place = share * (len(ordered) - 1)
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


async def test_percentiles_are_those_of_what_the_functions_saw_themselves(queue: Queue, until: Until) -> None:
    ran: list[float] = []
    began = time.time()
    await a_real_run(queue, until, ran, slowest_s=0.7)
    took_s = time.time() - began
    found = await statistics(queue)
    assert len(ran) == found.attempts == 90 + 9 + 9
    for name, share in (("service_p50_s", 0.5), ("service_p95_s", 0.95), ("service_p99_s", 0.99)):
        assert found.times[name] == pytest.approx(by_hand(ran, share), abs=0.06), name
    assert 0.2 < found.times["service_p50_s"] < found.times["service_p95_s"] <= found.times["service_p99_s"] < 0.8
    assert 0 < found.times["wait_p50_s"] < found.times["wait_p95_s"] < found.times["wait_p99_s"] < took_s


async def test_what_was_cancelled_as_it_ran_is_an_attempt_too(queue: Queue) -> None:
    await queue.record_attempts(1000)
    await queue.enqueue("f", key="cancelled")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.abort(job, "not wanted")
    found = await statistics(queue)
    assert (found.cancelled, found.lost, found.completed, found.failed, found.attempts) == (1, 0, 0, 0, 1)
    assert (await recorded_attempts(queue))["outcome"].tolist() == ["cancelled"]


async def test_without_a_record_the_counters_are_known_and_the_percentiles_are_not(queue: Queue) -> None:
    await queue.enqueue("f", key="a")
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.finish(job, Status.COMPLETE)
    found = await statistics(queue)
    assert (found.completed, found.recording, found.attempts, found.tenants) == (1, 0, 0, None)
    assert all(math.isnan(value) for value in found.times.values())


@pytest.mark.row("004.11")
async def test_what_waits_is_counted_by_level_and_tenant_and_the_oldest_is_found(queue: Queue) -> None:
    await queue.enqueue("f", key="given back", priority=2, meta={"tenant": "x"})
    job = await queue.dequeue(timeout=5)
    assert job is not None
    await queue.enqueue("f", key="oldest", priority=2, meta={"tenant": "y"})
    enqueued = time.time()
    await asyncio.sleep(0.3)
    await queue.release(job)  # at its old place, before the oldest; but it waits anew
    await queue.enqueue("f", key="young", priority=3, meta={"tenant": "x"})
    await queue.enqueue("f", key="later", priority=3, meta={"tenant": "x"}, scheduled=int(time.time()) + 900)
    await queue.enqueue("f", key="held", priority=1)
    assert await queue.dequeue(timeout=5) is not None
    found = await statistics(queue, tenants=True)
    assert (found.waiting, found.active, found.delayed) == (3, 1, 1)
    assert found.oldest_s == pytest.approx(found.at - enqueued, abs=0.1)
    assert [(one.waiting, one.delayed, one.active) for one in found.priorities.values()] == [
        (0, 0, 1), (2, 0, 0), (1, 1, 0), (0, 0, 0),
    ]  # fmt: skip
    assert found.priorities[2].oldest_s == found.oldest_s
    assert found.priorities[3].oldest_s < found.oldest_s - 0.2
    assert found.tenants is not None
    assert {name: (one.waiting, one.delayed, one.active) for name, one in found.tenants.items()} == {
        "": (0, 0, 1), "x": (2, 1, 0), "y": (1, 0, 0),
    }  # fmt: skip
    assert found.tenants["y"].oldest_s == pytest.approx(found.oldest_s, abs=0.2)
    assert math.isnan(found.tenants[""].oldest_s)


# --- health ----------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("seen", "levels"),
    [
        ({"dead": 9, "waiting": 99, "oldest_s": 299.0}, []),
        ({"dead": 10}, ["warning dead"]),
        ({"waiting": 100}, ["warning waiting"]),
        ({"dead": 99, "waiting": 999}, ["warning dead", "warning waiting"]),
        ({"dead": 100, "waiting": 100}, ["unhealthy dead", "warning waiting"]),
        ({"waiting": 1000, "dead": 10}, ["unhealthy waiting", "warning dead"]),
        ({"oldest_s": 300.0}, ["warning oldest"]),
        ({"oldest_s": 3600.0}, ["unhealthy oldest"]),
        ({"workers": 0}, ["warning workers"]),
        ({"workers": 0, "delayed": 1}, ["unhealthy workers"]),
        ({"paused": Pause(1.0, "ada", "move")}, ["warning paused"]),
    ],
)
@pytest.mark.row("001.11", "001.12", "004.11")
async def test_health_is_judged_by_thresholds(queue: Queue, seen: dict[str, Any], levels: list[str]) -> None:
    one = dataclasses.replace(await statistics(queue), **{"workers": 1, **seen})
    assert [f"{problem.level} {problem.what}" for problem in judge([one])] == levels


@pytest.mark.row("001.12")
async def test_thresholds_are_configurable_and_reasons_say_them(queue: Queue) -> None:
    one: Statistics = dataclasses.replace(await statistics(queue), workers=1, dead=150, waiting=1200)
    assert [problem.text for problem in judge([one])] == [
        "150 dead letters (unhealthy from 100 on)", "1,200 waiting jobs (unhealthy from 1,000 on)",
    ]  # fmt: skip
    calm = Thresholds(dead=(200, 300), waiting=(NEVER, NEVER))
    assert judge([one], calm) == []
    (problem,) = judge([dataclasses.replace(one, paused=Pause(1.0, "ada", "move"))], calm)
    assert problem.text == "is paused (by ada, move)"
    for wrong in ((0, 1), (2, 1), (math.nan, 1), (-1, 1)):
        with pytest.raises(UsageError, match="threshold dead"):
            Thresholds(dead=wrong)


# --- tables ----------------------------------------------------------------------------------------------------------


async def tables(queue: Queue) -> dict[str, tuple[pd.DataFrame, dict[str, str]]]:
    return {
        "jobs": (await jobs_frame(queue), JOBS),
        "workers": (await workers_frame(queue), WORKERS),
        "statistics": (await statistics_frame(queue, tenants=True), STATISTICS),
        "attempts": (await recorded_attempts(queue), ATTEMPTS),
    }


def same(table: pd.DataFrame, columns: dict[str, str]) -> bool:
    return {name: str(dtype) for name, dtype in table.dtypes.items()} == columns


async def test_empty_tables_keep_their_columns_and_dtypes(queue: Queue) -> None:
    for name, (table, columns) in (await tables(queue)).items():
        assert same(table, columns), name
        assert len(table) == (5 if name == "statistics" else 0)
    assert same(await jobs_frame([]), JOBS)
    assert same(await statistics_frame([]), STATISTICS)


async def test_tables_go_through_parquet_and_csv_unharmed(queue: Queue, until: Until, tmp_path: Path) -> None:
    await a_real_run(queue, until)
    await queue.enqueue("f", key="NA", kwargs={"users": [1, 2], "note": 'é "x", 1'}, meta={"tenant": "null"})
    await queue.enqueue("g", key="later", scheduled=int(time.time()) + 900)
    await queue.worker_info("a worker of SAQ's", queue.name, metadata=None)
    found = await tables(queue)
    assert [len(table) > 0 for table, _ in found.values()] == [True] * 4
    for name, (table, columns) in found.items():
        assert same(table, columns), name
        table.to_parquet(tmp_path / "t.parquet", index=False)
        pd.testing.assert_frame_equal(pd.read_parquet(tmp_path / "t.parquet"), table)
        if name != "attempts":  # its CSV is read by pandas alone
            table.to_csv(tmp_path / "t.csv", index=False)
            pd.testing.assert_frame_equal(read_csv(tmp_path / "t.csv", columns), table)
    jobs, _ = found["jobs"]
    assert jobs[["key", "state", "users", "tenant"]].to_dict("records") == [
        {"key": "NA", "state": "waiting", "users": 2, "tenant": "null"},
        {"key": "later", "state": "delayed", "users": 0, "tenant": ""},
    ]
    assert jobs["taken_at"].isna().all()
    workers, _ = found["workers"]
    assert list(zip(workers["worker"], workers["slots"].isna(), strict=True)) == [
        ("a worker of SAQ's", True), ("host.1.0", False),
    ]  # fmt: skip


async def test_tables_of_several_queues_and_a_limit(make_queue: Callable[..., Queue]) -> None:
    queues = [make_queue("a"), make_queue("b")]
    for queue in queues:
        await queue.enqueue_many(Job("f", key=str(n)) for n in range(3))
    assert list((await jobs_frame(queues, limit=2))["queue"]) == ["a", "a", "b", "b"]
    assert list((await statistics_frame(queues))["queue"].unique()) == ["a", "b"]
