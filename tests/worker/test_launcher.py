"""The launcher: real processes, really killed."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path
from typing import Any

import psutil
import pytest
from redis.asyncio import Redis

from saqkit import load
from saqkit.app.announcing import Announcer
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.errors import RunError
from saqkit.queue.building import build_queues
from saqkit.spec.overriding import override
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration

TOPOLOGY = load("school-events")


def configuration(redis_url: str, folder: Path, name: str = "worker-0", **given: Any) -> Configuration:
    told: dict[str, Any] = {
        "topology": TOPOLOGY.to_dict(), "broker": redis_url, "database": f"sqlite:///{folder}/data.db",
        "slots": {"notifications": 2}, "name": name, "folder": str(folder),
    }  # fmt: skip
    return Configuration(**told | given)


@pytest.fixture
async def launcher(redis_url: str, tmp_path: Path) -> AsyncIterator[Launcher]:
    made = Launcher([configuration(redis_url, tmp_path, f"worker-{n}") for n in range(2)], tmp_path)
    await made.start()
    try:
        await made.ready()
        yield made
    finally:
        await made.stop(5)


async def until(holds: Callable[[], bool], timeout_s: float = 15.0) -> None:
    async with asyncio.timeout(timeout_s):
        while not holds():
            await asyncio.sleep(0.02)


async def test_a_worker_that_is_killed_is_started_again_and_all_end_when_told_to(launcher: Launcher) -> None:
    first, other = (process.pid for process in launcher.processes)
    os.kill(first, signal.SIGKILL)
    await until(lambda: launcher.processes[0].pid != first and launcher.report(0, "ready") is not None)
    assert launcher.processes[1].pid == other
    began = time.monotonic()
    assert await launcher.stop() == [0, 0]
    assert time.monotonic() - began < 10
    assert not any(psutil.pid_exists(process.pid) for process in launcher.processes)


async def test_a_worker_that_cannot_start_is_reported_with_its_last_words(redis_url: str, tmp_path: Path) -> None:
    bad = Launcher([configuration("redis://127.0.0.1:1/0", tmp_path)], tmp_path)
    await bad.start()
    try:
        with pytest.raises(RunError, match=r"worker worker-0 did not start: worker-0: .*127\.0\.0\.1:1"):
            await bad.ready()
    finally:
        await bad.stop(5)


async def test_addresses_with_their_passwords_do_not_stay_in_a_file(launcher: Launcher) -> None:
    assert list(launcher.folder.glob("*.json")) == []


LAUNCH = """
import asyncio, sys
from pathlib import Path
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
import json

async def main():
    config = Configuration(**json.loads(Path(sys.argv[1]).read_text()))
    launcher = Launcher([config], Path(config.folder))
    await launcher.start()
    await launcher.ready()
    print(launcher.processes[0].pid, flush=True)
    await asyncio.sleep(60)

asyncio.run(main())
"""


def test_the_workers_end_with_their_launcher_whatever_ends_it(redis_url: str, tmp_path: Path) -> None:
    config = tmp_path / "config.json"
    config.write_text(configuration(redis_url, tmp_path).to_json())
    with subprocess.Popen([sys.executable, "-c", LAUNCH, str(config)], stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        worker = psutil.Process(int(process.stdout.readline()))
        assert worker.is_running()
        process.kill()
    worker.wait(10)


async def test_one_that_is_started_again_waits_for_a_broker_that_is_away(tmp_state: Path) -> None:
    (tmp_state / "b").mkdir()
    server = PrivateBroker(folder=tmp_state / "b")
    try:
        url = (await asyncio.to_thread(server.start)).url
        launcher = Launcher([configuration(url, tmp_state)], tmp_state)
        await launcher.start()
        try:
            await launcher.ready()
            await asyncio.to_thread(server.stop)
            first = launcher.processes[0].pid
            launcher.kill(0)
            await until(lambda: launcher.processes[0].pid != first and launcher.report(0, "ready") is not None)
            assert launcher.restarts == 1
            await asyncio.to_thread(server.start)
            async with Redis.from_url(url) as client:
                async with asyncio.timeout(10):
                    while not await client.get("saq:{notifications}:alive"):  # it asks for jobs again
                        await asyncio.sleep(0.02)
            assert launcher.processes[0].poll() is None
        finally:
            assert await launcher.stop(20) == [0]
    finally:
        await asyncio.to_thread(server.stop)


async def test_what_dies_again_and_again_is_tried_less_and_less_often(
    launcher: Launcher, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="saqkit"):
        for deaths in (1, 2, 3):
            os.kill(launcher.processes[0].pid, signal.SIGKILL)
            await until(lambda number=deaths: launcher.restarts == number)  # type: ignore[misc]
    pauses = [message.rpartition(" in ")[2] for message in caplog.messages]
    assert pauses[:3] == ["0.5 s", "1.0 s", "2.0 s"]
    assert all("killed by SIGKILL" in message for message in caplog.messages)


async def test_told_twice_a_worker_gives_back_at_once_what_it_runs(redis_url: str, tmp_path: Path) -> None:
    slow = override(TOPOLOGY, [("providers.email.latency.mean_s", 60.0), ("queues.notifications.rate_limit", None)])
    config = configuration(redis_url, tmp_path, topology=slow.to_dict())
    queues = build_queues(slow, redis_url)
    queue = queues["notifications"]
    launcher = Launcher([config], tmp_path)
    await launcher.start()
    try:
        await launcher.ready()
        async with await Store.open(config.database) as store:
            await store.add_numbered_users(1)
            await Announcer(slow, store, queues).announce(title="x", patience_s=5)
        async with asyncio.timeout(20):
            while not await queue.redis.zscore(queue.namespace("leases"), "notify:1:0"):
                await asyncio.sleep(0.02)
        launcher.terminate()
        await asyncio.sleep(0.3)
        assert launcher.processes[0].poll() is None, "it waits for the job"
        launcher.terminate()
        assert await asyncio.to_thread(launcher.processes[0].wait, 10) == 0
        assert (await queue.count("active"), await queue.count("queued")) == (0, 1)
        job = await queue.job("notify:1:0")
        assert job is not None
        assert await queue.redis.hget(queue.key_of(job.key), "att") == b"0"  # type: ignore[misc]  # none is spent
    finally:
        await launcher.stop(5)
        for one in queues.values():
            await one.disconnect()
