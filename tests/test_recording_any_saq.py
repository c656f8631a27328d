"""`saqkit.record` on ordinary SAQ applications: real workers in processes of their own, on every kind of queue."""

from __future__ import annotations

import asyncio
import importlib
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import contextmanager
from itertools import pairwise
from pathlib import Path
from types import ModuleType
from typing import Any

import pytest
from measured import PROBE
from saq.job import CronJob, Job, Status

import saqkit
import sim
from saqkit.errors import RunError, UsageError
from saqkit.recorder.journal import Journal
from saqkit.spec import trace

HERE = Path(__file__).parent
KINDS = ("stock", "ours", "postgres")
ORDER = ["queued_at", "ready_at", "taken_at", "started_at", "finished_at"]


@pytest.fixture(params=KINDS)
def url(request: pytest.FixtureRequest) -> str:
    """The address of a broker for this kind of queue."""
    if request.param != "postgres":
        return str(request.getfixturevalue("redis_url"))
    try:
        importlib.import_module("psycopg_pool")
    except ImportError:
        reason = "psycopg and psycopg_pool are not installed, which SAQ's PostgreSQL queue needs"
        pytest.fail(reason) if os.environ.get("CI") else pytest.skip(reason)
    return str(request.getfixturevalue("postgres_url")).replace("postgresql+asyncpg", "postgresql")


@pytest.fixture
def kind(request: pytest.FixtureRequest) -> str:
    return str(request.node.callspec.params["url"])


