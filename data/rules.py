"""Records `runs/rules/*.parquet`: what decides which job is next, one rule at a time, in real runs of some twenty jobs.

`python data/rules.py` (a minute and a half) serves the same letters of two schools, or of two levels, with each rule on
and without. Every letter takes half a second, and the two slots of the one worker begin a quarter of a second apart. So
no two letters end at the same time, and the order in which they end is the rule's alone.
"""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import saqkit
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload

RUNS = Path(__file__).parent / "runs" / "rules"
LETTER_S, APART_S, LATER_S = 0.5, 0.25, 0.875
LEVELS: tuple[dict[str, Any], ...] = ({"priority": "low"}, {"priority": "critical"})
TENANTS: tuple[dict[str, Any], ...] = ({"tenant": "big"}, {"tenant": "small"})
WEIGHTS = {"critical": 2, "high": 1, "normal": 1, "low": 1}

# file: whose letters, how many of the first and of those who come later, and the rule of the queue
RULES: dict[str, tuple[tuple[dict[str, Any], ...], tuple[int, int], dict[str, Any]]] = {
    "strict": (LEVELS, (9, 9), {}),
    "weighted": (LEVELS, (9, 9), {"weights": WEIGHTS}),
    "first-in-first-out": (TENANTS, (14, 4), {}),
    "turns": (TENANTS, (14, 4), {"fairness": "tenants"}),
    "tenant-limit": (TENANTS, (14, 4), {"tenant_rate_limit": {"limit": 3, "period_s": 1.5}}),
    "running-limit": (TENANTS, (14, 4), {"running_limits": [{"key": "tenant", "limit": 1}]}),
}


def described(name: str) -> tuple[Topology, Workload]:
    """The topology and the workload of one of `RULES`."""
    (first, later), (many, few), rule = RULES[name]
    topology = {
        "name": name,
        "entry": [{"topic": "first", "share": 0.5, **first}, {"topic": "later", "share": 0.5, **later}],
        "topics": {"first": {"starts": ["letter"]}, "later": {"starts": ["letter"]}},
        "queues": {"post": {"concurrency": 2, **rule}},
        "job_types": {"letter": {"queue": "post", "per_user": {"provider": "carrier", "database": "none"}}},
        "providers": {"carrier": {"latency": {"kind": "constant", "mean_s": LETTER_S}}},
    }
    arrivals = {
        "kind": "recorded",
        "at_s": [0.0, APART_S, LATER_S],
        "users": [1, many - 1, few],
        "entries": ["first", "first", "later"],
    }
    return Topology.parse(topology, name), Workload.parse({"arrivals": arrivals}, name)


async def record() -> None:
    """Measure each of `RULES` and save the run."""
    RUNS.mkdir(exist_ok=True)
    probe = await saqkit.probe()
    for name in RULES:
        topology, workload = described(name)
        run = await saqkit.measure(topology, workload=workload, workers=1, probe=probe, out=RUNS / f"{name}.parquet")
        print(name, run)


if __name__ == "__main__":
    asyncio.run(record())
