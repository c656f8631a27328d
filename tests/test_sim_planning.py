"""`sim.plan` and the grammar of its targets."""

from __future__ import annotations

import json
import re

import matplotlib.pyplot as plt
import pytest
from simulated_run import lab

import sim
from saqkit.errors import DescriptionError
from saqkit.spec.overriding import override
from sim.targets import Target

KEYS = [
    "feasible",
    "workers",
    "concurrency",
    "batch_size",
    "cost_per_hour",
    "probability",
    "headroom",
    "bottleneck",
    "next_bottleneck",
    "reason",
]


@pytest.mark.parametrize(
    ("text", "metric", "bound_s", "probability"),
    [
        ("p95<=60s @ 0.9", "p95", 60.0, 0.9),
        ("p95<=10min", "p95", 600.0, 0.9),
        ("drain < 1.5 h @ 99%", "drain", 5400.0, 0.99),
        (" wait_p95<=250ms@0.5 ", "wait_p95", 0.25, 0.5),
        ("p50<=2e3s", "p50", 2000.0, 0.9),
        ("p99<=1d", "p99", 86400.0, 0.9),
    ],
)
def test_a_target_is_read(text: str, metric: str, bound_s: float, probability: float) -> None:
    target = Target.parse(text)
    assert (target.metric, target.bound_s) == (metric, pytest.approx(bound_s))
    assert target.probability == pytest.approx(probability)
    assert Target.parse(str(target)) == target


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("", "is no target"),
        ("p95", "is no target"),
        ("wait_95<=60s", 'did you mean "wait_p95"'),
        ("p95>=60s", "from above"),
        ("p95=60s", "from above"),
        ("p95<=60", "no unit"),
        ("p95<=60 years", '"years" is no unit'),
        ("p95<=-5s", "not positive"),
        ("p95<=tens", "is no"),
        ("p95<=60s @ 1.5", "between 0 and 1"),
        ("p95<=60s @ often", "no number"),
        ("p95<=60s for sure", "is no"),
    ],
)
def test_a_wrong_target_is_refused_in_one_line(text: str, message: str) -> None:
    with pytest.raises(DescriptionError, match=re.escape(message)) as caught:
        Target.parse(text)
    assert "\n" not in str(caught.value)
    assert caught.value.key == "target"


def test_a_plan_meets_its_target_and_one_worker_fewer_does_not() -> None:
    topology = override(lab(), {"job_types.notify.per_user.cpu_us": 4_000})
    plan = sim.plan(topology, 5_000, "drain<=13s @ 0.9", price_per_worker_hour=0.5)
    assert plan.feasible
    assert plan.probability >= 0.9
    assert plan.workers >= 2
    assert plan.cost_per_hour == plan.workers * 0.5
    assert list(plan.to_dict())[: len(KEYS)] == KEYS
    json.dumps(plan.to_dict(), allow_nan=False)
    settings = {"concurrency": plan.concurrency, "batch_size": plan.batch_size, "users": 5_000}
    here = sim.predict(topology, workers=plan.workers, **settings).combinations[0].measures["makespan_s"]
    fewer = sim.predict(topology, workers=plan.workers - 1, **settings).combinations[0].measures["makespan_s"]
    assert here["mean"] <= 13 < fewer["mean"]
    assert plan.headroom == pytest.approx(1 - here["mean"] / 13, abs=0.05)
    assert plan.plot().get_xlim()[1] >= 13
    plt.close("all")
    assert repr(plan).startswith("Plan(drain<=13s @ 0.9: feasible")


def test_an_easy_target_is_met_without_changing_anything() -> None:
    plan = sim.plan(lab(), 500, "p95<=10min")
    assert (plan.feasible, plan.workers, plan.concurrency, plan.batch_size) == (True, 1, 5, 100)
    assert plan.headroom > 0.9


def test_a_target_below_the_rate_limit_is_impossible_whatever_is_deployed() -> None:
    topology = override(lab(), {"queues.notifications.rate_limit": {"limit": 50, "unit": "users"}})
    plan = sim.plan(topology, 5_000, "drain<=60s", max_workers=4)
    assert not plan.feasible
    assert plan.reason == "no deployment meets this: the rate limit allows at best 99 s"
    assert plan.bottleneck == "rate_limit"


def test_a_larger_batch_is_found_where_jobs_are_limited() -> None:
    topology = override(lab(), {"queues.notifications.rate_limit.limit": 2})
    plan = sim.plan(topology, 5_000, "drain<=20s", max_workers=4)
    assert plan.feasible
    assert plan.batch_size > 100


def test_too_few_workers_are_said_to_be_too_few() -> None:
    plan = sim.plan(lab(), 10_000, "drain<=0.3s", max_workers=2, replications=2)
    assert not plan.feasible
    assert plan.reason.startswith("no deployment of up to 2 workers meets this")
    assert plan.workers == 2


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({}, "users"),
        ({"users": 10, "max_workers": 0}, "max_workers"),
        ({"users": 10, "price_per_worker_hour": -1.0}, "price_per_worker_hour"),
        ({"users": 10, "target": "soon"}, "target"),
    ],
)
def test_a_plan_of_nonsense_is_refused(arguments: dict[str, object], message: str) -> None:
    with pytest.raises(DescriptionError, match=message):
        sim.plan(lab(), **arguments)  # type: ignore[arg-type]
