"""What tenants' rate limits and limits of running jobs allow at best is known to plan, to the verdict, and to show."""

from __future__ import annotations

from typing import Any

import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.spec.deployment import Deployment
from saqkit.spec.showing import bounds
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Poisson, Workload
from sim.capacity.limits import best_rate, best_time
from sim.running.scenario import Scenario

TENTH = {"kind": "constant", "mean_s": 0.1}
ONE_RUNS = [{"key": "tenant", "limit": 1}]
TENANTS = [{"job_type": "notify", "tenant": "a", "share": 0.8}, {"job_type": "notify", "tenant": "b", "share": 0.2}]


def singles(entry: Any = TENANTS, **fields: Any) -> Topology:
    """Arriving users, four of five of tenant a, become jobs of one user and 0.1 s."""
    return lab(entry=entry, providers__email__latency=TENTH, **fields)


def stream(rate_per_s: float, duration_s: float = 60.0) -> Workload:
    return Workload(arrivals=Poisson(rate_per_s=rate_per_s, duration_s=duration_s))


def scenario(topology: Topology, workload: Workload) -> Scenario:
    return Scenario(topology, Deployment(), workload, free_profile(), 0)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"tenant_rate_limit": {"limit": 50, "unit": "users"}}, "rate limit of each tenant allows at best 39 s"),
        ({"running_limits": ONE_RUNS}, "running limit of each tenant allows at best 194 s"),
        (
            {"running_limits": [{"key": "job_type", "limit": 2}]},
            'running limit of job type "notify" allows at best 97 s',
        ),
        (
            {"running_limits": [{"key": "provider", "limit": 2}], "tenant_rate_limit": {"limit": 100}},
            'running limit of provider "email" allows at best 97 s',
        ),
    ],
)
def test_the_limit_of_a_burst_is_named_with_its_best(fields: dict[str, Any], reason: str) -> None:
    topology = lab(providers__email__latency=TENTH, **{f"queues__notifications__{k}": v for k, v in fields.items()})
    plan = sim.plan(topology, 2_000, "drain<=30s", profile=free_profile(), max_workers=1, replications=1)
    assert not plan.feasible
    assert plan.reason == f"no deployment meets this: the {reason}"
    assert plan.bottleneck == "rate_limit"
    at_best = best_time(scenario(topology, Workload.burst(2_000)), 1.0).best_s
    assert plan.prediction.combinations[0].measures["makespan_s"]["mean"] >= at_best


@pytest.mark.parametrize(
    ("fields", "rate", "part", "best"),
    [
        ({"tenant_rate_limit": {"limit": 5}}, 8.0, 'rate limit of tenant "a"', 6.25),
        ({"running_limits": ONE_RUNS}, 16.0, 'running limit of tenant "a"', 12.5),
        ({"running_limits": [{"key": "provider", "limit": 1}]}, 16.0, 'running limit of provider "email"', 10),
    ],
)
def test_a_stream_that_outruns_a_tenants_limit(fields: dict[str, Any], rate: float, part: str, best: float) -> None:
    topology = singles(**{f"queues__notifications__{k}": v for k, v in fields.items()})
    hard = best_rate(scenario(topology, stream(rate)))
    assert (hard.why, hard.users_per_s) == (part, pytest.approx(best))
    plan = sim.plan(topology, workload=stream(rate), target="p95<=1h", profile=free_profile(), max_workers=2,
                    replications=2)  # fmt: skip
    assert not plan.feasible
    assert plan.reason == (f"no deployment meets this: {rate:.3g} users/s arrive, the {part} allows at best {best:.3g}:"
                           " the backlog grows without end")  # fmt: skip
    assert plan.bottleneck == "rate_limit"
    cell = plan.prediction.combinations[0]
    assert cell.stable is False
    assert f"the {part} (at best {best:.3g} users/s) is at {rate / best:.0%}" in cell.verdict


@pytest.mark.parametrize(
    ("fields", "rate"), [({"tenant_rate_limit": {"limit": 5}}, 5.0), ({"running_limits": ONE_RUNS}, 9.0)]
)
def test_a_stream_within_its_limits_is_planned_for(fields: dict[str, Any], rate: float) -> None:
    topology = singles(**{f"queues__notifications__{k}": v for k, v in fields.items()})
    plan = sim.plan(topology, workload=stream(rate), target="p95<=1min", profile=free_profile(), max_workers=2,
                    replications=2)  # fmt: skip
    assert plan.feasible
    assert plan.prediction.combinations[0].stable is True


@pytest.mark.parametrize(
    ("field", "limit", "at"),
    [
        ("tenant_rate_limit", {"limit": 7}, "tenant_rate_limit"),
        ("running_limits", [{"key": "tenant", "limit": 3}], "running_limits.0"),
        ("running_limits", [{"key": "provider", "limit": 3}], "running_limits.0"),
        ("running_limits", [{"key": "job_type", "limit": 3}], "running_limits.0"),
    ],
)
def test_show_says_the_same_bound(field: str, limit: Any, at: str) -> None:
    entry = [{"job_type": "notify"}]
    topology = singles(entry, **{f"queues__notifications__{field}": limit})
    # A batch of the fan-out may be larger than an arriving job, which has one user: send one at a time either way.
    said = {bound["at"]: bound for bound in bounds(topology.with_batch_size(1))}[f"queues.notifications.{at}"]
    assert said["users_per_s"] == pytest.approx(best_rate(scenario(topology, stream(5))).users_per_s)
    assert f"at most {said['users_per_s']:,.4g} users/s of " in said["text"]


def test_show_has_no_bound_where_jobs_of_a_tenant_wait_for_nobody() -> None:
    waits_not = lab(job_types__notify__per_user__provider=None, queues__notifications__running_limits=ONE_RUNS)
    assert not [bound for bound in bounds(waits_not) if "running_limits" in bound["at"]]