@pytest.fixture
def app(url: str, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """The application's module, imported anew for this broker and folder."""
    monkeypatch.setenv("APP_URL", url)
    monkeypatch.setenv("APP_QUEUE", kind)
    monkeypatch.setenv("APP_FOLDER", str(tmp_path / "recording"))
    sys.modules.pop("recorded_app", None)
    return importlib.import_module("recorded_app")


@pytest.fixture
async def queue(app: ModuleType) -> AsyncIterator[Any]:
    """The application's queue as a producer has it that knows nothing of a recording."""
    queue = app.make_queue()
    await queue.connect()
    yield queue
    await queue.disconnect()


@contextmanager
def worker() -> Iterator[subprocess.Popen[bytes]]:
    """SAQ's worker in a process of its own; stopped as an operator stops it."""
    process = subprocess.Popen([sys.executable, "-m", "saq", "recorded_app.settings"], cwd=HERE)
    try:
        yield process
        if process.poll() is None:
            process.send_signal(signal.SIGTERM)
        process.wait(20)
    finally:
        process.kill()
        process.wait()


async def ended(queue: Any, *keys: str) -> list[Job]:
    """Those jobs, once they have ended."""
    async with asyncio.timeout(40):
        while True:
            jobs = [await queue.job(key) for key in keys]
            if all(job is not None and job.completed and job.status != Status.QUEUED for job in jobs):
                return jobs
            await asyncio.sleep(0.02)


async def swept(queue: Any, kind: str) -> None:
    """The worker has swept for the first time: stock SAQ's takes jobs that are just being taken for stuck ones."""
    async with asyncio.timeout(20):
        while kind == "stock" and not await queue.redis.exists(queue.namespace("sweep")):
            await asyncio.sleep(0.02)


async def test_an_ordinary_application_is_recorded_without_its_noticing(queue: Any, kind: str, tmp_path: Path) -> None:
    keys = ("w", "b", "t", "o", "f", "p", "child-0", "child-1", "child-2")
    with worker():
        await swept(queue, kind)
        await queue.enqueue("work", key="w", seconds=0.1)
        await queue.enqueue("burn", key="b", seconds=0.05)
        await queue.enqueue("burn_in_thread", key="t", seconds=0.05)
        await queue.enqueue("fails_once", key="o", retries=3, retry_delay=0.3)
        await queue.enqueue("fails", key="f", retries=2)
        await queue.enqueue("renamed", key="p", children=3)
        jobs = await ended(queue, *keys)
    assert [job.status.value for job in jobs] == ["complete"] * 4 + ["failed"] + ["complete"] * 4
    assert jobs[0].result == "hello"
    assert (tmp_path / "recording" / "hooks.txt").read_text() == "11 11"

    recording = saqkit.read_recording(tmp_path / "recording")
    rows = recording.attempts
    trace.check(rows)
    for before, after in pairwise(ORDER):
        assert (rows[before] <= rows[after] + 1e-9).all(), (before, after)
    found = rows.sort_values(["job", "attempt"]).groupby("job")["outcome"].agg(list).to_dict()
    assert found == {key: ["done"] for key in keys} | {"o": ["retry", "done"], "f": ["retry", "dead"]}
    by_job = rows.set_index("job")
    assert dict(by_job["job_type"])["p"] == "renamed"
    assert set(rows["queue"]) == {"app"}
    assert list(by_job.loc["o", "error"]) == ["ValueError", ""]
    assert list(by_job.loc["f", "attempt"]) == [1, 2]
    assert by_job.loc["child-1", "parent"] == "p"
    assert by_job.loc["child-1", "event"] == "p"
    assert by_job.loc["child-1", "event_at"] == by_job.loc["p", "event_at"]
    assert 0.1 <= by_job.loc["w", "provider_s"] < 0.5
    assert by_job.loc["w", "cpu_s"] < 0.03
    for key in ("b", "t"):
        assert 0.049 <= by_job.loc[key, "cpu_s"] < 0.1
        assert 0.049 <= by_job.loc[key, "provider_s"] < 5
    waited = by_job.loc["o", "ready_at"].iloc[1] - by_job.loc["o", "finished_at"].iloc[0]
    assert -1.01 <= waited < 3  # SAQ on PostgreSQL cuts the due time to whole seconds
    if kind != "postgres":
        assert waited >= 0.29
    assert set(recording.steps["step"]) == {"cpu", "provider"}
    (one,) = recording.workers
    assert (one["concurrency"], one["jobs"]) == (4, len(rows))
    assert one["cpu_s"] > 0.1
    assert abs(one["clock_offset_s"]) < 0.1
    assert recording.notes == ()
    assert recording.types["fails"]["retries"] == 2
    assert "11 attempts of 9 jobs, 1 worker" in repr(recording)


async def test_what_a_killed_worker_had_recorded_is_read_and_what_it_held_is_lost(
    queue: Any, kind: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("APP_SWEEP_S", "1")
    folder = tmp_path / "recording"
    with worker() as process:
        await swept(queue, kind)
        for n in range(30):
            await queue.enqueue("work", key=f"quick-{n}")
        await queue.enqueue("work", key="long", seconds=60, timeout=3, retries=2)
        async with asyncio.timeout(30):  # until the file tells of all of them, the running one too
            while True:
                text = "".join(path.read_text() for path in folder.glob("*.jsonl"))
                if text.count('["a",') == 30 and '["b","app","long"' in text:
                    break
                await asyncio.sleep(0.05)
        process.kill()
        process.wait()
    file = next(folder.glob("*.jsonl"))
    with file.open("ab") as torn:
        torn.write(b'["r",17')  # as a machine leaves it that goes down
    rows = saqkit.read_recording(folder).attempts
    assert (rows["outcome"] == "done").sum() == 30
    assert list(rows[rows["job"] == "long"]["outcome"]) == ["lost"]
    assert list(rows[rows["job"] == "long"]["error"]) == ["WorkerLost"]

    with worker():  # another one finds it, and fails in its time
        await ended(queue, "long")
        async with asyncio.timeout(20):  # until the file tells of it
            while (saqkit.read_recording(folder).attempts["job"] == "long").sum() < 2:
                await asyncio.sleep(0.1)
    rows = saqkit.read_recording(folder).attempts
    late = rows[rows["job"] == "long"].sort_values("finished_at")
    assert next(iter(late["outcome"])) == "lost"
    # What ends it in its time is its worker's own clock, or a sweep that comes first.
    assert len(late) > 1
    assert set(late["outcome"][1:]) <= {"retry", "dead", "cancelled", "lost"}
    assert late["finished_at"].is_monotonic_increasing
    assert len(saqkit.read_recording(folder).workers) == 2


@pytest.mark.parametrize("url", ["stock", "ours"], indirect=True)
async def test_a_producer_that_records_gives_exact_times_and_its_own_file(app: ModuleType, tmp_path: Path) -> None:
    settings = app.settings()
    queue = settings["queue"]
    await queue.connect()
    try:
        plain = await queue.enqueue("work", key="one")
        assert plain is not None
        assert await queue.enqueue("work", key="one") is None  # still refused, and not recorded
        if hasattr(queue, "enqueue_many"):
            assert await queue.enqueue_many([Job(function="work", key="two")]) == [True]
            assert await queue.enqueue_each("work", [{}], keys=["three"]) == ["three"]
        from saq.worker import Worker

        running: Worker[Any] = Worker(**settings)
        task = asyncio.create_task(running.start())
        await ended(queue, "one", *(("two", "three") if hasattr(queue, "enqueue_many") else ()))
        await running.stop()
        await task
    finally:
        await queue.disconnect()
    texts = [line for path in (tmp_path / "recording").glob("*.jsonl") for line in path.read_text().splitlines()]
    enqueued = [row for line in map(json.loads, texts) if line[0] == "r" for row in line[3] if row[0] == "e"]
    assert len(enqueued) == (3 if hasattr(queue, "enqueue_many") else 1)
    rows = saqkit.read_recording(tmp_path / "recording").attempts
    assert (rows["outcome"] == "done").all()
    assert (rows["taken_at"] - rows["queued_at"]).min() >= 0


@pytest.mark.parametrize("where", ["before", "after"])
@pytest.mark.parametrize("how", ["finish", "retry"])
async def test_a_worker_told_to_stop_while_it_says_an_end_tells_of_it_if_the_broker_heard(
    app: ModuleType, kind: str, how: str, where: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    settings = app.settings()
    queue = settings["queue"]
    await queue.connect()
    try:
        await queue.enqueue("work", key="two")
        await queue.finish(await queue.dequeue(timeout=10), Status.COMPLETE)
        await queue.enqueue("work", key="one", retries=2)
        job = await queue.dequeue(timeout=10)
        job.attempts, job.started = 1, 1
        await job.update(status=Status.ACTIVE)
        stuck, original = asyncio.Event(), getattr(queue, f"_{how}")

        async def stop_here(*args: object, **kwargs: object) -> None:
            if where == "after":
                await original(*args, **kwargs)
            stuck.set()
            await asyncio.sleep(60)

        if kind != "ours":  # ours is heard in either case: it goes on by itself
            monkeypatch.setattr(queue, f"_{how}", stop_here)
        saying = asyncio.create_task(
            queue.finish(job, Status.COMPLETE) if how == "finish" else queue.retry(job, "ValueError: no")
        )
        if kind == "ours":
            await asyncio.sleep(0)
        else:
            await asyncio.wait_for(stuck.wait(), 10)
        saying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saying
        async with asyncio.timeout(10):
            while kind == "ours" and (await queue.job("one")).status == Status.ACTIVE:
                await asyncio.sleep(0.01)
    finally:
        await queue.disconnect()
    await settings["shutdown"][-1]({})
    rows = saqkit.read_recording(tmp_path / "recording").attempts
    found = dict(zip(rows["job"], rows["outcome"], strict=True))
    heard = kind == "ours" or where == "after"
    said = {"one": "done" if how == "finish" else "retry"} if heard else {}
    assert found == {"two": "done"} | said


@pytest.mark.parametrize("url", ["ours"], indirect=True)
async def test_an_end_that_the_broker_refused_or_never_heard_is_not_told(app: ModuleType, tmp_path: Path) -> None:
    settings = app.settings()
    queue = settings["queue"]
    await queue.connect()
    other = app.make_queue()
    await other.connect()
    for key in ("refused", "unheard", "heard"):
        await queue.enqueue("work", key=key)
        job = await queue.dequeue(timeout=10)
        if key == "refused":
            await other.abort(await other.job(key), "an operator")
        claim, saying = queue.claim_of(job), asyncio.create_task(queue.finish(job, Status.COMPLETE))
        await asyncio.sleep(0)
        if key == "unheard":
            claim.said.cancel()
        saying.cancel()
        with pytest.raises(asyncio.CancelledError):
            await saying
        await asyncio.wait([claim.said])
    await other.disconnect()
    await queue.disconnect()
    await settings["shutdown"][-1]({})
    rows = saqkit.read_recording(tmp_path / "recording").attempts
    assert list(rows[rows["outcome"] == "done"]["job"]) == ["heard"]


@pytest.mark.parametrize("url", ["stock"], indirect=True)
async def test_a_retry_that_another_worker_has_taken_already_was_heard(app: ModuleType, tmp_path: Path) -> None:
    settings = app.settings()
    queue, other = settings["queue"], app.make_queue()
    await queue.connect()
    await other.connect()
    await queue.enqueue("work", key="one", retries=2)
    job = await queue.dequeue(timeout=10)
    job.attempts, job.started = 1, 1
    await job.update(status=Status.ACTIVE)
    original, stuck = queue._retry, asyncio.Event()

    async def taken_meanwhile(*args: object, **kwargs: object) -> None:
        await original(*args, **kwargs)
        theirs = await other.dequeue(timeout=10)
        theirs.attempts, theirs.started = 2, 1
        await theirs.update(status=Status.ACTIVE)
        stuck.set()
        await asyncio.sleep(60)

    queue._retry = taken_meanwhile
    saying = asyncio.create_task(queue.retry(job, "ValueError: no"))
    await asyncio.wait_for(stuck.wait(), 10)
    saying.cancel()
    with pytest.raises(asyncio.CancelledError):
        await saying
    await other.disconnect()
    await queue.disconnect()
    await settings["shutdown"][-1]({})
    rows = saqkit.read_recording(tmp_path / "recording").attempts
    assert list(zip(rows["job"], rows["outcome"], strict=True)) == [("one", "retry")]


@pytest.mark.parametrize("url", ["stock"], indirect=True)
async def test_a_broker_that_does_not_answer_does_not_hold_up_a_worker_that_stops(
    app: ModuleType, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr("saqkit.recorder.wrapping.ASKING_S", 0.1)
    queue = app.settings()["queue"]
    await queue.connect()
    await queue.enqueue("work", key="one")
    job = await queue.dequeue(timeout=10)
    job.attempts, job.started = 1, 1

    async def hang(*args: object, **kwargs: object) -> None:
        await asyncio.sleep(60)

    monkeypatch.setattr(queue, "_finish", hang)
    monkeypatch.setattr(queue, "job", hang)
    saying = asyncio.create_task(queue.finish(job, Status.COMPLETE))
    await asyncio.sleep(0)
    saying.cancel()
    async with asyncio.timeout(5):
        with pytest.raises(asyncio.CancelledError):
            await saying
    await queue.disconnect()


@pytest.mark.parametrize("url", ["ours"], indirect=True)
async def test_a_job_with_a_policy_of_its_own_is_ready_when_that_says(app: ModuleType, tmp_path: Path) -> None:
    settings = app.settings()
    queue = settings["queue"]
    await queue.connect()
    own = {"max_attempts": 4, "backoff": "list", "delays_s": [3.0, 5.0, 8.0]}
    await queue.enqueue("work", key="one", meta={"retry_policy": own})
    job = await queue.dequeue(timeout=10)
    job.attempts, job.started = 1, int(time.time() * 1000)
    await queue.retry(job, "ValueError: no")
    await queue.disconnect()
    await settings["shutdown"][-1]({})
    rows = [row for path in (tmp_path / "recording").glob("*.jsonl") for line in path.read_text().splitlines()
            if (read := json.loads(line))[0] == "r" for row in read[3]]  # fmt: skip
    (ended,) = [row for row in rows if row[0] == "a"]
    assert ended[-1] == pytest.approx(3.0, abs=0.5)
    (said,) = [row for row in rows if row[0] == "t"]
    assert "retries" not in said[2], "four attempts are this job's, not its type's"


@pytest.mark.parametrize("url", ["stock"], indirect=True)
async def test_from_a_recording_to_a_prediction(queue: Any, tmp_path: Path) -> None:
    keys = [f"k-{n}" for n in range(60)]
    with worker():
        await swept(queue, "stock")
        for key in keys:
            await queue.enqueue("work", key=key, seconds=0.05)
        await ended(queue, *keys)
    recording = saqkit.read_recording(tmp_path / "recording")
    found = sim.infer(recording)
    assert found.deployment.slots(found.topology, "app") == 4
    assert sum(users for _, users in found.workload.arrivals.times(0)) == 60
    predicted = sim.predict(
        found.topology, workload=found.workload, deployment=found.deployment, profile=found.profile, replications=5
    )
    rows = recording.attempts
    busy_s = float(rows["finished_at"].max() - rows["started_at"].min())
    drained = predicted.combinations[0].measures["makespan_s"]["mean"]
    assert drained == pytest.approx(busy_s, rel=0.2)  # a machine shared with others; the model itself is exact here
    fitted = sim.calibrate(found.run(PROBE.to_dict()))
    assert "work" in fitted.job_types
    assert fitted.host.cpu_scale.value > 0
    assert fitted.residual < 0.5


async def test_wraps_dicts_functions_and_cron_jobs_alike(tmp_path: Path) -> None:
    async def tick(ctx: dict[str, Any]) -> None: ...

    plain = {"functions": [tick, ("other", tick)], "cron_jobs": [CronJob(tick, "* * * * *")]}
    settings = saqkit.record(plain, tmp_path)
    (one, (name, two)), (cron,) = settings["functions"], settings["cron_jobs"]
    assert one is two is cron.function  # SAQ keeps one function per name, in no certain order
    assert (name, one.__qualname__) == ("other", tick.__qualname__)
    assert list(tmp_path.iterdir()) == []  # who only imports settings writes nothing


def test_refuses_what_is_no_settings_and_where_nothing_is_recorded(tmp_path: Path) -> None:
    with pytest.raises(UsageError, match="a dict with functions"):
        saqkit.record({"queue": None})
    with pytest.raises(RunError, match="no recording is there"):
        saqkit.read_recording(tmp_path / "nowhere")
    (tmp_path / "h-1-1.jsonl").write_text('["h",1.0,{"host":"h","format":99}]\n')
    with pytest.raises(RunError, match="format 99"):
        saqkit.read_recording(tmp_path)


def test_memory_and_disk_are_bounded_and_trouble_is_said_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, monkeypatch: pytest.MonkeyPatch
) -> None:
    journal = Journal(tmp_path, lambda: {"host": "h"}, most_bytes=10_000)
    for n in range(5000):
        journal.add(("x" * 50,), n)
    size = sum(path.stat().st_size for path in tmp_path.iterdir())
    assert 10_000 < size < 10_000 + 512 * 60
    assert [record.message for record in caplog.records if "as many as allowed" in record.message] != []
    assert len(caplog.records) == 1

    caplog.clear()
    (tmp_path / "file").write_text("")
    blocked = Journal(tmp_path / "file", lambda: {"host": "h"}, most_bytes=10_000)
    for n in range(2000):
        blocked.add((n,), n)
    assert len(caplog.records) == 1


def test_a_forked_process_writes_a_file_of_its_own(tmp_path: Path) -> None:
    journal = Journal(tmp_path, lambda: {"host": "h"}, most_bytes=10_000)
    journal.add(("of the parent",), 0)
    if (child := os.fork()) == 0:
        journal.add(("of the child",), 0)
        journal.close()
        os._exit(0)
    os.waitpid(child, 0)
    journal.close()
    found = sorted(
        row[0] for path in tmp_path.iterdir() for line in path.read_text().splitlines()
        if (read := json.loads(line))[0] == "r" for row in read[3]
    )  # fmt: skip
    assert found == ["of the child", "of the parent"]
