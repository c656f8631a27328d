"""Runs that the model made itself, with the tables of a measured one: what a calibration must find again."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Workload
from sim.engine.model import Model
from sim.fit.profile import Estimate, Profile

LAB = Path(__file__).parent.parent / "data" / "lab.toml"
OUTSIDE_S = 3e-5  # of a user's 50 µs on the nominal host
PROBE: dict[str, Any] = {
    "cores": 2,
    "cpu_scale": 1.0,
    "cpu_scale_crowded": 1.0,
    "timer_resolution_s": 0.001,
    "timer_overshoot_s": 1e-4,
    "broker_round_trip_s": 2.2e-4,
    "broker_cpu_s": 4e-5,
    "client_cpu_s": 8e-5,
    "spread": 0.02,
    "broker": "valkey 8",
    "host": "nominal",
    "python": "3.11.7",
    "taken_on": "2026-01-01",
}


def lab(**fields: Any) -> Topology:
    """The laboratory, with fields replaced; `__` stands for the dots of a path."""
    from saqkit.spec.overriding import override

    return override(load(LAB), {path.replace("__", "."): value for path, value in fields.items()})


def free_profile(**types: float) -> Profile:
    """A host on which nothing but the described work takes time, and what `types` cost each job."""
    free = Profile.free()
    costs = {name: Estimate(value=value) for name, value in types.items()}
    job_types = {name: job.model_copy(update=costs) for name, job in free.job_types.items()}
    return free.model_copy(update={"job_types": job_types})


def simulated_run(
    profile: Profile, topology: Topology, users: int, workers: int, concurrency: int, seed: int, **changes: Any
) -> Run:
    """What `saqkit.measure` would return on a host that is exactly as `profile` says; `changes` replace its fields."""
    deployment, workload = Deployment(workers=workers, concurrency=concurrency), Workload.burst(users)
    model = Model(topology, deployment, workload, profile.costs(topology), seed)
    attempts = model.run().attempts(run="simulated")
    batches = attempts["job_type"] == "notify"
    # The model charges a user's CPU to the attempt; of a measured attempt the loop's own part of it is not known.
    attempts.loc[batches, "cpu_s"] -= OUTSIDE_S * attempts.loc[batches, "users"]
    steps = []
    for row in attempts[batches].itertuples():
        key = {"job": row.job, "attempt": row.attempt, "waited_s": 0.0}
        steps += [{**key, "user": 0, "step": "database", "took_s": float(str(row.database_s)) / 2}] * 2
        first = int(str(row.job).rsplit("-", 1)[1])
        u = uniform(seed, Stream.LATENCY, int(str(row.event)), first, int(str(row.attempt)))
        drawn_s = topology.providers["email"].latency.quantile(u)
        steps.append({**key, "user": first, "step": "provider", "took_s": drawn_s + 6e-4})
    fields: dict[str, Any] = {
        "topology": topology,
        "deployment": deployment,
        "workload": workload,
        "seed": seed,
        "attempts": attempts,
        "steps": trace.steps_frame(steps),
        "probe": PROBE,
        "workers": tuple(
            {"worker": w.name, "host": "nominal", "pid": 1, "ready_at": 0.0, "cpu_s": w.busy_s + w.loop.busy_s}
            for w in model.workers
        ),
        "name": "simulated",
    }
    return Run(**{**fields, **changes})
