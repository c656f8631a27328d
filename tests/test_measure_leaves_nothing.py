"""After a measured run nothing is left: no process, no key, no file; however it ended."""

from __future__ import annotations

import asyncio
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path

import psutil
import pytest
import redis
from measured import lab, run

from saqkit.broker_server import alive
from saqkit.errors import RunError

SLOW = {"providers__email__latency": {"kind": "constant", "mean_s": 1.0}}


@pytest.fixture
def scratch(tmp_state: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[Path]:
    """Where temporary files go during the test; nothing may be left in it. (A short path: a socket lies there.)"""
    folder = tmp_state / "t"
    folder.mkdir()
    monkeypatch.setenv("TMPDIR", str(folder))
    monkeypatch.setattr("tempfile.tempdir", None)
    before = set(psutil.Process().children(recursive=True))
    yield folder
    wait_until(lambda: not list(folder.iterdir()), f"files in {folder}")
    wait_until(lambda: not set(psutil.Process().children(recursive=True)) - before, "child processes")


def wait_until(holds: Callable[[], bool], what: str, timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not holds():
        assert time.monotonic() < deadline, f"still there after {timeout_s:g} s: {what}"
        time.sleep(0.02)


async def test_a_run_of_its_own_leaves_nothing(scratch: Path) -> None:
    await run(lab(), users=20)
    assert list(scratch.iterdir()) == []


async def test_a_run_on_a_shared_server_removes_its_keys_and_touches_no_others(scratch: Path, redis_url: str) -> None:
    with redis.Redis.from_url(redis_url) as client:
        client.set("saq:{notifications}:wake", "somebody's")
        client.hset("saqkit-run", "a", "b")
        done = await run(lab(), users=20, redis=redis_url)
        assert done.measures()["users_done"] == 20
        assert sorted(client.keys()) == [b"saq:{notifications}:wake", b"saqkit-run"]
        assert client.get("saq:{notifications}:wake") == b"somebody's"
        assert client.hgetall("saqkit-run") == {b"a": b"b"}


async def test_a_server_named_by_the_environment_alone_is_not_used(
    scratch: Path, redis_url: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("REDIS_URL", redis_url)
    monkeypatch.setenv("SAQKIT_SMTP_URL", "smtp://127.0.0.1:1")
    monkeypatch.setenv("SAQKIT_DATABASE_URL", "sqlite:////nowhere/at/all.db")
    with redis.Redis.from_url(redis_url) as client:
        before = client.info()["total_connections_received"]
        done = await run(lab(), users=20)
        assert done.measures()["users_done"] == 20
        assert client.info()["total_connections_received"] == before
        assert client.dbsize() == 0


async def test_a_failed_run_leaves_nothing(scratch: Path, redis_url: str) -> None:
    with pytest.raises(RunError):
        await run(lab(providers__email__kind="smtp", providers__email__url="x://y"), users=5, redis=redis_url)
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


@pytest.mark.parametrize("shared", [False, True])
async def test_a_cancelled_run_leaves_nothing(scratch: Path, redis_url: str, shared: bool) -> None:
    under_way = asyncio.Event()

    def progress(done: int, users: int, what: str) -> None:
        if what == "running":
            under_way.set()

    task = asyncio.create_task(run(lab(**SLOW), users=500, redis=redis_url if shared else None, progress=progress))
    await asyncio.wait_for(under_way.wait(), 30)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []


SCRIPT = """
import asyncio, saqkit, sys
sys.path.insert(0, {tests!r})
from measured import lab, run

asyncio.run(run(
    lab(providers__email__latency={{"kind": "constant", "mean_s": 1.0}}), users=500,
    progress=lambda done, users, what: print(what, flush=True),
))
"""


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL])
async def test_a_process_that_is_ended_while_it_measures_leaves_nothing(scratch: Path, number: signal.Signals) -> None:
    script = SCRIPT.format(tests=str(Path(__file__).parent))
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        for line in process.stdout:
            if line.strip() == b"running":
                break
        else:
            assert process.stderr is not None
            pytest.fail(process.stderr.read().decode())
        family = psutil.Process(process.pid).children(recursive=True)
        assert len(family) >= 3  # a worker, the broker, its watchdog
        process.send_signal(number)
        process.wait(20)
    wait_until(lambda: not any(alive(one) for one in family), "processes", 25)


async def test_a_disturbed_run_is_marked_and_a_quiet_one_has_its_load_noted() -> None:
    hog = f"{sys.executable} -c 'while True: pass' & echo $!"
    pids = []
    try:
        for _ in range(os.cpu_count() or 1):  # started by a shell that ends: no children of ours
            found = subprocess.run(["/bin/sh", "-c", hog.replace("&", ">/dev/null 2>&1 &")], stdout=-1, check=True)
            pids.append(int(found.stdout))
        done = await run(lab(), users=60)
    finally:
        for pid in pids:
            with suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
    assert done.facts["other_load"] > 0.1
    assert any("other processes used" in reason for reason in done.disturbed)
    assert "disturbed" in repr(done)
