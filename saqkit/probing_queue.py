"""What the queue costs on this host: short real runs of jobs that do nothing, fast and slow, and of small batches."""

from __future__ import annotations

import asyncio
from dataclasses import dataclass
from typing import Any

from saqkit.broker import PrivateBroker
from saqkit.broker_address import info
from saqkit.measuring import measure
from saqkit.probing_host import probe as probe_host
from saqkit.spec.probing import Probe, QueueProbe
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Recorded, Workload

__all__ = ["probe"]

BUSY_JOBS = 3000
APART_S, SLOW_S = 0.02, 4.0
BATCHES, BATCH = 40, 25


async def probe(redis_url: str | None = None, *, seconds: float = 2.0, queue: bool = True) -> Probe:
    """Measure this host: `seconds` for its speed, timers and broker, then what the queue costs on it (15 s).

    `queue=False` leaves the second part out, as every measured run does. The broker is the one at `redis_url`, which is
    left as it was found; by default a private one, for the time. Raises `BrokerError` if there is no usable broker,
    `RunError` if a measuring process fails.
    """
    if not queue:
        return await probe_host(redis_url, seconds=seconds)
    private = PrivateBroker()
    try:
        url = redis_url or (await asyncio.to_thread(private.start)).url
        found = await probe_host(url, seconds=seconds)
        return found.model_copy(update={"queue": await _probe_queue(url, found)})
    finally:
        await asyncio.to_thread(private.stop)


@dataclass(frozen=True)
class _Spent:
    """What a run took in all: seconds that its worker was up, its CPU, the server's CPU and reads."""

    up_s: float
    worker_s: float
    broker_s: float
    reads: float

    def beside(self, idle: _Spent, jobs: int) -> _Spent:
        """Per job, without what goes on anyway."""
        share = self.up_s / idle.up_s
        values = (self.worker_s - share * idle.worker_s, self.broker_s - share * idle.broker_s,
                  self.reads - share * idle.reads)  # fmt: skip
        return _Spent(self.up_s / jobs, *(max(0.0, value) / jobs for value in values))


async def _probe_queue(url: str, host: Probe) -> QueueProbe:
    nothing = _topology({"queue": "probe"})
    _, idle = await _spent(nothing, Workload(arrivals=Recorded(at_s=(0.0, SLOW_S))), url, host)
    busy_run, busy = await _spent(nothing, Workload.burst(BUSY_JOBS), url, host)
    times = tuple(APART_S * n for n in range(round(SLOW_S / APART_S)))
    slow_run, slow = await _spent(nothing, Workload(arrivals=Recorded(at_s=times)), url, host)
    written, _ = await _spent(_topology({"queue": "probe", "per_user": {"database": "ledger"}}, fan_out=True),
                              Workload.burst(BATCHES * BATCH), url, host)  # fmt: skip
    fast, cold = busy.beside(idle, len(busy_run.attempts)), slow.beside(idle, len(slow_run.attempts))
    steps = written.steps[(written.steps["step"] == "database") & written.steps["job"].str.startswith("work")]
    flushes = steps.groupby(["job", "attempt"])["took_s"].last()
    woken = slow_run.attempts["taken_at"] - slow_run.attempts["ready_at"]
    return QueueProbe(
        busy_job_cpu_s=fast.worker_s,
        slow_job_cpu_s=cold.worker_s,
        busy_broker_cpu_s=fast.broker_s,
        slow_broker_cpu_s=cold.broker_s,
        busy_round_trips=fast.reads,
        slow_round_trips=cold.reads,
        idle_cpu=idle.worker_s / idle.up_s,
        wake_s=max(0.0, float(woken.median())),
        database_write_s=float(flushes.median()),
    )


async def _spent(topology: Topology, workload: Workload, url: str, host: Probe) -> tuple[Run, _Spent]:
    before = await asyncio.to_thread(info, url)
    run = await measure(topology, workload=workload, redis=url, probe=host, workers=1)
    after = await asyncio.to_thread(info, url)

    def grown(*names: str) -> float:
        return sum(float(after[name]) - float(before[name]) for name in names)

    worker = run.workers[0]
    broker_s = grown("used_cpu_user", "used_cpu_sys")
    up_s = worker["stopped_at"] - worker["ready_at"]
    return run, _Spent(up_s, worker["cpu_s"], broker_s, grown("total_reads_processed"))


def _topology(work: dict[str, Any], fan_out: bool = False) -> Topology:
    types: dict[str, Any] = {"work": work}
    if fan_out:
        types["entry"] = {"queue": "probe", "fan_out": {"to": "work", "batch_size": BATCH}}
    return Topology.parse({"name": "probe", "entry": [{"job_type": "entry" if fan_out else "work"}],
                           "queues": {"probe": {"concurrency": 10}}, "job_types": types})  # fmt: skip
