"""The command line of `benchmarks/queue.py`."""

from __future__ import annotations

import argparse
import asyncio
import importlib.metadata
import json
import os
import platform
import time
from pathlib import Path

import pandas as pd
from redis import asyncio as aioredis

from benchmarks.queue_draining import drain, flat, peers, two
from benchmarks.queue_features import features
from benchmarks.queue_rounds import Bench
from benchmarks.queue_storing import enqueue, insert, memory
from benchmarks.queue_waiting import connections, idle, latency, retry
from saqkit import broker

PARTS = {
    "drain": drain,
    "enqueue": enqueue,
    "latency": latency,
    "retry": retry,
    "connections": connections,
    "idle": idle,
    "memory": memory,
    "insert": insert,
    "two": two,
    "flat": flat,
    "features": features,
    "peers": peers,
}


def machine(server: broker.Broker) -> str:
    """What the figures were measured on."""
    versions = []
    for name in ("saq", "redis", "hiredis", "uvloop"):
        try:
            versions.append(f"{'redis-py' if name == 'redis' else name} {importlib.metadata.version(name)}")
        except importlib.metadata.PackageNotFoundError:
            versions.append(f"no {name}")
    return (
        f"{platform.platform()}, {os.cpu_count()} cores, Python {platform.python_version()}, {', '.join(versions)}\n"
        f"{server.name} {server.version}, private, on a unix socket, without persistence; workers log from WARNING on"
    )


def load() -> str:
    """The load average, by which a noisy run is recognised."""
    return "load average " + " ".join(f"{number:.2f}" for number in os.getloadavg())


async def measure(server: broker.Broker, bench: Bench, parts: list[str]) -> None:
    """Run the parts."""
    for name in parts:
        bench.say(f"{name} ({time.strftime('%H:%M:%S')}, {load()})")
        await bench.flush()
        try:
            await PARTS[name](bench)
        except Exception as error:  # the other parts are still worth having
            bench.failed("the benchmark", name, error)
    await bench.flush()


def main(description: str | None) -> int:
    """Measure what the command line asks for and print the table."""
    parser = argparse.ArgumentParser(description=description, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, help="rounds of each part (default 5; with --quick 1)")
    parser.add_argument("--jobs", type=int, help="jobs of each drain (default 20,000; with --quick 3,000)")
    parser.add_argument("--only", default=",".join(PARTS), help=f"of {','.join(PARTS)}")
    parser.add_argument("--features", action="store_const", const="features", dest="only", help="--only features")
    parser.add_argument("--quick", action="store_true", help="small numbers: about two minutes")
    parser.add_argument("--json", type=Path, help="write the rows there too, with each round's values")
    given = parser.parse_args()
    parts = [part for part in given.only.split(",") if part]
    if unknown := [part for part in parts if part not in PARTS]:
        parser.error(f"--only {', '.join(unknown)}: there are {', '.join(PARTS)}")
    rounds = given.rounds or (1 if given.quick else 5)
    jobs = given.jobs or (3_000 if given.quick else 20_000)
    if rounds < 1 or jobs < 200:
        parser.error(f"--rounds {rounds} --jobs {jobs}: at least 1 round of 200 jobs")
    with broker.private(aof=False) as server:
        about = machine(server)
        before = load()
        print(f"{about}\nbefore: {before}; {rounds} rounds, {jobs:,} jobs a drain", flush=True)
        redis = aioredis.from_url(server.url, client_name="benchmark")
        bench = Bench(server.url, redis, rounds, jobs, given.quick)
        status = 0
        try:
            asyncio.run(measure(server, bench, parts))
        except KeyboardInterrupt:
            print("interrupted: the rounds so far", flush=True)
            status = 130
    with pd.option_context("display.width", 250):
        print(f"\n{bench.findings.table()}\n\nafter: {load()}")
    for remark in bench.remarks:
        print(f"note: {remark}")
    for failure in bench.failures:
        print(f"FAILED: {failure}")
    if given.json:
        facts = {
            "machine": about,
            "load_before": before,
            "load_after": load(),
            "rounds": rounds,
            "jobs": jobs,
            "failures": bench.failures,
            "remarks": bench.remarks,
            "rows": [finding.row() for finding in bench.findings],
        }
        given.json.write_text(json.dumps(facts, indent=1, ensure_ascii=False), encoding="utf-8")
    return status or (1 if bench.failures else 0)
