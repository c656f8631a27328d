"""The search behind `sim.plan`: which workers × slots × batch size are worth many simulated runs."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, field

import numpy as np

from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Burst, Workload
from sim.capacity.limits import best_rate, best_time, offered_users_per_s, reachable
from sim.capacity.saturation import load
from sim.fit.profile import Profile
from sim.running.scenario import Scenario, deploy
from sim.targets import Target

SLOTS = (5, 10, 20, 50, 100)
BATCHES = (20, 50, 100, 200, 500)
Choice = tuple[int | None, int | None]
"""(slots, batch size); None is the deployment's and topology's own."""


@dataclass(frozen=True)
class Search:
    """What is fixed while workers, slots and batch size are tried."""

    topology: Topology
    workload: Workload
    target: Target
    profile: Profile
    deployment: Deployment
    seed: int
    _loads: dict[tuple[int, Choice], float] = field(default_factory=dict, repr=False, compare=False)

    @property
    def offered(self) -> float | None:
        """Users who arrive a second in a steady stream; None for anything else."""
        return offered_users_per_s(self.workload)

    @property
    def stops(self) -> bool:
        """Whether a run may be stopped at the target's bound: who is not served by then has missed it."""
        return isinstance(self.workload.arrivals, Burst) and self.target.share > 0

    def slots(self) -> list[int | None]:
        """The numbers of slots to try, smallest change first."""
        own = max(self.deployment.slots(self.topology, queue) for queue in self.topology.queues)
        return [None, *(n for n in SLOTS if n > own)]

    def batches(self) -> list[int | None]:
        """The batch sizes to try, nearest to the topology's own first."""
        jobs = [self.topology.job_types[name] for name in sorted(reachable(self.topology))]
        own = [job.fan_out.batch_size for job in jobs if job.fan_out]
        if not own:
            return [None]
        near = float(min(own))
        others = sorted((abs(float(np.log(n / near))), n) for n in BATCHES if {*own} != {n})
        return [None, *(n for _, n in others)]

    def choices(self) -> list[Choice]:
        """Slots × batch sizes, smallest change first."""
        return [(slots, batch) for slots in self.slots() for batch in self.batches()]

    def scenario(self, workers: int, choice: Choice) -> Scenario:
        """One deployment, without noise."""
        slots, batch = choice
        topology = self.topology if batch is None else self.topology.with_batch_size(batch)
        return Scenario(topology, deploy(self.deployment, workers, slots), self.workload, self.profile, self.seed, True)

    def load(self, workers: int, choice: Choice) -> float:
        """The load ρ of a steady stream there; 0 for anything else."""
        key = (workers, choice)
        if key not in self._loads:
            scenario = self.scenario(workers, choice)
            if self.offered and (hard := best_rate(scenario)).users_per_s <= self.offered:
                self._loads[key] = self.offered / hard.users_per_s  # known without a run
            else:
                self._loads[key] = load(scenario)
        return self._loads[key]

    def might_meet(self, workers: int) -> Iterator[Choice]:
        """The choices that one noise-free run lets through, in order."""
        for batch in self.batches() if self.offered else ():
            if self.load(workers, (self.slots()[-1], batch)) < 1:
                break
        else:
            if self.offered:
                return  # with the most slots it is too much: with fewer too
        for choice in self.choices():
            scenario = self.scenario(workers, choice)
            within = best_time(scenario, self.target.share).best_s <= self.target.bound_s
            if within and self.load(workers, choice) < 1 and self._passes(scenario):
                yield choice

    def counts(self, most: int, progress: Callable[[int], None] | None) -> Iterator[int]:
        """Numbers of workers from the smallest that a noise-free run lets through, found by doubling and halving."""

        def passes(workers: int) -> bool:
            if progress:
                progress(workers)
            return next(self.might_meet(workers), None) is not None

        low, high = 0, 1
        while not passes(high):
            if high == most:
                return
            low, high = high, min(2 * high, most)
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if passes(middle) else (middle, high)
        # Meeting it once is not meeting it with the probability asked for: up to half as many workers again may be
        # needed.
        yield from range(high, min(most, high + max(2, high // 2)) + 1)

    def _passes(self, scenario: Scenario) -> bool:
        arrivals, share = self.workload.arrivals, self.target.share
        outcome = scenario.run(deadline_s=self.target.bound_s if self.stops else None)
        if outcome.drained or not self.stops:
            return trace.measures(outcome.attempts())[self.target.measure] <= self.target.bound_s
        attempts = outcome.attempts()
        served = int(attempts["users_done"].sum() + attempts["users_failed"].sum())
        return bool(share < 1 and isinstance(arrivals, Burst) and served >= share * arrivals.users)
