"""What `benchmarks/sim.py` measures."""

from __future__ import annotations

import argparse
import os
import platform
import resource
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from itertools import pairwise
from statistics import median
from typing import Any

from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Workload
from sim import predict
from sim.engine.fast.engine import run_fast
from sim.engine.model import Model
from sim.fit.profile import Profile

SIZES = [100, 400, 1_600, 6_400, 25_000, 100_000]
WORKERS, CONCURRENCY = [1, 2, 3, 4, 8], [1, 5, 20, 50]
STREAM = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 150, "duration_s": 100}})


@dataclass(frozen=True)
class Row:
    """A line of the table; `target` is a bound with its direction, e.g. ("≥", 50)."""

    what: str
    value: float
    unit: str
    target: tuple[str, float] | None = None
    note: str = ""

    def __str__(self) -> str:
        wanted, met = "", ""
        if self.target:
            sign, bound = self.target
            wanted = f"{sign} {bound:g}"
            met = "met" if (self.value >= bound if sign == "≥" else self.value <= bound) else "MISSED"
        return f"{self.what:<58} {self.value:>12.4g} {self.unit:<12} {wanted:>8} {met:<7} {self.note}"


def main(doc: str | None) -> int:
    """The command line; returns the exit status."""
    parser = argparse.ArgumentParser(description=doc, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="fewer users, one round")
    parser.add_argument("--only", choices=list(PARTS), help="one part of the table")
    parser.add_argument("--child", nargs=2, metavar=("KIND", "USERS"), help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.child:
        return _child(given.child[0], int(given.child[1]))
    print(f"{platform.machine()}, {os.cpu_count()} cores, Python {platform.python_version()}")
    for name, part in PARTS.items():
        if given.only in (None, name):
            for row in part(given.quick):
                print(row, flush=True)
    return 0


def lab(**changes: Any) -> Topology:
    """The laboratory: one event to all its users, batches of 100."""
    return override(load("data/lab.toml"), {path.replace("__", "."): value for path, value in changes.items()}, "lab")


CASES: dict[str, tuple[Topology, Deployment]] = {
    "2 workers of 5 slots": (lab(), Deployment(workers=2, concurrency=5)),
    "2 workers of 50 slots": (lab(), Deployment(workers=2, concurrency=50)),
    "4 workers of 20 slots, retries": (
        lab(providers__email__temporary_share=0.02, providers__email__permanent_share=0.001),
        Deployment(workers=4, concurrency=20),
    ),
}


def _simulate(engine: str, topology: Topology, deployment: Deployment, workload: Workload) -> tuple[float, int]:
    """CPU seconds and users of one run with its table."""
    costs = Profile.nominal().costs(topology)
    started = time.process_time()
    if engine == "simpy":
        outcome = Model(topology, deployment, workload, costs, 1).run()
    else:
        outcome = run_fast(topology, deployment, workload, costs, 1, compiles=engine == "numba")
    attempts = outcome.attempts()
    return time.process_time() - started, int(attempts["users_done"].sum() + attempts["users_failed"].sum())


def engines(quick: bool) -> Iterator[Row]:
    """Users a second of each engine, and their ratios."""
    sizes = {"simpy": 20_000, "python": 50_000, "numba": 200_000 if quick else 1_000_000}
    runs: dict[str, Callable[[str], tuple[float, int]]] = {
        name: partial(_burst, topology, deployment, sizes) for name, (topology, deployment) in CASES.items()
    }
    single = lab(entry=[{"job_type": "notify"}])
    deployment = Deployment(workers=2, concurrency=10)
    runs["a job per user, 150 a second"] = lambda engine: _simulate(engine, single, deployment, STREAM)
    for name, run in runs.items():
        run("numba")  # compiled, or read from the cache, before it is timed
        found: dict[str, list[float]] = {engine: [] for engine in sizes}
        for _ in range(1 if quick else 3):
            for engine in sizes:
                seconds, users = run(engine)
                found[engine].append(users / seconds)
        batches = "job" not in name
        for engine, least in (("simpy", 0.05e6), ("python", 0.0), ("numba", 3e6)):
            target = ("≥", least) if least and batches else None
            yield Row(f"{name}: {engine}", median(found[engine]), "users/s", target)
        for engine, least in (("python", 4.0), ("numba", 50.0)):
            ratios = [fast / slow for fast, slow in zip(found[engine], found["simpy"], strict=True)]
            spread = f"{min(ratios):.3g} to {max(ratios):.3g}"
            yield Row(f"{name}: {engine} over simpy", median(ratios), "×", ("≥", least) if batches else None, spread)


def _burst(topology: Topology, deployment: Deployment, sizes: dict[str, int], engine: str) -> tuple[float, int]:
    return _simulate(engine, topology, deployment, Workload.burst(sizes[engine]))


def five_million(quick: bool) -> Iterator[Row]:
    """50,000 jobs of 100 users."""
    case = CASES["2 workers of 50 slots"]
    _simulate("numba", *case, Workload.burst(1000))
    took = [_simulate("numba", *case, Workload.burst(5_000_000))[0] for _ in range(1 if quick else 3)]
    yield Row("5,000,000 users in 50,000 jobs", median(took), "s", ("≤", 2.0))


def sweep(quick: bool) -> Iterator[Row]:
    """6 sizes × 5 worker counts × 4 concurrencies, replications stopped by their half-width."""
    _simulate("numba", *CASES["2 workers of 5 slots"], Workload.burst(1000))
    started = time.process_time()
    found = predict(
        lab(), users=SIZES[:4] if quick else SIZES, workers=WORKERS, concurrency=CONCURRENCY, max_replications=30,
        keep="summary", engine="fast", progress=False,
    )  # fmt: skip
    runs = sum(len(cell.outcomes) for cell in found)
    users = sum(len(cell.outcomes) * int(cell.settings["users"]) for cell in found)
    note = f"{len(found)} combinations, {runs:,} runs, {users:,} users"
    yield Row("sweep of users, workers, slots", time.process_time() - started, "s", ("≤", 30.0), note)


def linearity(quick: bool) -> Iterator[Row]:
    """CPU time per user from 10⁴ to 10⁷."""
    each = {}
    for users in (10_000, 100_000, 1_000_000, *([] if quick else [10_000_000])):
        rounds = [_simulate("numba", *CASES["2 workers of 50 slots"], Workload.burst(users))[0] for _ in range(3)]
        each[users] = median(rounds) / users * 1e9
        yield Row(f"of {users:,} users each takes", each[users], "ns")
    steps = [later / before for before, later in pairwise(list(each.values())[1:])]
    yield Row("growth per tenfold from 100,000 on", max(steps), "×", ("≤", 1.25))


def memory(quick: bool) -> Iterator[Row]:
    """Peak resident memory of child processes."""
    few, many = (500_000, 2_000_000) if quick else (1_000_000, 5_000_000)
    for engine in ("numba", "python"):
        if engine == "python":
            few, many = 100_000, 400_000
        bytes_per_user = (_peak(engine, many) - _peak(engine, few)) / (many - few)
        yield Row(f"memory per user, {engine}", bytes_per_user, "bytes", ("≤", 100))
    grown = _peak("summary", 20) - _peak("summary", 5)
    yield Row('15 more runs of 200,000 users, keep="summary"', grown / 1e6, "MB", ("≤", 20))


def compiling(quick: bool) -> Iterator[Row]:
    """The first run of a process, with an empty cache and with a full one."""
    with tempfile.TemporaryDirectory() as folder:
        for what in ("the first run ever, compiling", "the first run of a process, cached"):
            yield Row(what, float(_run_child("compile", 100, NUMBA_CACHE_DIR=folder)), "s")


PARTS: dict[str, Callable[[bool], Iterator[Row]]] = {
    "engines": engines,
    "five_million": five_million,
    "sweep": sweep,
    "linearity": linearity,
    "memory": memory,
    "compiling": compiling,
}


def _peak(kind: str, users: int) -> float:
    return float(_run_child(kind, users)) * 1024


def _run_child(kind: str, users: int, **environment: str) -> str:
    command = [sys.executable, sys.argv[0], "--child", kind, str(users)]
    done = subprocess.run(command, capture_output=True, text=True, check=True, env={**os.environ, **environment})
    return done.stdout.split()[-1]


def _child(kind: str, number: int) -> int:
    started = time.process_time()
    if kind == "summary":
        predict(lab(), users=200_000, concurrency=50, replications=number, keep="summary", engine="fast")
    else:
        engine = "numba" if kind == "compile" else kind
        _simulate(engine, *CASES["2 workers of 50 slots"], Workload.burst(number))
    if kind == "compile":
        print(time.process_time() - started)
    else:
        print(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss)
    return 0
