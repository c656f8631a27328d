"""A real run: start workers, wait until they are ready, fire the workload, drain, collect; and leave nothing behind."""

from __future__ import annotations

import asyncio
import contextlib
import importlib.metadata
import json
import os
import platform
import socket
import tempfile
import time
import uuid
from collections.abc import AsyncIterator, Callable
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import pandas as pd
from redis.asyncio import Redis

from saqkit import broker
from saqkit.app.announcing import Announcer
from saqkit.app.audience import Audience
from saqkit.app.store import Store
from saqkit.disturbance import OtherLoad
from saqkit.errors import DescriptionError, RunError
from saqkit.probing_host import probe as probe_host
from saqkit.probing_host import yardstick
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.deployment import Deployment
from saqkit.spec.probing import Probe
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import BrokerRestart, KillWorker, ProviderOutage, Workload
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.recording import attempts_of, epochs, steps_of, users_of_lost

OTHER_LOAD_LIMIT = 0.10
"""A run is marked as disturbed when other processes used more than this share of the host's cores meanwhile."""
YARDSTICK_LIMIT = 0.15
"""... or when the host's speed after the run differs by more than this from that before."""
STALLED_S = 60.0
STEPS = 9_000

Progress = Callable[[int, int, str], None]
"""Called with (users served so far, users in all, what is going on)."""


async def measure(
    topology: Topology | str | Path,
    *,
    users: int | None = None,
    workload: Workload | None = None,
    workers: int | None = None,
    concurrency: int | dict[str, int] | None = None,
    batch_size: int | None = None,
    deployment: Deployment | None = None,
    seed: int = 0,
    redis: str | None = None,
    probe: Probe | None = None,
    out: str | Path | None = None,
    progress: Progress | None = None,
) -> Run:
    """Run a topology for real and return what happened, drained.

    `users=N` is short for a workload that is one burst of N users. `workers` processes on this host (default 1) with
    `concurrency` slots each (default: the topology's own), or a whole `deployment`. The broker is a private one unless
    `redis` names one: then the run uses keys of its own there and removes them. The database is a private SQLite file.
    `probe`: the host's probe if it was taken just now; otherwise it is taken first (3 s). `out`: also save the run there.

    Raises `DescriptionError` for a wrong description, `RunError` if the run cannot be carried out. No process, key or
    file is left behind, also after an error or Ctrl-C.
    """
    described = topology if isinstance(topology, Topology) else load(topology)
    if batch_size is not None:
        described = described.with_batch_size(batch_size)
    where = _deployment(deployment, workers, concurrency)
    where.check(described)
    what = _workload(workload, users)
    what.check(described, where)
    if redis and any(isinstance(fault, BrokerRestart) for fault in what.faults):
        raise DescriptionError("a broker_restart needs the private broker, not one that others may use", key="faults")
    target = _writable(out) if out is not None else None
    run = _Measurement(described, where, what, seed, redis, progress or (lambda *_: None))
    result = await run.carry_out(probe)
    if target is not None:
        result.save(target)
    return result


def _deployment(
    deployment: Deployment | None, workers: int | None, concurrency: int | dict[str, int] | None
) -> Deployment:
    data = (deployment or Deployment()).to_dict()
    if workers is not None:
        data["workers"] = workers
    if concurrency is not None:
        data["concurrency"] = concurrency
    result = Deployment.parse(data, "deployment")
    if result.hosts > 1:
        raise DescriptionError(f"a run on {result.hosts} hosts cannot be measured from here", key="deployment.hosts",
                               value=result.hosts, hint="measure one host, predict several")  # fmt: skip
    return result


def _workload(workload: Workload | None, users: int | None) -> Workload:
    if (workload is None) == (users is None):
        raise DescriptionError("give either users or a workload", key="workload")
    return workload if workload is not None else Workload.burst(users)  # type: ignore[arg-type]


def _writable(path: str | Path) -> Path:
    target = Path(path)
    if not target.absolute().parent.is_dir() or target.is_dir():
        raise RunError(f"{target}: the run cannot be saved there; give a file in a folder that exists")
    return target


