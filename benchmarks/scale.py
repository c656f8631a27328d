"""How far does one machine go? `python benchmarks/scale.py [--users N,N,…] [--rounds 3] [--workers 2] [--slots 5]`

`school-events` without its rate limit and with a provider that answers at once: what is left is the machine, its
fan-out, a ledger row and a simulated email for each user, one SQLite file, the broker on the same cores. Printed are:

- of each number of users: users per second from the announcement to the last row (median and range of the rounds), the
  most memory that a worker process and the broker had, and CPU time of each per user;
- what the model says of the largest number, calibrated on runs of the smallest, and its bottleneck;
- the broker's memory with all users of the largest waiting, in batches of 100.
"""

from __future__ import annotations

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import threading
from typing import Any

import pandas as pd
import psutil

import saqkit
import sim
from saqkit.app.announcing import Announcer
from saqkit.app.store import Store
from saqkit.broker import PrivateBroker
from saqkit.queue.building import build_queues
from saqkit.spec.overriding import override, parse_assignment
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology

BARE = {
    "queues.notifications.rate_limit": None,
    "providers.email.latency": {"kind": "constant", "mean_s": 0.0},
    "providers.email.permanent_share": 0.0,
}
LOOK_S = 0.05


class Watch:
    """The most memory (MB) and the CPU time (s) of this process's children, by what they are; a context manager."""

    def __init__(self) -> None:
        self._most: dict[tuple[str, int], float] = {}
        self._cpu: dict[tuple[str, int], float] = {}
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._look, daemon=True)

    def __enter__(self) -> Watch:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join()

    def most_mb(self, what: str) -> float:
        return max((mb for (kind, _), mb in self._most.items() if kind == what), default=float("nan"))

    def cpu_s(self, what: str) -> float:
        return sum(spent for (kind, _), spent in self._cpu.items() if kind == what)

    def _look(self) -> None:
        while not self._over.wait(LOOK_S):
            for child in psutil.Process().children(recursive=True):
                try:
                    what = kind(child.cmdline())
                    used, times = child.memory_info().rss / 1e6, child.cpu_times()
                except psutil.Error:  # it has ended meanwhile
                    continue
                key = (what, child.pid)
                self._most[key] = max(self._most.get(key, 0.0), used)
                self._cpu[key] = times.user + times.system


def kind(command: list[str]) -> str:
    """What a process is, by its command line."""
    if any("saqkit.worker.process" in part for part in command):
        return "worker"
    return "broker" if any("redis-server" in part or "valkey-server" in part for part in command) else "other"


async def measured(users: int, arguments: argparse.Namespace, topology: Topology) -> tuple[Run, Watch]:
    """One run, and what was seen of its processes meanwhile."""
    with Watch() as watch:
        run = await saqkit.measure(topology, users=users, workers=arguments.workers, concurrency=arguments.slots)
    done = int(run.attempts.loc[run.attempts["job_type"] == "notify", "users_done"].sum())
    if done != users:
        raise SystemExit(f"{done:,} of {users:,} users were served")
    return run, watch


async def climb(sizes: list[int], arguments: argparse.Namespace, topology: Topology) -> dict[int, list[Run]]:
    """Measure all sizes, a round after the other."""
    found: dict[int, list[tuple[Run, Watch]]] = {users: [] for users in sizes}
    for number in range(arguments.rounds):
        for users in sizes:
            run, watch = await measured(users, arguments, topology)
            found[users].append((run, watch))
            took_s = run.measures()["makespan_s"]
            print(f"  round {number + 1}: {users:,} users in {took_s:.1f} s{' (disturbed)' if run.disturbed else ''}")
    rows = []
    for users, pairs in found.items():
        rates = [users / run.measures()["makespan_s"] for run, _ in pairs]
        row = {"users": f"{users:,}", "users/s": round(statistics.median(rates)),
               "range": f"{min(rates):,.0f} - {max(rates):,.0f}"}  # fmt: skip
        for what in ("worker", "broker"):
            row[f"{what}, most MB"] = round(statistics.median(watch.most_mb(what) for _, watch in pairs), 1)
            row[f"{what}, CPU µs a user"] = round(1e6 * statistics.median(w.cpu_s(what) for _, w in pairs) / users)
        rows.append(row)
    print("\n" + pd.DataFrame(rows).to_string(index=False))
    return {users: [run for run, _ in pairs] for users, pairs in found.items()}


