"""One fully described run to be simulated, and how its parts are found: profile, deployment, settings."""

from __future__ import annotations

import platform
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from saqkit.errors import UsageError
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Recorded, Workload
from sim.engine.coverage import beyond_fast, beyond_the_model
from sim.engine.model import Model
from sim.engine.outcome import Outcome
from sim.engine.stock import StockModel
from sim.fit.profile import Profile

NEXT_SEED = 0x2545F4914F6CDD1D  # odd, so that the seeds of 2^64 replications differ
Concurrency = int | dict[str, int]
QueueKind = Literal["saqkit", "stock"]
"""Whose queue and worker: ours, or stock SAQ's."""
Engine = Literal["auto", "simpy", "fast"]
"""Which engine simulates; both return the same attempts. `auto`: the fast one where it can."""


@dataclass(frozen=True)
class Scenario:
    """One fully described run to be simulated."""

    topology: Topology
    deployment: Deployment
    workload: Workload
    profile: Profile
    seed: int
    same_draw: bool = False
    tick_phase_s: float = 0.0
    queue: QueueKind = "saqkit"
    engine: Engine = "auto"

    def __post_init__(self) -> None:
        """Raise `UsageError` for what no engine can simulate."""
        if self.queue == "saqkit" and (reason := beyond_the_model(self.topology)):
            raise UsageError(f"{self.topology.name} cannot be predicted: {reason} (leave it out to predict the rest)")

    def run(self, replication: int = 0, relieved: str = "", deadline_s: float | None = None) -> Outcome:
        """Simulate one replication; replication 0 uses the seed itself. A same-draw run has no noise of its own."""
        seed = self.seed + replication * NEXT_SEED
        noise = None if self.same_draw else np.random.default_rng([seed & (2**64 - 1), 1])
        costs = self.profile.costs(self.topology, noise)
        if self.engine_used == "fast":
            from sim.engine.fast.engine import run_fast

            compiles = True if self.engine == "fast" else None
            told = (self.topology, self.deployment, self.workload, costs, seed, relieved, self.tick_phase_s)
            return run_fast(*told, deadline_s, compiles)
        kind = StockModel if self.queue == "stock" else Model
        model = kind(self.topology, self.deployment, self.workload, costs, seed, relieved, self.tick_phase_s)
        return model.run(deadline_s)

    @property
    def engine_used(self) -> str:
        """`fast` or `simpy`; and after a colon the reason, where the fast engine was to be used but cannot be.

        Raises `UsageError` if only the fast engine may be used.
        """
        reason = beyond_fast(self.topology, self.deployment, self.workload, self.queue)
        if self.engine == "fast" and reason:
            raise UsageError(f'engine="fast" cannot simulate this: {reason} (engine="auto" takes the SimPy model then)')
        if self.engine == "simpy":
            return "simpy"
        return f"simpy: {reason}" if reason else "fast"

    @property
    def users(self) -> int:
        """How many users arrive with this scenario's own seed."""
        return sum(users for _, users in self.workload.times(self.topology, self.seed))

    def beginning(self, users: int, events: int) -> Scenario:
        """The same without faults, and only until `users` users and `events` events have come."""
        at_s, sizes, seen = list[float](), list[int](), 0
        for when_s, size in self.workload.times(self.topology, self.seed):
            if seen >= users and len(sizes) >= events:
                break
            at_s.append(when_s)
            sizes.append(size)
            seen += size
        return replace(self, workload=Workload(arrivals=Recorded(at_s=tuple(at_s), users=tuple(sizes))))

    def settings(self, replications: int, users: int | None = None) -> dict[str, Any]:
        """What tells this scenario from the others of a sweep, by column; `users` replaces the number counted."""
        topology, deployment = self.topology, self.deployment
        used = {queue for queues in deployment.processes(topology) for queue in queues}
        slots = {queue: deployment.slots(topology, queue) for queue in topology.queues if queue in used}
        batches = {job.fan_out.batch_size for job in topology.job_types.values() if job.fan_out}
        return {
            "topology": topology.name,
            "users": self.users if users is None else users,
            "workers": len(deployment.processes(topology)),
            "concurrency": next(iter(slots.values())) if len(set(slots.values())) == 1 else slots,
            "batch_size": max(batches) if batches else 1,
            "hosts": deployment.hosts,
            "seed": self.seed,
            "replications": replications,
            **({} if self.queue == "saqkit" else {"queue": self.queue}),
        }


def profile_of(profile: Profile | str | Path | None) -> Profile:
    """A profile, or the file of one, or none: the nominal host."""
    if profile is None:
        return Profile.nominal()
    return profile if isinstance(profile, Profile) else Profile.load(profile)


def deploy(base: Deployment | None, workers: int | None, concurrency: Concurrency | None) -> Deployment:
    """`base` (default: one process) with other numbers of processes and slots."""
    changed: dict[str, Any] = (base or Deployment()).to_dict()
    if workers is not None:
        changed |= {"workers": workers, "groups": []}
    if concurrency is not None:
        changed["concurrency"] = concurrency
    return Deployment.parse(changed, "deployment")


def cautions(profile: Profile, topology: Topology) -> tuple[str, ...]:
    """Why a prediction of `topology` with `profile`, made here, may not hold here; empty if nothing speaks against it.

    A profile of another host or version still predicts, but what it was measured on: that is for the reader to judge.
    """
    there, here, notes = profile.host.host, platform.node(), list[str]()
    if there not in (Profile.nominal().host.host, here):
        notes.append(f"the profile is of host {there}, this is {here}: what is predicted is what happens there")
    for name, now in (("saqkit", _version("saqkit")), ("python", platform.python_version())):
        fitted = profile.versions.get(name, now)
        if fitted.split(".")[:2] != now.split(".")[:2]:
            notes.append(f"the profile was fitted with {name} {fitted}, this is {now}: fit it again to be sure")
    if unknown := profile.unknown(topology):
        notes.append(f"the profile has no numbers for {', '.join(unknown)}: a similar job type's are used")
    return tuple(notes)


def _version(package: str) -> str:
    from importlib.metadata import PackageNotFoundError, version

    try:
        return version(package)
    except PackageNotFoundError:
        return "not installed"
