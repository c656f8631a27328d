"""The queue's part of the probe: short real runs that leave nothing behind."""

from __future__ import annotations

import psutil
import redis

from saqkit.probing_queue import probe
from saqkit.spec.probing import Probe


async def test_the_queue_is_probed_at_two_rates_and_nothing_is_left(redis_url: str) -> None:
    before = {process.pid for process in psutil.Process().children(recursive=True)}
    found = await probe(redis_url, seconds=0.5)
    assert {process.pid for process in psutil.Process().children(recursive=True)} == before
    with redis.Redis.from_url(redis_url) as client:
        assert client.keys() == []
    queue = found.queue
    assert queue is not None
    # A process that is woken for every single job spends more on it, and asks the server more often.
    assert 0 < queue.busy_job_cpu_s < queue.slow_job_cpu_s
    assert 0 < queue.busy_round_trips < 1 < queue.slow_round_trips
    assert 0 < queue.busy_broker_cpu_s < queue.slow_broker_cpu_s
    assert queue.idle_cpu < 0.5
    assert 0 < queue.wake_s < 0.5
    assert 0 < queue.database_write_s < 0.5
    assert Probe.parse(found.to_dict()) == found


async def test_the_quick_probe_leaves_the_queue_out(redis_url: str) -> None:
    assert (await probe(redis_url, seconds=0.5, queue=False)).queue is None
