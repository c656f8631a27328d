"""Intervals hold what they say: 400 experiments with the model on a case whose mean is known exactly.

Makespans of a burst of exponential jobs on slots: a few replications each, their interval, and whether the true mean,
or a fresh replication, lies inside.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from scipy import stats
from simulated_run import free_profile, lab

from saqkit.spec.deployment import Deployment
from saqkit.spec.workload import Workload
from sim.analysis import theory
from sim.analysis.statistics import intervals
from sim.engine.model import Model

EXPERIMENTS, REPLICATIONS, JOBS, SLOTS = 400, 6, 16, 2


@pytest.fixture(autouse=True)
def _sound() -> None:
    """Thousands of tiny runs: to check each one as elsewhere would take longer than all of them."""


@pytest.fixture(scope="module")
def makespans() -> np.ndarray[Any, np.dtype[np.float64]]:
    """A row per experiment: its replications, and a fresh one."""
    topology = lab(
        entry=[{"job_type": "notify"}],
        job_types__notify__per_user__database="none",
        providers__email__latency={"kind": "exponential", "mean_s": 0.1},
    )
    costs, deployment, workload = free_profile().costs(topology), Deployment(concurrency=SLOTS), Workload.burst(JOBS)
    runs = EXPERIMENTS * (REPLICATIONS + 1)
    ends = [Model(topology, deployment, workload, costs, seed).run().ended_at_s for seed in range(runs)]
    return np.array(ends).reshape(EXPERIMENTS, -1)


def test_the_mean_is_in_its_95_percent_interval_in_95_of_100_experiments(makespans: Any) -> None:
    known = float(theory.burst_makespan_s(JOBS, 0.1, SLOTS))
    found = [intervals(row[:REPLICATIONS], level=0.95) for row in makespans]
    held = np.mean([one["mean_lo"] <= known <= one["mean_hi"] for one in found])
    assert 0.93 <= held <= 0.97


def test_a_fresh_run_is_in_the_90_percent_prediction_interval_in_90_of_100_experiments(makespans: Any) -> None:
    held = 0
    for row in makespans:
        one = intervals(row[:REPLICATIONS])
        held += one["lo"] <= row[-1] <= one["hi"]
    low, high = stats.binom.interval(0.999, EXPERIMENTS, 0.90)
    assert low <= held <= high


def test_both_intervals_would_be_seen_to_be_too_narrow_or_too_wide(makespans: Any) -> None:
    """The tests above can fail: intervals of another level do not hold the same share."""
    known = float(theory.burst_makespan_s(JOBS, 0.1, SLOTS))
    for level in (0.90, 0.99):
        found = [intervals(row[:REPLICATIONS], level=level) for row in makespans]
        held = np.mean([one["mean_lo"] <= known <= one["mean_hi"] for one in found])
        assert not 0.93 <= held <= 0.97
