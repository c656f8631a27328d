"""The launcher: real processes, really killed."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Callable
from pathlib import Path

import psutil
import pytest

from saqkit import load
from saqkit.errors import RunError
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration

TOPOLOGY = load("school-events")


def configuration(redis_url: str, folder: Path, name: str = "worker-0", **given: object) -> Configuration:
    return Configuration(
        topology=TOPOLOGY.to_dict(), broker=redis_url, database=f"sqlite:///{folder}/data.db",
        slots={"notifications": 2}, name=name, folder=str(folder), **given,
    )  # fmt: skip


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
