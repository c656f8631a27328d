"""Does the model play stock SAQ as it is? `python benchmarks/stock_predicted.py [--only makespan,retries,recovery]`

Stock SAQ runs a simple workload: real processes on a private server, really killed. The model predicts the same run
with `sim.engine.stock`, and both stand side by side. Jobs sleep, and fail by the same draws in both. The model is told
how long the workers have been up at the first job, because that decides when they poll and sweep. About four minutes.

- `makespan`: 200 jobs of 0.5 s and 400 of 50 ms, 2 workers of 10 slots; of three runs the shortest, because whatever
  else runs on the host only adds.
- `retries`: 120 jobs, 5 a second, of which half of the executions fail, `retries=3`, `retry_delay=1`: how late.
- `recovery`: one of 2 workers is killed with all its slots busy and replaced: when its jobs are back, how many are
  lost, and, where others wait and run meanwhile, how many jobs that were done are done again.
- `costs`: the CPU of a stock job as multiples of the probe's round trip: the constants of `sim/engine/stock.py`.
"""

from __future__ import annotations

import argparse
import asyncio
import logging
import multiprocessing
import os
import tempfile
import time
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from multiprocessing.process import BaseProcess
from pathlib import Path
from statistics import fmean, median
from typing import Any

import pandas as pd
import saq.worker
from redis.asyncio import Redis
from saq.job import Job
from saq.queue.redis import RedisQueue

from saqkit.broker import private
from saqkit.probing_host import probe
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.probing import Probe
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.engine.stock import StockModel
from sim.fit.profile import Estimate, Profile

SEED, RESTART_S = 5, 0.7
Row = dict[str, Any]


@dataclass(frozen=True)
class Case:
    """A workload: a job of `sleep_s` at each of the times, of whose executions `share` fail."""

    at_s: tuple[float, ...]
    sleep_s: float
    share: float = 0.0
    retries: int = 3
    slots: int = 10
    timeout_s: int = 10
    kill_s: float | None = None
    workers: int = 2

    @property
    def same(self) -> bool:
        """Whether all jobs come at once: one event of many users, else events of one user each."""
        return len(set(self.at_s)) == 1


# The real run


async def work(ctx: dict[str, Any], *, event: int, user: int, sleep_s: float, share: float, results: str) -> None:
    """Sleep, and fail by the draw that the model makes; both ends are written down."""
    attempt = ctx["job"].attempts
    _write(results, "began", event, user, attempt)
    await asyncio.sleep(sleep_s)
    _write(results, "ended", event, user, attempt)
    if uniform(SEED, Stream.TEMPORARY, event, user, attempt) < share:
        raise RuntimeError("a temporary failure")


def _write(results: str, *what: object) -> None:
    file = os.open(results, os.O_WRONLY | os.O_APPEND | os.O_CREAT)
    os.write(file, f"{' '.join(map(str, what))} {time.monotonic()} {os.getpid()}\n".encode())
    os.close(file)


def queue_at(url: str) -> RedisQueue:
    """A stock queue with every default."""
    return RedisQueue(Redis.from_url(url), name="q")


def serve(url: str, slots: int) -> None:
    """One worker process."""
    logging.basicConfig(level=logging.CRITICAL)
    asyncio.run(saq.worker.Worker(queue_at(url), [work], concurrency=slots).start())


