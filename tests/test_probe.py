"""The probe measures, repeats itself, and leaves nothing behind; others' load is seen, one's own is not."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from datetime import UTC, datetime
from pathlib import Path

import psutil
import pytest
import redis

from saqkit.broker import Broker
from saqkit.disturbance import OtherLoad, other_load
from saqkit.errors import BrokerError
from saqkit.probing_host import available_cores, probe, yardstick
from saqkit.spec.probing import Probe

BUSY = "import sys\nprint(flush=True)\nwhile True: pass"


def children() -> set[int]:
    return {process.pid for process in psutil.Process().children(recursive=True)}


@pytest.fixture
def stranger() -> Iterator[int]:
    """A process that keeps a core busy and is no descendant of ours: its parent has ended."""
    code = f"from subprocess import *; import sys; print(Popen([sys.executable, '-c', {BUSY!r}], stdout=DEVNULL).pid)"
    done = subprocess.run([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, check=True, timeout=30)
    pid = int(done.stdout)
    try:
        yield pid
    finally:
        os.kill(pid, 9)


async def test_a_probe_measures_this_host_and_leaves_nothing_behind(redis_url: str, broker: Broker) -> None:
    before, started = children(), datetime.now(UTC)
    found = await probe(redis_url, seconds=1.0)
    assert children() == before
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []
    assert found.cores == available_cores()
    assert 0.05 < found.cpu_scale < 20
    assert found.cpu_scale_crowded > found.cpu_scale / 3
    assert found.timer_resolution_s in (0.0, 0.001)
    if sys.platform == "linux" and sys.version_info < (3, 14):
        assert found.timer_resolution_s == 0.001, "epoll counts in whole milliseconds"
    assert found.timer_overshoot_s < 0.05
    assert 0 < found.broker_cpu_s < found.broker_round_trip_s * 3
    assert 0 < found.client_cpu_s < found.broker_round_trip_s * 3
    assert found.broker == f"{broker.name} {broker.version}"
    assert found.python == sys.version.split()[0].rstrip("+")
    assert abs(datetime.fromisoformat(found.taken_on) - started).total_seconds() < 60
    assert Probe.parse(found.to_dict()) == found


async def test_a_probe_brings_its_own_broker_and_takes_it_away_again() -> None:
    before = children()
    found = await probe(seconds=0.5)
    assert found.broker.split()[0] in ("redis", "valkey")
    assert children() == before


async def test_a_probe_that_is_cancelled_leaves_no_process_behind(redis_url: str) -> None:
    before = children()
    task = asyncio.create_task(probe(redis_url, seconds=30))
    while len(children() - before) < available_cores():
        await asyncio.sleep(0.01)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert children() == before


def test_the_measuring_processes_end_when_the_prober_is_killed(redis_url: str) -> None:
    code = f"import asyncio; from saqkit.probing_host import probe; asyncio.run(probe({redis_url!r}, seconds=6))"
    root = Path(__file__).parent.parent
    with subprocess.Popen([sys.executable, "-c", code], cwd=root) as prober:
        watched = psutil.Process(prober.pid)
        while len(processes := watched.children()) < available_cores():
            assert prober.poll() is None
            time.sleep(0.01)
        prober.kill()
    _, alive = psutil.wait_procs(processes, timeout=15)
    assert alive == []


async def test_a_probe_without_a_broker_says_so(tmp_path: Path) -> None:
    before = children()
    with pytest.raises(BrokerError):
        await probe(f"unix://{tmp_path}/nobody.sock")
    assert children() == before


async def test_the_yardstick_agrees_with_itself_and_runs_inside_a_loop() -> None:
    start = time.perf_counter()
    scales = [yardstick(0.1) for _ in range(5)]
    assert time.perf_counter() - start < 10
    assert max(scales) < 4 * min(scales)
    assert min(scales) > 0.05


def test_the_load_of_others_is_seen(stranger: int) -> None:
    cores = psutil.cpu_count() or 1
    assert other_load(1.0) > 0.4 / cores
    assert psutil.Process(stranger).is_running()


def test_ones_own_load_is_not_the_load_of_others() -> None:
    cores = psutil.cpu_count() or 1
    watch = OtherLoad()
    start = os.times()
    with subprocess.Popen([sys.executable, "-c", BUSY], stdout=subprocess.PIPE) as child:
        assert child.stdout is not None
        child.stdout.readline()
        alone = OtherLoad(), OtherLoad(ours=[child.pid])
        deadline = time.monotonic() + 1.0
        while time.monotonic() < deadline:
            pass
        shares = [one.share() for one in alone]
        child.kill()
    end = os.times()
    own_s = end.user + end.system + end.children_user + end.children_system
    own_s -= start.user + start.system + start.children_user + start.children_system
    assert own_s > 0.3
    # On a quiet machine all shares are near 0; a busy neighbour may take what we did not, and no more.
    for share in (*shares, watch.share()):
        assert share <= 1 - 0.8 * own_s / (cores * (end.elapsed - start.elapsed)) + 0.1
