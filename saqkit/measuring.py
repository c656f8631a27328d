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
import uuid
from collections.abc import AsyncIterator
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import psutil
from redis.asyncio import Redis

from saqkit import __version__, broker
from saqkit.app.serving import channel_of
from saqkit.app.store import Store
from saqkit.broker_address import info, parse
from saqkit.disturbance import OtherLoad
from saqkit.errors import DescriptionError, RunError
from saqkit.firing import Firing, Progress, in_thread
from saqkit.probing_host import available_cores, yardstick
from saqkit.probing_host import probe as probe_host
from saqkit.queue.building import build_queues
from saqkit.queue.queue import Queue
from saqkit.queue.scripts_of_queue import AWAY
from saqkit.spec.deployment import Deployment
from saqkit.spec.probing import Probe
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import BrokerRestart, Workload
from saqkit.worker.event_loop import loop_name
from saqkit.worker.launcher import Launcher
from saqkit.worker.process import Configuration
from saqkit.worker.recording import attempts_of, credit_lost, steps_of

OTHER_LOAD_LIMIT = 0.10
"""A run is marked as disturbed when other processes used more than this share of the host's cores meanwhile."""
YARDSTICK_LIMIT = 0.15
"""... or when the host's speed after the run differs by more than this from that before."""
STEPS = 9_000
"""So many rows of the steps table are aimed at."""
UNSAID = dict.fromkeys(
    (
        "SAQKIT_SMTP_URL",
        "SAQKIT_SMTP_SENDER",
        "SAQKIT_CHARGES",
        "SAQKIT_REPORTS",
        "SAQKIT_SYNC_URL",
        "SAQKIT_SYNC_TOKEN",
        "FRONTEND_URL",
        "SAQKIT_PAYLOAD_KEYS",
    ),
    "",
)
"""Made-up users get no real email, and what they pay is in no real books."""


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
    `redis` (or the deployment) names one: then the run uses keys of its own there and removes them. The database is a
    private SQLite file. What the environment says of the broker and the application has no effect.
    `probe`: the host's probe if it was taken just now; otherwise it is taken first (3 s). `out`: the run's file.

    Raises `DescriptionError` for a wrong description, `RunError` if the run cannot be carried out. No process, key or
    file is left behind, also after an error or Ctrl-C. If this very process is killed, the workers and the private
    broker end and their files go; what is left then is, with `redis`, the run's keys there and a temporary folder.
    """
    described = topology if isinstance(topology, Topology) else load(topology)
    if batch_size is not None:
        described = described.with_batch_size(batch_size)
    where = _deployment(deployment, workers, concurrency)
    where.check(described)
    what = _workload(workload, users)
    what.check(described, where)
    url = redis or (where.broker if where.broker != "private" else None)
    if url and any(isinstance(fault, BrokerRestart) for fault in what.faults):
        raise DescriptionError("a broker_restart needs the private broker, not one that others may use", key="faults")
    target = _writable(out) if out is not None else None
    run = _Measurement(described, where, what, seed, url, progress or (lambda *_: None))
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
    if result.database != "sqlite":
        raise DescriptionError("a measured run makes users of its own up, in a SQLite file of its own",
                               key="deployment.database", value=result.database, hint='say "sqlite"')  # fmt: skip
    if result.cores is not None and result.cores != (here := available_cores()):
        if result.cores > here:
            raise DescriptionError(f"this host has {here} cores", key="deployment.cores", value=result.cores,
                                   hint="measure fewer, predict more")  # fmt: skip
        if not hasattr(os, "sched_setaffinity"):
            raise DescriptionError("only Linux can keep a run to some of its cores", key="deployment.cores",
                                   value=result.cores, hint="leave it out")  # fmt: skip
    return result


def _workload(workload: Workload | None, users: int | None) -> Workload:
    if workload is not None and users is None:
        return workload
    if users is not None and workload is None:
        return Workload.burst(users)
    raise DescriptionError("give either users or a workload", key="workload")


def _writable(path: str | Path) -> Path:
    target = Path(path)
    if not os.access(target.absolute().parent, os.W_OK) or target.is_dir():
        raise RunError(f"{target}: the run cannot be saved there; give a file in a folder that can be written to")
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
        if not self.events:
            raise DescriptionError(f"brings no users with seed {seed}", key="workload", hint="let it last longer")
        self.users = sum(event.users for event in self.events)
        self.name = f"run-{uuid.uuid4().hex[:8]}"
        self.prefix = f"saqkit-{self.name}."
        self.cores: tuple[int, ...] = ()
        if deployment.cores is not None and deployment.cores < available_cores():
            self.cores = tuple(sorted(os.sched_getaffinity(0))[: deployment.cores])
        self.private: broker.PrivateBroker | None = None
        # The probe, the shipped profiles and whoever predicts take asyncio's own loop; SAQKIT_LOOP asks for another.
        self.loop = loop_name("asyncio")

    async def carry_out(self, probe: Probe | None) -> Run:
        async with contextlib.AsyncExitStack() as stack:
            url, folder = await stack.enter_async_context(self._broker())
            server = await asyncio.to_thread(broker.check, url)
            self.progress(0, self.users, "probing the host")
            found = probe or await probe_host(url)
            database = f"sqlite:///{folder / 'run.db'}"
            store = await stack.enter_async_context(await Store.open(database))
            await store.add_numbered_users(max(event.users for event in self.events))
            queues = build_queues(self.topology, url, seed=self.seed, prefix=self.prefix)
            stack.push_async_callback(self._disconnect, queues)
            for queue in queues.values():
                await queue.redis.set(queue.namespace("recording"), 1)
            self.progress(0, self.users, "starting the workers")
            launcher = Launcher(self._configurations(url, database, folder), folder)
            stack.push_async_callback(launcher.stop, 5.0)
            await launcher.start()
            await launcher.ready()
            speed = await asyncio.to_thread(yardstick)
            others = OtherLoad(await asyncio.to_thread(_server_process, url))
            firing = Firing(self.topology, store, queues, launcher, self.private, self.name, self.progress)
            await firing.carry_out(self.workload, self.events, self.seed)
            share = others.share()
            self.progress(self.users, self.users, "collecting")
            await launcher.stop()
            workers = _workers(launcher, firing.started_at)
            types = self.topology.job_types
            await credit_lost(firing.rows, store, lambda name: channel_of(self.topology, types[name]))
            steps = steps_of(folder)
            drift = await asyncio.to_thread(yardstick) / speed - 1
        disturbed = []
        if share > OTHER_LOAD_LIMIT:
            disturbed.append(f"other processes used {share:.0%} of the cores")
        if abs(drift) > YARDSTICK_LIMIT:
            disturbed.append(f"the host became {abs(drift):.0%} {'slower' if drift > 0 else 'faster'} during the run")
        load = {"other_load": round(share, 4), "yardstick": speed, "yardstick_drift": round(drift, 4)}
        return Run(
            topology=self.topology,
            deployment=self.deployment,
            workload=self.workload,
            seed=self.seed,
            attempts=attempts_of(firing.rows),
            steps=steps,
            probe=found.to_dict(),
            workers=workers,
            facts=_facts(server) | load | {"loop": self.loop},
            disturbed=tuple(disturbed),
            name=self.name,
        )

    @contextlib.asynccontextmanager
    async def _broker(self) -> AsyncIterator[tuple[str, Path]]:
        """The broker's address, and a folder for the run's files, which both go at the end."""
        if self.redis:
            if parse(self.redis).via == "cluster":
                shown = broker.redact(self.redis)
                raise RunError(f"{shown}: a run is measured on one server, and a cluster would spread its queues "
                               "(give redis://, rediss://, unix:// or sentinels)")  # fmt: skip
            with tempfile.TemporaryDirectory(prefix="saqkit-", ignore_cleanup_errors=True) as temporary:
                yield self.redis, Path(temporary)
            return
        self.private = broker.PrivateBroker()
        try:
            server = await in_thread(self.private.start)
            if self.cores:
                psutil.Process(server.pid).cpu_affinity(list(self.cores))
            # Inside the broker's own folder, which its watchdog removes even if this process is killed.
            folder = server.folder / "run"
            folder.mkdir(mode=0o700)
            yield server.url, folder
        finally:
            await in_thread(self.private.stop)

    def _configurations(self, url: str, database: str, folder: Path) -> list[Configuration]:
        rows_per_user = 2 * max(len(self.topology.starts(event.entry)) for event in self.events)
        return [
            Configuration(
                topology=self.topology.to_dict(),
                broker=url,
                database=database,
                slots={queue: self.deployment.slots(self.topology, queue) for queue in queues},
                name=f"worker-{number}",
                seed=self.seed,
                prefix=self.prefix,
                folder=str(folder),
                sample_every=max(1, round(rows_per_user * self.users / STEPS)),
                grace_s=2.0,
                cores=self.cores,
                # Else a relay would join in while the producer is still enqueuing a job for each of many users.
                relay=any(isinstance(fault, BrokerRestart) for fault in self.workload.faults),
                fires=False,  # what arrives is the workload's
                events=False,
                environ=UNSAID,
                loop=self.loop,
            )
            for number, queues in enumerate(self.deployment.processes(self.topology))
        ]

    async def _disconnect(self, queues: dict[str, Queue]) -> None:
        for queue in queues.values():
            if self.redis:
                await _remove(queue.redis, queue.namespace("*"), queue.key_of("*"))
            await queue.disconnect()


def _workers(launcher: Launcher, start: float) -> tuple[dict[str, Any], ...]:
    """What the processes that were there at the end reported; `ready_at` and `stopped_at` are seconds from `start`."""
    workers = []
    for number, (config, process) in enumerate(zip(launcher.configurations, launcher.processes, strict=True)):
        ready, done = _read(launcher.report(number, "ready")), _read(launcher.report(number, "done"))
        workers.append({"worker": config.name, "host": socket.gethostname(), "pid": process.pid,
                        "ready_at": ready.get("ready_at", start) - start, "cpu_s": done.get("cpu_s", 0.0),
                        "loop_cpu_s": done.get("loop_cpu_s"),
                        "stopped_at": done.get("stopped_at", start) - start,
                        "jobs": done.get("jobs", 0), "clock_offset_s": done.get("clock_offset_s", 0.0)})  # fmt: skip
    return tuple(workers)


def _read(path: Path | None) -> dict[str, Any]:
    return dict(json.loads(path.read_text(encoding="utf-8"))) if path else {}


def _server_process(url: str) -> list[int]:
    """The broker's process if it runs on this host: its work is ours, not another's load."""
    parts = parse(url)
    local = parts.scheme == "unix" or parts.hostname in (None, "localhost", "127.0.0.1", "::1")
    return [int(info(url)["process_id"])] if local else []


async def _remove(redis: Redis, *patterns: str) -> None:
    with contextlib.suppress(*AWAY):
        for pattern in patterns:
            found: list[bytes] = []
            async for key in redis.scan_iter(match=pattern, count=1000):
                found.append(key)
                if len(found) == 1000:
                    await redis.delete(*found)
                    found = []
            if found:
                await redis.delete(*found)


def _facts(server: dict[str, Any]) -> dict[str, Any]:
    packages = ("saq", "redis", "sqlalchemy", "pandas")
    versions = {name: importlib.metadata.version(name) for name in packages}
    return {
        "host": socket.gethostname(),
        "cores": os.cpu_count(),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "broker": f"{server['name']} {server['version']}",
        "date": datetime.now(UTC).isoformat(timespec="seconds"),
        "versions": {"saqkit": __version__, **versions},  # it may run from a checkout, not installed
    }