async def real(case: Case) -> tuple[pd.DataFrame, float, int]:
    """A run: when each execution began and ended, seconds since the first job; how long the workers had been up; how
    many jobs are aborted at the end.
    """
    start = multiprocessing.get_context("forkserver").Process
    with private() as server, tempfile.TemporaryDirectory() as folder:
        results, queue = str(Path(folder, "results")), queue_at(server.url)
        launch: Callable[[], BaseProcess] = partial(start, target=serve, args=(server.url, case.slots), daemon=True)
        crew = [launch() for _ in range(case.workers)]
        for process in crew:
            process.start()
        while await queue.redis.zcard("saq:q:stats") < case.workers:
            await asyncio.sleep(0.01)
        await asyncio.sleep(1.0)  # every slot is blocked, and nobody starts up any more
        up_s = 60 - await queue.redis.pttl("saq:q:sweep") / 1e3
        began = time.monotonic()

        async def enqueue() -> None:
            for n, due_s in enumerate(case.at_s):
                if (wait_s := began + due_s - time.monotonic()) > 0:
                    await asyncio.sleep(wait_s)
                event, user = (1, n + 1) if case.same else (n + 1, 1)
                draw = {"event": event, "user": user, "share": case.share}
                kwargs = {**draw, "sleep_s": case.sleep_s, "results": results}
                job = Job("work", key=str(n), kwargs=kwargs, retries=case.retries, retry_delay=1.0, ttl=0)
                job.timeout = case.timeout_s
                await queue.enqueue(job)

        enqueuing = asyncio.create_task(enqueue())
        if case.kill_s is not None:
            await asyncio.sleep(began + case.kill_s - time.monotonic())
            crew[1].kill()
            crew[1] = launch()
            crew[1].start()
        await enqueuing
        keys = [str(n) for n in range(len(case.at_s))]
        while not all(job and job.completed for job in await queue.jobs(keys)):
            await asyncio.sleep(0.05)
        aborted = sum(job is not None and job.status == "aborted" for job in await queue.jobs(keys))
        for process in crew:
            process.kill()
        await queue.disconnect()
        lines = [line.split() for line in Path(results).read_text(encoding="utf-8").splitlines()]
    found: dict[tuple[int, ...], dict[str, float]] = {}
    for what, event, user, attempt, at, _ in lines:
        found.setdefault((int(event), int(user), int(attempt)), {})[what] = float(at) - began
    frame = pd.DataFrame([{"event": k[0], "user": k[1], "attempt": k[2], **v} for k, v in found.items()])
    return frame, up_s, aborted


# The model's run


def predicted(probed: Probe, case: Case, up_s: float) -> tuple[pd.DataFrame, int]:
    """The same, and how many jobs were lost for good."""
    topology = Topology.parse({
        "name": "stock",
        "entry": [{"job_type": "work"}],
        "queues": {"q": {"concurrency": case.slots}},
        "job_types": {"work": {
            "queue": "q", "timeout_s": case.timeout_s, "per_user": {"provider": "sleep", "database": "none"},
            "retry": {"max_attempts": case.retries, "backoff": "fixed", "delay_s": 1.0},
        }},
        "providers": {"sleep": {
            "latency": {"kind": "constant", "mean_s": case.sleep_s}, "temporary_share": case.share,
        }},
    })  # fmt: skip
    faults = [] if case.kill_s is None else [{"kind": "kill_worker", "at_s": case.kill_s, "worker": 1}]
    burst, recorded = {"kind": "burst", "users": len(case.at_s)}, {"kind": "recorded", "at_s": case.at_s}
    workload = Workload.parse({"arrivals": burst if case.same else recorded, "faults": faults})
    costs = profile(probed).costs(topology)
    outcome = StockModel(topology, Deployment(workers=case.workers), workload, costs, SEED, up_s=up_s).run()
    table = outcome.attempts()
    frame = pd.DataFrame({
        "event": table["event"].astype(int),
        "user": table["job"].str.rsplit("-", n=1).str[1].astype(int),
        "attempt": table["attempt"],
        "began": table["started_at"],
        "ended": table["finished_at"].where(table["outcome"] != "lost"),
    })  # fmt: skip
    given_up = (table["outcome"] == "lost") & (table["users_failed"] > 0)
    return frame, int(given_up.sum())


def profile(probed: Probe) -> Profile:
    """A host as the probe found it, whose application does nothing but wait."""
    nominal, none = Profile.nominal(), Estimate(value=0.0)
    wire_s = max(0.0, probed.broker_round_trip_s - probed.client_cpu_s - probed.broker_cpu_s)
    found = {
        "client_cpu_s": probed.client_cpu_s,
        "broker_cpu_s": probed.broker_cpu_s,
        "broker_wire_s": wire_s,
        "timer_overshoot_s": probed.timer_overshoot_s,
        "announce_s": 0.0,
        "restart_s": RESTART_S,
    }
    host = {name: Estimate(value=value) for name, value in found.items()}
    idle = {
        name: kind.model_copy(update=dict.fromkeys((n for n, v in kind if isinstance(v, Estimate)), none))
        for name, kind in nominal.job_types.items()
    }
    changed = nominal.host.model_copy(update={**host, "timer_resolution_s": probed.timer_resolution_s})
    return nominal.model_copy(update={"host": changed, "job_types": idle})


