"""What `sim.plan` answers beyond the deployment: cost, frontier, streams, and why nothing meets a target."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.cli import main
from saqkit.errors import DescriptionError
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Poisson, Workload
from sim.capacity.saturation import saturated
from sim.running.scenario import Scenario

SECOND = {"kind": "constant", "mean_s": 0.1}


def singles(**fields: Any) -> Topology:
    """Arriving users become jobs of one user and 0.1 s: a slot serves 10 a second."""
    return lab(entry=[{"job_type": "notify"}], providers__email__latency=SECOND, **fields)


def stream(rate_per_s: float, duration_s: float = 60.0) -> Workload:
    return Workload(arrivals=Poisson(rate_per_s=rate_per_s, duration_s=duration_s))


@pytest.fixture(scope="module")
def burst() -> sim.Plan:
    topology = override(lab(), {"job_types.notify.per_user.cpu_us": 4_000})
    return sim.plan(topology, 2_000, "drain<=7s @ 0.9", price_per_worker_hour=0.5, replications=4, max_workers=4)


def test_a_million_users_cost_the_workers_for_as_long_as_they_take(burst: sim.Plan) -> None:
    per_s = burst.prediction.combinations[0].measures["throughput_users_per_s"]["mean"]
    assert burst.cost_per_million_users == pytest.approx(0.5 * burst.workers * 1e6 / per_s / 3600)


def test_the_plan_says_how_old_the_oldest_job_gets(burst: sim.Plan) -> None:
    found = burst.oldest_age_s
    waits = burst.prediction.attempts.assign(wait=lambda t: t["taken_at"] - t["ready_at"])
    assert found["mean"] == pytest.approx(waits.groupby("replication")["wait"].max().mean())
    assert found["lo"] <= found["mean"] <= found["hi"] <= 7
    assert burst.low_wait_s is None


def test_the_plan_as_json_and_as_a_row(burst: sim.Plan) -> None:
    said = json.loads(json.dumps(burst.to_dict(), allow_nan=False))
    assert {"cost_per_million_users", "oldest_age_s", "low_wait_s", "trigger"} < set(said)
    assert said["trigger"]["queue"] == "notifications"
    row = burst.summary().iloc[0]
    assert row["oldest_age_s.mean"] == said["oldest_age_s"]["mean"]
    assert row["workers"] == burst.workers


def test_no_deployment_on_the_frontier_is_beaten_by_a_cheaper_one(burst: sim.Plan) -> None:
    table = burst.frontier
    assert list(table.columns) == ["workers", "concurrency", "batch_size", "cost_per_hour", "cost_per_million_users",
                                   "time_s", "probability"]  # fmt: skip
    assert len(table) >= 2
    assert table["workers"].is_monotonic_increasing
    assert table["workers"].is_unique
    assert table["time_s"].is_monotonic_decreasing
    assert (table["cost_per_hour"] == 0.5 * table["workers"]).all()
    assert table["workers"].min() == 1
    assert (table.loc[table["time_s"] > 7, "probability"] < 0.5).all()
    best = table[table["probability"] >= 0.9]
    assert best["workers"].min() == burst.workers
    ax = burst.plot_frontier()
    assert ax.collections[0].get_offsets()[:, 0].tolist() == table["cost_per_hour"].tolist()
    plt.close("all")


def test_low_jobs_wait_longest_and_are_told() -> None:
    mixed = [
        {"job_type": "notify", "share": 0.8, "priority": "critical"},
        {"job_type": "notify", "share": 0.2, "priority": "low"},
    ]
    topology = lab(entry=mixed, providers__email__latency=SECOND, queues__notifications__concurrency=1)
    plan = sim.plan(topology, workload=stream(8.5), target="p50<=1min", profile=free_profile(), replications=5)
    assert (plan.feasible, plan.workers) == (True, 1)
    low = plan.low_wait_s
    assert low is not None
    assert 0 < low["p50"] <= low["p95"] <= low["max"]
    found = plan.prediction.attempts.query("priority == 1")
    assert low["p95"] > 2 * (found["started_at"] - found["ready_at"]).quantile(0.95)


def test_a_stream_gets_the_slots_that_its_latency_needs() -> None:
    topology = singles(queues__notifications__concurrency=1)
    plan = sim.plan(topology, workload=stream(25), target="p95<=0.5s @ 0.8", profile=free_profile(), replications=5)
    assert (plan.feasible, plan.workers, plan.concurrency) == (True, 1, 5)
    found = plan.prediction.combinations[0]
    assert found.stable
    assert found.steady is not None
    assert plan.headroom == pytest.approx(1 - found.steady["latency_p95_s"]["mean"] / 0.5)
    assert plan.plot().get_xlabel() == "latency of a user in seconds"
    plt.close("all")


def test_a_stream_that_outruns_the_rate_limit_is_met_by_no_deployment() -> None:
    topology = singles(queues__notifications__rate_limit={"limit": 5})
    plan = sim.plan(topology, workload=stream(8), target="p95<=1h", profile=free_profile(), max_workers=2,
                    replications=2)  # fmt: skip
    # Nobody waits an hour in a minute's run; it is the growth that no hour bears.
    assert not plan.feasible
    assert plan.reason == ("no deployment meets this: 8 users/s arrive, the rate limit allows at best 5: the backlog "
                           "grows without end")  # fmt: skip
    assert plan.probability == 0
    assert plan.trigger is None
    json.dumps(plan.to_dict(), allow_nan=False)


def test_a_stream_that_outruns_so_many_workers_names_what_holds_them_up() -> None:
    topology = lab(entry=[{"job_type": "notify"}], job_types__notify__per_user__cpu_us=50_000)
    plan = sim.plan(topology, workload=stream(60, 20), target="p95<=1h", profile=free_profile(), max_workers=1,
                    replications=2)  # fmt: skip
    assert not plan.feasible
    said = "no deployment of up to 1 workers meets this: 60 users/s arrive, the bottleneck (loop) allows at best "
    assert plan.reason.startswith(said)
    assert float(plan.reason.removeprefix(said).split(":")[0]) == pytest.approx(20, rel=0.02)


@pytest.mark.parametrize(
    ("fields", "reason"),
    [
        ({"queues__notifications__rate_limit": {"limit": 50, "unit": "users"}}, "the rate limit allows at best 39 s"),
        ({"providers__email__rate": {"limit": 100}}, "the provider's rate allows at best 19 s"),
    ],
)
def test_the_hard_limit_of_a_burst_is_named_with_its_best(fields: dict[str, Any], reason: str) -> None:
    plan = sim.plan(lab(**fields), 2_000, "drain<=10s", max_workers=1, replications=1)
    assert not plan.feasible
    assert plan.reason == f"no deployment meets this: {reason}"


@pytest.mark.parametrize(("connections", "part"), [(None, "slots"), (2, "connections")])
def test_slots_and_connections_are_a_limit_for_so_many_workers_only(connections: int | None, part: str) -> None:
    fields = {"providers__email__latency": {"kind": "constant", "mean_s": 1.0}}
    topology = lab(**fields, **({"providers__email__connections": connections} if connections else {}))
    plan = sim.plan(topology, 1_000, "drain<=2s", max_workers=1, replications=1)
    best = {"slots": "9.7", "connections": "485"}[part]
    assert plan.reason == f"no deployment of up to 1 workers meets this: their {part} allow at best {best} s"


PLAN = ["plan", "school-events", "--users", "200", "--target", "drain<=30s", "--profile", "nominal", "--replications",
        "2", "--max-workers", "2", "--price", "0.5"]  # fmt: skip


def test_the_command_tells_the_details_and_the_frontier_when_asked(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([*PLAN, "--details", "--frontier", "--json"]) == 0
    said = json.loads(capsys.readouterr().out)
    assert list(said)[10:] == ["cost_per_million_users", "oldest_age_s", "low_wait_s", "trigger", "frontier"]
    assert said["trigger"]["age_s"] > 0
    assert said["frontier"][0]["workers"] == 1
    assert main([*PLAN, "--frontier"]) == 0
    shown = capsys.readouterr().out
    for word in ("oldest job's age", "no low jobs", "start one more worker at an age of", "no cheaper deployment"):
        assert word in shown
    assert max(map(len, shown.splitlines())) <= 100


@pytest.mark.parametrize("price", [-1.0, float("nan"), float("inf")])
def test_a_price_that_is_none_is_refused(price: float) -> None:
    with pytest.raises(DescriptionError, match="price_per_worker_hour: a price is a number from 0 on"):
        sim.plan(lab(), 10, "p95<=60s", price_per_worker_hour=price)


@pytest.mark.parametrize(
    ("name", "least", "most"), [("shop", 8 * 10 * 20, 8 * 10 * 20), ("school-erp", 8 * 10 * 50, 30_000)]
)
def test_a_saturated_run_has_as_many_users_as_fill_the_slots_and_no_more(name: str, least: int, most: int) -> None:
    """Eight jobs for each slot of each queue that an arrival reaches; single jobs are not counted as batches."""
    scenario = Scenario(load(name), Deployment(workers=20 if name == "shop" else 10), Workload.burst(1000),
                        sim.Profile.nominal(), 0)  # fmt: skip
    arrived = saturated(scenario).cell.settings["users"]
    assert least <= arrived <= most