class _Measurement:
    def __init__(
        self,
        topology: Topology,
        deployment: Deployment,
        workload: Workload,
        seed: int,
        redis: str | None,
        progress: Progress,
    ) -> None:
        self.topology, self.deployment, self.workload = topology, deployment, workload
        self.seed, self.redis, self.progress = seed, redis, progress
        self.events = list(workload.events(topology, seed))
        self.users = sum(event.users for event in self.events)
        self.name = f"run-{uuid.uuid4().hex[:8]}"
        self.prefix = f"saqkit-{self.name}."
        self.folder = Path()
        self.private: broker.PrivateBroker | None = None

    async def carry_out(self, probe: Probe | None) -> Run:
        async with contextlib.AsyncExitStack() as stack:
            self.folder = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="saqkit-")))
            url = await stack.enter_async_context(self._broker())
            server = await asyncio.to_thread(broker.check, url)
            self.progress(0, self.users, "probing the host")
            found = probe or await probe_host(url)
            database = f"sqlite:///{self.folder / 'run.db'}"
            store = await stack.enter_async_context(await Store.open(database))
            await store.add_numbered_users(max((event.users for event in self.events), default=1))
            queues = build_queues(self.topology, url, seed=self.seed, prefix=self.prefix)
            stack.push_async_callback(self._disconnect, queues)
            for queue in queues.values():
                await queue.redis.set(queue.namespace("recording"), 1)
            self.progress(0, self.users, "starting the workers")
            launcher = Launcher(self._configurations(url, database), self.folder)
            stack.push_async_callback(launcher.stop, 5.0)
            await launcher.start()
            await launcher.ready()
            speed = await asyncio.to_thread(yardstick)
            others = OtherLoad([server["pid"]] if server.get("pid") else [])
            start = await self._fire(store, queues, launcher)
            share = others.share()
            ready = [_read(launcher.report(n, "ready")) for n in range(len(launcher.processes))]
            pids = [process.pid for process in launcher.processes]
            self.progress(self.users, self.users, "collecting")
            await launcher.stop()
            workers = self._workers(launcher, pids, ready, start)
            rows = [
                (queue.name, row)
                for queue in queues.values()
                for row in await queue.redis.lrange(queue.namespace("trace"), 0, -1)  # type: ignore[misc]
            ]
            attempts = attempts_of(rows, self.name, self.prefix)
            await _credit_lost(attempts, users_of_lost(rows), store, min(epochs(rows)))
            steps = steps_of(self.folder)
            drift = await asyncio.to_thread(yardstick) / speed - 1
        disturbed = []
        if share > OTHER_LOAD_LIMIT:
            disturbed.append(f"other processes used {share:.0%} of the cores")
        if abs(drift) > YARDSTICK_LIMIT:
            disturbed.append(f"the host became {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} during the run")
        return Run(
            topology=self.topology,
            deployment=self.deployment,
            workload=self.workload,
            seed=self.seed,
            attempts=attempts,
            steps=steps,
            probe=found.to_dict(),
            workers=workers,
            facts=_facts(server)
            | {"other_load": round(share, 4), "yardstick": speed, "yardstick_drift": round(drift, 4)},
            disturbed=tuple(disturbed),
            name=self.name,
        )

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[str]:
        if self.redis:
            yield self.redis
            return
        self.private = broker.PrivateBroker()
        try:
            yield (await asyncio.to_thread(self.private.start)).url
        finally:
            await asyncio.to_thread(self.private.stop)

    def _configurations(self, url: str, database: str) -> list[Configuration]:
        every = max(1, round(2 * self.users / STEPS))
        return [
            Configuration(
                topology=self.topology.to_dict(),
                broker=url,
                database=database,
                slots={queue: self.deployment.slots(self.topology, queue) for queue in queues},
                name=f"worker-{number}",
                seed=self.seed,
                prefix=self.prefix,
                folder=str(self.folder),
                sample_every=every,
            )
            for number, queues in enumerate(self.deployment.processes(self.topology))
        ]

    async def _fire(self, store: Store, queues: dict[str, Queue], launcher: Launcher) -> float:
        """Announce every event at its time and carry the faults out; returns the time of the first event, drained."""
        announcer = Announcer(self.topology, store, queues)
        start = time.time()
        faults = asyncio.create_task(self._faults(launcher, start), name="faults")
        try:
            for event in self.events:
                if (pause_s := start + event.at_s - time.time()) > 0:
                    await self._watched(asyncio.sleep(pause_s), faults, launcher)
                await announcer.announce(
                    title=f"Event {event.event}",
                    entry=event.entry,
                    audience=Audience(first_n=event.users),
                    patience_s=5,
                )
            await self._watched(self._drain(store, queues, launcher), faults, launcher)
            if not faults.done():
                faults.cancel()
        finally:
            faults.cancel()
            await asyncio.wait([faults])
        return start

    async def _watched(self, work: Any, faults: asyncio.Task[None], launcher: Launcher) -> None:
        task = asyncio.ensure_future(work)
        try:
            await asyncio.wait({task, faults}, return_when=asyncio.FIRST_COMPLETED)
            if faults.done() and not faults.cancelled() and faults.exception():
                raise RunError(f"a fault could not be carried out: {faults.exception()}") from faults.exception()
            await task
        finally:
            task.cancel()

    async def _faults(self, launcher: Launcher, start: float) -> None:
        outages: dict[str, list[tuple[float, float]]] = {}
        for fault in self.workload.faults:
            if isinstance(fault, ProviderOutage):
                begins = start + fault.at_s
                outages.setdefault(fault.provider, []).append((begins, begins + fault.duration_s))
        if outages:
            part = self.folder / "outages.part"
            part.write_text(json.dumps(outages), encoding="utf-8")
            part.rename(self.folder / "outages.json")
        for fault in sorted(self.workload.faults, key=lambda fault: fault.at_s):
            await asyncio.sleep(max(0.0, start + fault.at_s - time.time()))
            if isinstance(fault, KillWorker):
                launcher.kill(fault.worker)
            elif isinstance(fault, BrokerRestart) and self.private is not None:
                await asyncio.to_thread(self.private.restart, fault.down_s)

    async def _drain(self, store: Store, queues: dict[str, Queue], launcher: Launcher) -> None:
        """Wait until no event is undelivered and no job is queued, delayed or active."""
        seen, seen_on = -1, time.monotonic()
        longest = max(job.timeout_s for job in self.topology.job_types.values())
        while True:
            await asyncio.sleep(0.05)
            try:
                left, ended, delayed = await _counts(queues)
            except AWAY:
                continue
            if left == 0 and not await store.undelivered(1):
                if sum((await _counts(queues))[:1]) == 0:
                    return
                continue
            if ended != seen or delayed:
                seen, seen_on = ended, time.monotonic()
                self.progress(await self._served(store), self.users, "running")
            elif time.monotonic() - seen_on > STALLED_S + longest:
                words = "; ".join(launcher.last_words(n) for n in range(len(launcher.processes)))
                raise RunError(
                    f"nothing moved for {STALLED_S + longest:.0f} s, {left} jobs are left; workers say: {words}"
                )

    async def _served(self, store: Store) -> int:
        return sum([(p := await store.progress(event.event)).sent + p.failed for event in self.events[:10]])

    def _workers(
        self, launcher: Launcher, pids: list[int], ready: list[dict[str, Any]], start: float
    ) -> tuple[dict[str, Any], ...]:
        workers = []
        for config, pid, first in zip(launcher.configurations, pids, ready, strict=True):
            path = self.folder / f"{config.name}.{pid}.done"
            done = _read(path if path.exists() else None)
            workers.append({"worker": config.name, "host": socket.gethostname(), "pid": pid,
                            "ready_at": first.get("ready_at", start) - start, "cpu_s": done.get("cpu_s", 0.0),
                            "jobs": done.get("jobs", 0),
                            "clock_offset_s": done.get("clock_offset_s", 0.0)})  # fmt: skip
        return tuple(workers)

    async def _disconnect(self, queues: dict[str, Queue]) -> None:
        for queue in queues.values():
            if self.redis:
                await _remove(queue.redis, queue.namespace("*"), queue.key_of("*"))
            await queue.disconnect()


