"""Short measured runs for tests: a lab whose fields are set by path, and a probe that needs no measuring."""

from __future__ import annotations

from itertools import pairwise
from pathlib import Path
from typing import Any

import pandas as pd

from saqkit import Run, Topology, measure
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.probing import Probe

LAB = Path(__file__).parent.parent / "data" / "lab.toml"

PROBE = Probe(
    cores=2, cpu_scale=1.0, cpu_scale_crowded=1.0, timer_resolution_s=0.001, timer_overshoot_s=0.0001,
    broker_round_trip_s=0.0001, broker_cpu_s=0.00001, client_cpu_s=0.00005, spread=0.01,
    broker="none", host="none", python="none", taken_on="never",
)  # fmt: skip


def lab(**changes: Any) -> Topology:
    """The laboratory with quick leases; `a__b=value` sets `a.b`."""
    data = Topology.from_toml(LAB).to_dict()
    quick = {"queues__notifications__lease_s": 1.0, "queues__notifications__sweep_s": 0.5}
    for path, value in {**quick, **changes}.items():
        *places, name = path.split("__")
        part = data
        for place in places:
            part = part[place]
        part[name] = value
    return Topology.parse(data, "lab")


async def run(topology: Topology, **how: Any) -> Run:
    """`saqkit.measure` without probing the host first; every table that comes back is looked over."""
    measured = await measure(topology, probe=PROBE, **how)
    look_over(measured)
    return measured


def look_over(measured: Run) -> None:
    """What holds for every drained run."""
    rows = measured.attempts
    order = ["queued_at", "ready_at", "taken_at", "started_at", "finished_at"]
    for before, after in pairwise(order):
        assert (rows[before] <= rows[after] + 1e-9).all(), (before, after)
    assert rows["event_at"].min() == 0
    assert (rows["event_at"] <= rows["queued_at"] + 0.005).all()
    assert (rows["users_done"] + rows["users_failed"] <= rows["users"]).all()
    assert rows.groupby(["job", "attempt", "crashes", "outcome"], observed=True).size().max() == 1
    assert (rows[["cpu_s", "provider_s", "database_s"]] >= 0).all().all()
    served = rows[rows["users"] > 0]
    left = served.groupby("job").agg(users=("users", "max"), done=("users_done", "sum"), failed=("users_failed", "sum"))
    assert (left["users"] == left["done"] + left["failed"]).all(), left
    last = rows.sort_values("finished_at").groupby("job")["outcome"].last()
    assert set(last) <= {"done", "dead", "lost"}


def expected(topology: Topology, users: list[int], seed: int, event: int = 1) -> list[tuple[int, int, int, int, str]]:
    """(attempt, users, done, failed, outcome) of every attempt of a batch, as the draws say, on the lab's provider."""
    provider, attempts = topology.providers["email"], topology.job_types["notify"].retry.max_attempts
    rows, left = [], users
    for attempt in range(1, attempts + 1):
        put_off = [u for u in left if uniform(seed, Stream.TEMPORARY, event, u, attempt) < provider.temporary_share]
        tried = [u for u in left if u not in put_off]
        refused = sum(uniform(seed, Stream.PERMANENT, event, u) < provider.permanent_share for u in tried)
        outcome = "done" if not put_off else "retry" if attempt < attempts else "dead"
        failed = refused + (len(put_off) if outcome == "dead" else 0)
        rows.append((attempt, len(left), len(tried) - refused, failed, outcome))
        if outcome != "retry":
            break
        left = put_off
    return rows


def attempts_by_job(rows: pd.DataFrame) -> dict[str, list[tuple[int, int, int, int, str]]]:
    """The same of a measured run, by job."""
    columns = ["attempt", "users", "users_done", "users_failed", "outcome"]
    jobs = rows.sort_values("attempt").groupby("job")
    return {str(key): [tuple(row) for row in part[columns].itertuples(index=False)] for key, part in jobs}
