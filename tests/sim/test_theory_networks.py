"""Closed networks of the model's own parts, with exponential steps: throughput against exact mean value analysis.

The real classes `Model`, `Worker`, `Attempt`, `Loop`, `Broker`, `Host` run; all that is put in their place is where a
number comes from: a user's CPU and a call's time at the broker are drawn. What was drawn above its mean has mean 0
whenever the run is cut off (a stopped martingale), so that regression on it takes most of the noise out of the
throughput (control variates: Lavenberg & Welch, 1981), and the 99.9 % interval becomes a few tenths of a percent wide.
"""

from __future__ import annotations

from collections.abc import Callable
from math import inf, sqrt
from typing import Any

import numpy as np
import pytest
from recursions import CONFIDENCE, Interval
from scipy.special import stdtrit
from simulated_run import free_profile, lab

from saqkit.spec.deployment import Deployment
from saqkit.spec.workload import Workload
from sim.analysis import theory
from sim.analysis.networks import Station, closed_network, event_loops
from sim.engine import attempt, model, worker
from sim.engine.parts import ALWAYS, Broker, Call, Cost, Loop, Owner

LOOP_S, BROKER_S, PROVIDER_S = 0.002, 0.001, 0.02
RUNS, CYCLES = 30, 1_500


class Circuit:
    """Exponential times for the parts, and how much was drawn above the mean since the clock was at `from_s`."""

    def __init__(self, seed: int, from_s: float) -> None:
        self.rng, self.from_s, self.cycles = np.random.default_rng(seed), from_s, 0
        self.excess = {"loop": 0.0, "broker": 0.0, "provider": 0.0}

    def draw(self, part: str, mean_s: float, now_s: float) -> float:
        took_s = float(self.rng.exponential(mean_s))
        self.add(part, took_s - mean_s, now_s)
        return took_s

    def add(self, part: str, excess_s: float, now_s: float) -> None:
        if now_s >= self.from_s:
            self.excess[part] += excess_s


def install(patch: pytest.MonkeyPatch, circuit: Circuit, by_the_broker: bool) -> None:
    """Draw what the parts take; `by_the_broker`: a user's CPU is followed by a broker's call, then by the provider."""

    class DrawnBroker(Broker):
        def call(self, script: Callable[[], Any], then: Callable[[Any], None], *jobs: Any, **network: Any) -> None:
            self._cpu_s = circuit.draw("broker", BROKER_S, self._env.now)
            super().call(script, then, *jobs, **network)

    class DrawnLane(attempt.Lane):
        __slots__ = ()

        def _claim(self) -> float:
            if self._attempt.next < self._attempt.count:
                self._attempt.user_cpu_s = circuit.draw("loop", LOOP_S, self._attempt.model.env.now)
            return super()._claim()

    class WatchedLoop(Loop):
        def at(self, due_s: float, cpu_s: Cost, call: Call, owner: Owner = ALWAYS) -> None:
            if not isinstance(call.__self__ if hasattr(call, "__self__") else None, DrawnLane):
                return super().at(due_s, cpu_s, call, owner)  # a timeout, not a send
            now, latency_s = self._env.now, due_s - self._env.now
            circuit.add("provider", latency_s - PROVIDER_S, now)
            circuit.cycles += now >= circuit.from_s
            if not by_the_broker:
                return super().at(due_s, cpu_s, call, owner)
            send = super().at
            broker: Broker = owner.model.broker  # type: ignore[attr-defined]
            broker.call(lambda: None, lambda _: send(self._env.now + latency_s, cpu_s, call, owner))

    patch.setattr(model, "Broker", DrawnBroker)
    patch.setattr(attempt, "Lane", DrawnLane)
    patch.setattr(worker, "Loop", WatchedLoop)


def throughput(workers: int, slots: int, expected: float, by_the_broker: bool, cycles: int = CYCLES) -> Interval:
    """Users per second in steady state: of batches that call the broker for each user, or of single jobs."""
    warm_up_s = 30 * workers * slots / expected
    until_s = warm_up_s + cycles / expected
    fields: dict[str, Any] = {"job_types__notify__per_user__database": "none", "job_types__notify__timeout_s": 1e6}
    topology = lab(providers__email__latency={"kind": "exponential", "mean_s": PROVIDER_S}, **fields)
    if by_the_broker:
        batch = int(until_s / LOOP_S)
        topology, users = topology.with_batch_size(batch), batch * workers * slots
    else:
        topology = topology.model_copy(update={"entry": (topology.entry[0].model_copy(update={"job_type": "notify"}),)})
        users = int(1.3 * until_s * expected)
    found, controls = [], []
    for seed in range(RUNS):
        circuit = Circuit(seed, warm_up_s)
        with pytest.MonkeyPatch.context() as patch:
            install(patch, circuit, by_the_broker)
            deployment = Deployment(workers=workers, concurrency=slots, cores=workers)
            costs = free_profile().costs(topology)
            simulated = model.Model(topology, deployment, Workload.burst(users), costs, seed)
            simulated.run(deadline_s=until_s)
        assert [len(w.held) for w in simulated.workers] == [slots] * workers or not by_the_broker
        found.append(circuit.cycles / (until_s - warm_up_s))
        controls.append([value / (until_s - warm_up_s) for value in circuit.excess.values()])
    design = np.column_stack([np.ones(RUNS), np.array(controls)])
    solution, _, rank, _ = np.linalg.lstsq(design, np.array(found), rcond=None)
    left = np.array(found) - design @ solution
    variance = left @ left / (RUNS - rank) * np.linalg.inv(design.T @ design)[0, 0]
    return Interval(float(solution[0]), float(stdtrit(RUNS - rank, (1 + CONFIDENCE) / 2)) * sqrt(variance))


@pytest.mark.parametrize(("workers", "slots"), [(1, 5), (1, 20), (2, 10), (3, 6)])
def test_loops_broker_and_provider_are_the_product_form_network_that_mva_solves(workers: int, slots: int) -> None:
    expected = float(event_loops(workers, slots, LOOP_S, BROKER_S, PROVIDER_S).throughput_per_s.sum())
    found = throughput(workers, slots, expected, by_the_broker=True)
    assert expected in found
    assert found.half < 0.006 * expected


def test_single_jobs_on_one_slot_each_are_a_machine_repair_network() -> None:
    """Each job costs one call, which finishes the last and takes the next (Erlang's model of machines and one man)."""
    stations = {"broker": Station([BROKER_S]), "elsewhere": Station([LOOP_S + PROVIDER_S], inf)}
    expected = float(closed_network([12], stations).throughput_per_s[0])
    found = throughput(12, 1, expected, by_the_broker=False, cycles=1_000)
    assert expected in found
    assert found.half < 0.006 * expected
    low, high = theory.throughput_bounds_per_s(12, BROKER_S, LOOP_S + PROVIDER_S)
    assert low < found.mean < high