# The parts


def lateness(frame: pd.DataFrame) -> list[float]:
    """How much later than its delay of a second each retry began."""
    pairs = [pairwise(rows.sort_values("attempt").itertuples()) for _, rows in frame.groupby(["event", "user"])]
    # pandas types the fields of its row tuples as anything that a cell may hold; these are numbers.
    return [float(b.began - a.ended - 1.0) for pair in pairs for a, b in pair]  # type: ignore[arg-type, operator]  # see above


async def makespan(probed: Probe) -> list[Row]:
    """More jobs than slots; of three runs the shortest."""
    rows = []
    for jobs, sleep_s, share in ((200, 0.5, 0.0), (200, 0.5, 0.05), (400, 0.05, 0.0)):
        case, runs = Case((0.0,) * jobs, sleep_s, share), []
        for _ in range(3):
            measured, up_s, _ = await real(case)
            runs.append((float(measured["ended"].max()), up_s))
        measured_s, up_s = min(runs)
        model, _ = predicted(probed, case, up_s)
        what = f"{jobs} jobs of {sleep_s * 1e3:.0f} ms, {share:.0%} of executions fail: makespan"
        rows.append(_row(what, "s", measured_s, model["ended"].max()))
    return rows


async def retries(probed: Probe) -> list[Row]:
    """Retries wake once a second."""
    case = Case(tuple(n / 5 for n in range(120)), 0.05, 0.5)
    measured, up_s, _ = await real(case)
    model, _ = predicted(probed, case, up_s)
    real_s, model_s = lateness(measured), lateness(model)
    return [
        _row("retries", "", len(real_s), len(model_s)),
        _row("a retry is late by, mean", "s", fmean(real_s), fmean(model_s)),
        _row("a retry is late by, median", "s", median(real_s), median(model_s)),
        _row("a retry is late by, most", "s", max(real_s), max(model_s)),
    ]


async def recovery(probed: Probe) -> list[Row]:
    """One of two workers is killed."""
    cases = [Case((0.0,) * 2 * n, 4.0, retries=tries, slots=n, kill_s=2.0) for n, tries in ((4, 3), (8, 3), (4, 1))]
    busy = Case((0.0,) * 160, 4.0, slots=4, timeout_s=6, kill_s=2.0)
    found = await asyncio.gather(*(_killed(probed, case) for case in (*cases, busy)))
    return [row for rows in found for row in rows]


async def _killed(probed: Probe, case: Case) -> list[Row]:
    measured, up_s, aborted = await real(case)
    model, lost = predicted(probed, case, up_s)
    others = len(case.at_s) - 2 * case.slots
    about = f"{case.slots} jobs, {case.retries} tries" + (f", {others} waiting" if others else "")
    frames = measured, model
    back_s, model_s = (sorted(frame.loc[frame["attempt"] > 1, "began"] - 2.0) for frame in frames)
    done = [int(frame.groupby(["event", "user"])["ended"].count().clip(lower=1).sub(1).sum()) for frame in frames]
    rows = [
        _row(f"{about}: executed again", "", len(back_s), len(model_s)),
        _row(f"{about}: of these, had been done", "", *done),
        _row(f"{about}: aborted", "", aborted, lost),
        _row(f"{about}: makespan", "s", measured["ended"].max(), model["ended"].max()),
    ]
    if back_s:
        rows.append(_row(f"{about}: kill to first execution", "s", back_s[0], model_s[0]))
        rows.append(_row(f"{about}: kill to last execution", "s", back_s[-1], model_s[-1]))
        gaps = [fmean([b - a for a, b in pairwise(found)]) for found in (back_s, model_s)]
        rows.append(_row(f"{about}: from one to the next, mean", "s", *gaps))
    return rows


