"""An independent witness: Ciw (Palmer and others, 2019) simulates slots with backoff, on the same draws.

In Ciw the slots are a node of c servers, the backoff is a node of its own without waiting, and a job goes back and
forth between them. Nothing but the draws and the retry policy is shared with the model.
"""

from __future__ import annotations

from typing import Any

import ciw  # type: ignore[import-untyped]
import numpy as np
import pytest
from simulated_run import free_profile, lab
from soundness import sound

from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform
from saqkit.spec.lifecycle import on_tick
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.engine.model import Model

SLOTS, BACKOFF = 1, 2
FINE_TICK_S = 1e-6  # Ciw picks at random among what wakes at one moment, so that no two may


def by_ciw(topology: Topology, users: int, servers: int, seed: int) -> dict[tuple[int, int], tuple[float, float]]:
    """(user, attempt) → when it began and ended, of single jobs that are all there at once."""
    retry, email = topology.job_types["notify"].retry, topology.providers["email"]
    attempts = dict.fromkeys(range(1, users + 1), 0)

    class Send(ciw.dists.Distribution):  # type: ignore[misc]
        def sample(self, t: float | None = None, ind: Any = None) -> float:
            attempts[ind.id_number] += 1
            key = (1, ind.id_number, attempts[ind.id_number])
            return float(email.latency.quantiles(np.array([uniform(seed, Stream.LATENCY, *key)]))[0])

    class Wait(ciw.dists.Distribution):  # type: ignore[misc]
        def sample(self, t: float | None = None, ind: Any = None) -> float:
            assert t is not None
            failed = attempts[ind.id_number]
            delay_s = retry.delay_after(failed, uniform(seed, Stream.JITTER, 1, ind.id_number, failed))
            return on_tick(t + delay_s, FINE_TICK_S) - t

    class AfterSend(ciw.routing.NodeRouting):  # type: ignore[misc]
        def next_node(self, ind: Any) -> Any:
            tried = attempts[ind.id_number]
            failed = uniform(seed, Stream.TEMPORARY, 1, ind.id_number, tried) < email.temporary_share
            return self.simulation.nodes[BACKOFF if failed and tried < retry.max_attempts else -1]

    network = ciw.create_network(
        arrival_distributions=[ciw.dists.Sequential([0.0, float("inf")]), None],
        batching_distributions=[ciw.dists.Sequential([users]), ciw.dists.Deterministic(1)],
        service_distributions=[Send(), Wait()],
        number_of_servers=[servers, float("inf")],
        routing=ciw.routing.NetworkRouting([AfterSend(), ciw.routing.Direct(SLOTS)]),
    )
    simulation = ciw.Simulation(network)
    simulation.simulate_until_max_customers(users)
    found: dict[tuple[int, int], tuple[float, float]] = {}
    for record in sorted(simulation.get_all_records(), key=lambda record: record.service_start_date):
        if record.node == SLOTS:
            number = 1 + sum((record.id_number, n) in found for n in range(1, 10))
            found[record.id_number, number] = (record.service_start_date, record.service_end_date)
    return found


@pytest.mark.parametrize(("workers", "slots"), [(1, 1), (1, 5), (3, 2)])
@pytest.mark.parametrize(
    "retry",
    [
        {"max_attempts": 4, "backoff": "exponential", "delay_s": 500, "factor": 3.0, "jitter": "full"},
        {"max_attempts": 3, "backoff": "list", "delays_s": [2_000, 300], "jitter": "equal"},
        {"max_attempts": 6, "backoff": "fixed", "delay_s": 50},
    ],
    ids=lambda retry: str(retry["backoff"]),
)
def test_slots_with_backoff_are_those_that_ciw_simulates(retry: dict[str, Any], workers: int, slots: int) -> None:
    """Jobs take minutes, so that the millisecond for which an idle process waits at least does not show."""
    topology = lab(
        entry=[{"job_type": "notify"}],
        queues__notifications__tick_s=FINE_TICK_S,
        job_types__notify__retry=retry,
        job_types__notify__per_user__database="none",
        job_types__notify__timeout_s=1e6,
        providers__email__latency={"kind": "lognormal", "mean_s": 100, "cv": 1.0},
        providers__email__timeout_s=1e6,
        providers__email__temporary_share=0.4,
    )
    deployment, costs = Deployment(workers=workers, concurrency=slots), free_profile().costs(topology)
    model = Model(topology, deployment, Workload.burst(150), costs, seed=9)
    frame = sound(model, model.run())
    user = frame["job"].str.rsplit("-", n=1).str[1].astype(int)
    ours = {
        (n, attempt): (begun, ended)
        for n, attempt, begun, ended in zip(
            user, frame["attempt"], frame["started_at"], frame["finished_at"], strict=True
        )
    }
    theirs = by_ciw(topology, 150, workers * slots, seed=9)
    assert ours.keys() == theirs.keys()
    assert len(ours) > 220
    for key, times in theirs.items():
        assert ours[key] == pytest.approx(times, rel=1e-9, abs=1e-6), key
