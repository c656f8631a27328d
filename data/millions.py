"""Simulates what notebook 08 shows of 1 and 10 million users: `millions.csv` and `millions-frontier.csv`.

`python data/millions.py` does both, in a quarter of an hour with numba; `hosts` or `frontier` behind it one of them.
Nothing of it was measured: no run of this kit has more than one host.

- hosts: school-events without its rate limit on 1 to 16 hosts of two cores, with two workers of 400 slots on each:
  until all are served, what holds them up, and how busy each part is;
- frontier: of those and of fewer or other settings, what no cheaper one on as many hosts beats, by `sim.plan`.

Each with the database of the profile, one SQLite writer, and with one that is ten times as quick.
"""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any

import pandas as pd

import saqkit
import sim
from saqkit.spec.overriding import override

DATA = Path(__file__).parent
USERS, HOSTS, QUICKER = (1_000_000, 10_000_000), (1, 2, 4, 8, 16), (1, 10)
WORKERS, SLOTS, CORES, ROUND_TRIP_MS, PRICE = 2, 400, 2, 0.5, 0.05


def profile_with(times: float) -> sim.Profile:
    """The quick start's profile, its database so many times as quick."""
    profile = sim.Profile.load(DATA / "profile-quickstart.json")
    steps = ("open_s", "open_user_s", "flush_s", "flush_user_s", "page_s", "page_user_s")
    costs = {
        f"job_types.{name}.{step}.value": getattr(job, step).value / times
        for name, job in profile.job_types.items()
        for step in steps
    }
    return override(profile, costs)


def deployment_on(hosts: int) -> saqkit.Deployment:
    """So many hosts, which are half a millisecond away from the broker if they are several."""
    round_trip_ms = ROUND_TRIP_MS if hosts > 1 else 0.0
    return saqkit.Deployment(
        hosts=hosts, cores=CORES, workers=WORKERS, concurrency=SLOTS, network_round_trip_ms=round_trip_ms
    )


def topology() -> saqkit.Topology:
    """School-events without its rate limit."""
    return override(saqkit.load("school-events"), {"queues.notifications.rate_limit": "none"})


def simulated(hosts: int, quicker: float, **how: Any) -> sim.Prediction:
    """A run of every number of users, without noise, so that they differ by what was changed and nothing else."""
    told = {"replications": 1, "same_draw": True, "keep": "summary", "progress": False, **how}
    profile = profile_with(quicker)
    return sim.predict(topology(), users=list(USERS), deployment=deployment_on(hosts), profile=profile, **told)


def hosts() -> None:
    """Simulate every number of users on every number of hosts."""
    rows = []
    for quicker in QUICKER:
        for count in HOSTS:
            for cell in simulated(count, quicker):
                first, second = cell.bottlenecks[:2]
                busy = {f"{part} busy": share for part, share in cell.utilisation.items()}
                rows.append({"database": quicker, "hosts": count, "users": cell.settings["users"],
                             "drained_s": cell.measures["makespan_s"]["mean"], "bottleneck": first, "next": second,
                             **busy})  # fmt: skip
                print(rows[-1], flush=True)
    pd.DataFrame(rows).round(4).to_csv(DATA / "millions.csv", index=False)


def frontier() -> None:
    """Plan for a million users on 1 to 8 hosts, and simulate what was found with both numbers of users."""
    tables = []
    for quicker in QUICKER:
        for count in HOSTS[:4]:
            plan = sim.plan(
                topology(),
                users=USERS[0],
                target="drain<=1h",
                profile=profile_with(quicker),
                deployment=deployment_on(count),
                max_workers=WORKERS,
                replications=1,
                price_per_worker_hour=PRICE,
            )
            for row in plan.frontier.to_dict("records"):
                kept = {name: row[name] for name in ("workers", "concurrency", "batch_size")}
                for cell in simulated(count, quicker, **kept):
                    tables.append({"database": quicker, "hosts": count, **kept, "cost_per_hour": row["cost_per_hour"],
                                   "users": cell.settings["users"],
                                   "drained_s": cell.measures["makespan_s"]["mean"]})  # fmt: skip
                    print(tables[-1], flush=True)
    pd.DataFrame(tables).round(4).to_csv(DATA / "millions-frontier.csv", index=False)


if __name__ == "__main__":
    parts = {"hosts": hosts, "frontier": frontier}
    for part in sys.argv[1:] or parts:
        parts[part]()