def _row(what: str, unit: str, measured: float, model: float) -> Row:
    error = (model - measured) / measured if measured else 0.0
    return {
        "what": what,
        "unit": unit,
        "measured": round(measured, 3),
        "predicted": round(model, 3),
        "error": f"{error:+.1%}",
    }


# What a stock job costs


def drain(url: str, slots: int, jobs: int, fails: bool, told: Any) -> None:
    """Run waiting jobs and tell the CPU seconds from the first to the last."""
    logging.basicConfig(level=logging.WARNING, filename=os.devnull)

    async def run() -> None:
        first_s, ran, done = 0.0, 0, asyncio.Event()

        async def work(ctx: dict[str, Any], **_: Any) -> None:
            nonlocal first_s, ran
            first_s = first_s or time.process_time()
            ran += 1
            if ran == jobs * (1 + fails):
                done.set()
            if fails and ctx["job"].attempts == 1:
                raise RuntimeError("fails once")

        working = asyncio.create_task(saq.worker.Worker(queue_at(url), [("work", work)], concurrency=slots).start())
        await done.wait()
        await asyncio.sleep(0.05)  # the last are finished
        told.send(time.process_time() - first_s)
        working.cancel()

    asyncio.run(run())


async def costs(_: Probe, jobs: int = 3000, rounds: int = 3) -> list[Row]:
    """CPU of worker and server per job, and per failed execution, beside a round trip of the probe."""
    context, found = multiprocessing.get_context("forkserver"), dict[str, list[float]]()
    for number in range(rounds):
        with private(aof=False) as server:
            base = await probe(server.url)
            queue, used_s = queue_at(server.url), []
            for fails in (False, True):
                for n in range(jobs):
                    await queue.enqueue(Job("work", key=str(n), kwargs={"user": n}, retries=2))
                before_s = await _server_cpu_s(queue)
                receive, send = context.Pipe(duplex=False)
                context.Process(target=drain, args=(server.url, (10, 100, 30)[number % 3], jobs, fails, send)).start()
                worker_s = await asyncio.to_thread(receive.recv)
                used_s.append((worker_s / jobs, (await _server_cpu_s(queue) - before_s) / jobs))
                await queue.redis.flushall()
            await queue.redis.rpush("line", *map(str, range(10**9, 10**9 + 100_000)))
            before_s = await _server_cpu_s(queue)
            for _ in range(50):
                await queue.redis.lrem("line", 1, "none")
            scan_s = (await _server_cpu_s(queue) - before_s) / 50 / 100_000
            await queue.disconnect()
        (noop_s, server_s), (fail_s, _) = used_s
        for name, value in {
            "TRIP_CPU": noop_s / 6 / base.client_cpu_s,
            "FAILED_CPU": (fail_s - 2 * noop_s) / base.client_cpu_s,
            "TRIP_BROKER_CPU": server_s / 6 / base.broker_cpu_s,
            "SCAN_BROKER_CPU": scan_s / (server_s / 6),
            "worker CPU per job, µs": noop_s * 1e6,
            "server CPU per job, µs": server_s * 1e6,
        }.items():
            found.setdefault(name, []).append(value)
    return [
        {"what": k, "median": f"{median(v):.4g}", "from": f"{min(v):.4g}", "to": f"{max(v):.4g}"}
        for k, v in found.items()
    ]


async def _server_cpu_s(queue: RedisQueue) -> float:
    used = await queue.redis.info("cpu")
    return float(used["used_cpu_user"]) + float(used["used_cpu_sys"])


PARTS: dict[str, Callable[[Probe], Awaitable[list[Row]]]] = {
    "makespan": makespan,
    "retries": retries,
    "recovery": recovery,
    "costs": costs,
}


async def measure(parts: list[str]) -> None:
    """Print a table for each part."""
    probed = await probe()
    for name in parts:
        print(f"\n{name}\n{pd.DataFrame(await PARTS[name](probed)).to_string(index=False)}", flush=True)


def main() -> None:
    """Run what the command line asks for."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parts = parser.parse_args().only.split(",")
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(PARTS)}")
    multiprocessing.set_forkserver_preload(["saq.worker", "saqkit.broker", "sim.engine.stock", "pandas"])
    asyncio.run(measure(parts))


if __name__ == "__main__":
    main()