def _read(path: Path | None) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}


async def _counts(queues: dict[str, Queue]) -> tuple[int, int, int]:
    """(jobs that are not ended, attempts that are, delayed jobs), of one moment."""
    redis = next(iter(queues.values())).redis
    names = [f"queued:{level}" for level in range(1, 5)] + ["leases", "scheduled"]
    async with redis.pipeline(transaction=True) as pipe:
        for queue in queues.values():
            for name in names:
                pipe.zcard(queue.namespace(name))
            pipe.llen(queue.namespace("trace"))
        found = await pipe.execute()
    width = len(names) + 1
    each = [found[n : n + width] for n in range(0, len(found), width)]
    return sum(sum(row[:-1]) for row in each), sum(row[-1] for row in each), sum(row[-2] for row in each)


async def _remove(redis: Redis, *patterns: str) -> None:
    with contextlib.suppress(*AWAY):
        for pattern in patterns:
            async for key in redis.scan_iter(match=pattern, count=1000):
                await redis.delete(key)


async def _credit_lost(attempts: pd.DataFrame, users: dict[str, list[int]], store: Store, start: float) -> None:
    """Whom an attempt served before its worker died: the ledger knows, the worker could no longer say."""
    for index, row in attempts[attempts["outcome"] == "lost"].iterrows():
        if whom := users.get(row["job"]):
            before, sent, failed = await store.ended_between(
                int(row["event"]), whom, start + row["taken_at"], start + row["finished_at"]
            )
            attempts.loc[index, ["users", "users_done", "users_failed"]] = (len(whom) - before, sent, failed)


def _facts(server: dict[str, Any]) -> dict[str, Any]:
    packages = ("saqkit", "saq", "redis", "sqlalchemy", "pandas")
    return {
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "broker": f"{server['name']} {server['version']}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {name: importlib.metadata.version(name) for name in packages},
    }
