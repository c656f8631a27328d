"""What each feature of the queue costs where it is used, beside the same jobs on a queue without any."""

from __future__ import annotations

import time
from collections.abc import Iterable
from itertools import islice
from typing import Any

from saq.job import Job

from benchmarks.queue_findings import Findings
from benchmarks.queue_rounds import Bench, crew
from benchmarks.queue_worker import FEATURES, Assignment, queue_of
from saqkit import NewJob, Unique

WHO, NAME, CONCURRENCY, TENANTS = "saqkit worker", "features", 10, 10


async def features(bench: Bench) -> None:
    """Of each feature: jobs enqueued and drained per second, and the server's CPU per job, both together.

    All jobs are alike: of ten tenants, at four priorities, with an argument that may be sealed. The column `stock` is
    our own queue without any feature, in the same round (of unique ids: with `submit_many`, which takes them).
    """
    await _once(bench, "")  # whoever is first pays for the server's memory and for what is loaded once
    for number in range(bench.rounds):
        plain: dict[str, tuple[float, float, float]] = {}
        for feature in ("", "submit_many", *FEATURES):
            try:
                found = await _once(bench, feature)
            except Exception as error:
                bench.failed(WHO, feature or "no feature", error)
                continue
            plain[feature] = found
            bench.say(f"features {number + 1}: {feature or 'none'}: enqueued {found[0]:,.0f}/s, drained "
                      f"{found[1]:,.0f}/s, server {found[2]:.0f} µs a job")  # fmt: skip
            beside = plain.get("submit_many" if feature == "unique ids" else "")
            if feature and beside:
                _note(bench.findings, feature, found, beside)


def _note(findings: Findings, feature: str, found: tuple[float, ...], beside: tuple[float, ...]) -> None:
    what = (("enqueued", "jobs/s"), ("drained", "jobs/s"), ("server CPU", "µs"))
    for (name, unit), value, plain in zip(what, found, beside, strict=True):
        findings.add("features", f"{name}: {feature}", WHO, unit, value, plain)


async def _once(bench: Bench, feature: str) -> tuple[float, float, float]:
    """Jobs enqueued per second, drained per second, and CPU (µs) of the server per job."""
    await bench.flush()
    jobs, queue = bench.jobs, queue_of(WHO, bench.url, NAME, feature)
    async with crew(Assignment(WHO, bench.url, NAME, CONCURRENCY, lot=jobs, feature=feature)) as workers:
        before_s, began = await bench.server_cpu_s(), time.perf_counter()
        await _enqueue(queue, feature, jobs)
        took_s = time.perf_counter() - began
        workers.go()
        await workers.done(jobs)
        (tally,) = await workers.end()
        server_s = await bench.server_cpu_s() - before_s
    await queue.disconnect()
    ((first, last, _),) = tally["lots"]
    return jobs / took_s, (jobs - 1) / (last - first), server_s / jobs * 1e6


async def _enqueue(queue: Any, feature: str, jobs: int) -> None:
    def given(n: int) -> dict[str, Any]:
        return {"kwargs": {"secret": f"what nobody is to read, number {n}"}, "priority": 1 + n % 4}

    if feature in ("submit_many", "unique ids"):
        unique = feature == "unique ids"
        many: Iterable[NewJob] = (
            NewJob("noop", **given(n), unique=Unique(f"id-{n}") if unique else None, properties=_of_tenant(n))
            for n in range(jobs)
        )
        async for told in queue.submit_many(many):
            assert told.accepted
        return
    plain = (Job("noop", **given(n), **_of_tenant(n)) for n in range(jobs))
    if feature == "batch":
        await queue.submit_batch(plain, on_complete="noop")
        return
    while chunk := list(islice(plain, 1000)):
        await queue.enqueue_many(chunk)


def _of_tenant(n: int) -> dict[str, Any]:
    return {"meta": {"tenant": f"t{n % TENANTS}"}}