def explain(runs: dict[int, list[Run]], arguments: argparse.Namespace, topology: Topology) -> None:
    """What the model says of the largest size, calibrated on the runs of the smallest."""
    small, large = min(runs), max(runs)
    profile = sim.calibrate(runs[small])
    how: dict[str, Any] = {"workers": arguments.workers, "concurrency": arguments.slots, "replications": 3}
    found = sim.predict(topology, users=large, profile=profile, keep="summary", bottlenecks=True, progress=False, **how)
    (one,) = found
    took = one.measures["makespan_s"]
    real_s = statistics.median(run.measures()["makespan_s"] for run in runs[large])
    print(f"\nmodel, calibrated on {small:,} users: {large:,} in {took['mean']:.1f} s "
          f"({large / took['mean']:,.0f} users/s); measured {real_s:.1f} s")  # fmt: skip
    busy = ", ".join(f"{part} {share:.0%}" for part, share in one.utilisation.items())
    print(f"its bottleneck: {one.bottlenecks[0]}, then {', '.join(one.bottlenecks[1:]) or 'nothing'}; busy: {busy}")


async def waiting(users: int, topology: Topology) -> float:
    """MB of the broker's memory while all batches of `users` wait: the fan-out is over, and none is taken."""
    setting = 'queues.notifications.rate_limit={limit=1, period_s=3600, unit="jobs"}'
    held = override(topology, [parse_assignment(setting)])
    broker = PrivateBroker()
    with tempfile.TemporaryDirectory(prefix="saqkit-") as folder:
        database = f"sqlite:///{folder}/data.db"
        url = (await asyncio.to_thread(broker.start)).url
        queues = build_queues(held, url)
        queue = queues["notifications"]
        environment = {**os.environ, "REDIS_URL": url, "SAQKIT_DATABASE_URL": database}
        command = [sys.executable, "-m", "saqkit", "worker", held.name, "--set", setting, "--statistics", "0"]
        try:
            async with await Store.open(database) as store:
                await store.add_numbered_users(users)
                before = (await queue.redis.info("memory"))["used_memory"]
                worker = subprocess.Popen(command, env=environment, stdout=subprocess.DEVNULL)
                event = await Announcer(held, store, queues).announce(title="Sports day")
                while not (await store.progress(event.event)).fan_out_finished:
                    await asyncio.sleep(0.2)
                worker.terminate()
                worker.wait()
                jobs = await queue.count("queued")
                if jobs < users // 100:
                    raise SystemExit(f"{jobs:,} jobs wait, not {users // 100:,}")
                return float((await queue.redis.info("memory"))["used_memory"] - before) / 1e6
        finally:
            await queue.disconnect()
            await asyncio.to_thread(broker.stop)


async def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--users", default="1000,10000,100000", help="numbers of users, by commas")
    parser.add_argument("--rounds", type=int, default=3, help="runs of each (default 3)")
    parser.add_argument("--workers", type=int, default=2, help="worker processes (default 2)")
    parser.add_argument("--slots", type=int, default=5, help="slots of each (default 5)")
    arguments = parser.parse_args()
    sizes = sorted(int(text) for text in arguments.users.split(","))
    bare = override(saqkit.load("school-events"), BARE)
    explain(await climb(sizes, arguments, bare), arguments, bare)
    print(f"\nthe broker's memory for {sizes[-1]:,} waiting users: {await waiting(sizes[-1], bare):.2f} MB")


if __name__ == "__main__":
    asyncio.run(main())
