"""Directions on common random numbers, job by job where theory promises it, and the extremes of every scale.

First come, first served without an order between jobs has no anomalies (Graham's need precedence): one more slot, a
wider limit or a quicker provider makes no job later, draw by draw, not only on average.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_run import free_profile, lab
from soundness import sound

from saqkit.errors import DescriptionError
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.workload import Workload
from sim.engine.model import Model
from sim.fit.profile import Profile

STREAM = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 80, "duration_s": 6}})
LIMIT = "queues__notifications__rate_limit"
CPU = "job_types__notify__per_user__cpu_us"
CONSTANT = {"kind": "constant", "mean_s": 0.02}


def run(
    fields: dict[str, Any],
    workload: Workload | int,
    workers: int = 1,
    slots: int = 5,
    batch: int | None = None,
    profile: Profile | None = None,
    seed: int = 4,
) -> pd.DataFrame:
    """A sound run's attempts, in order of jobs; without `batch`, of single jobs whose users need no database."""
    single: dict[str, Any] = {} if batch else {"entry": [{"job_type": "notify"}]}
    topology = lab(**{"job_types__notify__per_user__database": "none", **single, **fields})
    topology = topology.with_batch_size(batch) if batch else topology
    arriving = Workload.burst(workload) if isinstance(workload, int) else workload
    costs = (profile or free_profile()).costs(topology)
    deployment = Deployment(workers=workers, concurrency=slots, cores=max(2, workers))
    model = Model(topology, deployment, arriving, costs, seed)
    return sound(model, model.run()).sort_values(["job", "attempt"], ignore_index=True)


LATER: list[tuple[dict[str, Any], dict[str, Any]]] = [
    ({"slots": 6}, {"slots": 5}),
    ({"slots": 3}, {"slots": 2}),
    ({"workers": 3, "slots": 2}, {"workers": 1, "slots": 5}),
    ({"workers": 2, "slots": 2}, {"workers": 1, "slots": 3}),
    ({"fields": {LIMIT: {"limit": 41}}}, {"fields": {LIMIT: {"limit": 40}}}),
    ({"fields": {}}, {"fields": {LIMIT: {"limit": 70}}}),
    ({"fields": {LIMIT: {"limit": 40}}}, {"fields": {LIMIT: {"limit": 40, "period_s": 1.1}}}),
    ({}, {"fields": {"providers__email__latency__mean_s": 0.021}}),
    ({}, {"fields": {"job_types__notify__cpu_us": 500}, "slots": 1}),
    # One job at a time on a loop: jobs that share one may overtake each other, so that theory promises nothing there.
    ({"fields": {CPU: 5_000}, "slots": 1, "workers": 5}, {"fields": {CPU: 6_000}, "slots": 1, "workers": 5}),
]


@pytest.mark.parametrize("workload", [STREAM, 300], ids=["stream", "burst"])
@pytest.mark.parametrize(("less", "more"), LATER, ids=lambda value: str(value)[:60])
def test_no_job_is_earlier_with_less_to_serve_it(less: dict[str, Any], more: dict[str, Any], workload: Any) -> None:
    base = {"fields": {}}
    sooner, later = run(**{**base, **less, "workload": workload}), run(**{**base, **more, "workload": workload})
    assert (sooner["job"] == later["job"]).all()
    # A refused process asks again after a millisecond at the earliest, which may be after the limit opens.
    slack_s = 0.001 * (LIMIT in {**less.get("fields", {}), **more.get("fields", {})}) + 1e-9
    for column in ("started_at", "finished_at"):
        assert (sooner[column] <= later[column] + slack_s).all(), column
    assert later["finished_at"].sum() > sooner["finished_at"].sum()


@pytest.mark.parametrize("cores", [1, 2, 3])
def test_a_cpu_bound_drain_takes_the_work_over_the_cores(cores: int) -> None:
    """Three saturated loops: cores are the only thing that counts, to the last user of each process."""
    topology = lab(
        job_types__notify__per_user__cpu_us=2_000,
        job_types__notify__per_user__database="none",
        job_types__notify__per_user__provider="none",
    ).with_batch_size(50)
    deployment = Deployment(workers=3, concurrency=5, cores=cores)
    model = Model(topology, deployment, Workload.burst(3_000), free_profile().costs(topology), seed=1)
    frame = sound(model, model.run())
    assert frame["cpu_s"].sum() == pytest.approx(3_000 * 0.002)
    assert trace.makespan_s(frame) == pytest.approx(3_000 * 0.002 / cores, rel=0.01)


def test_nobody_arrives() -> None:
    """A burst has at least one user; a stream may bring nobody."""
    with pytest.raises(DescriptionError, match="greater than 0"):
        Workload.burst(0)
    nobody = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 1e-6, "duration_s": 1}})
    frame = run({}, nobody)
    assert frame.empty
    assert trace.measures(frame)["makespan_s"] == 0.0


def test_one_user_one_slot_one_page() -> None:
    fields = {"providers__email__latency": CONSTANT, "job_types__announce__fan_out__page_size": 1}
    frame = run(fields, 1, slots=1, batch=1)
    assert frame["users_done"].tolist() == [0, 1]
    assert trace.makespan_s(frame) == pytest.approx(0.02)


@pytest.mark.parametrize("users", [1, 9, 10, 11, 20])
def test_a_page_smaller_than_a_batch_is_one_batch(users: int) -> None:
    frame = run({"job_types__announce__fan_out__page_size": 1}, users, batch=10)
    sizes = frame.loc[frame["job_type"] == "notify", "users"].tolist()
    assert sorted(sizes, reverse=True) == [10] * (users // 10) + [users % 10] * (users % 10 > 0)


def test_a_batch_larger_than_the_audience_is_one_job_of_all() -> None:
    fields = {"providers__email__latency": CONSTANT, "job_types__announce__fan_out__page_size": 1_000_000}
    frame = run(fields, 70, batch=1_000_000)
    assert frame.loc[frame["job_type"] == "notify", "users"].tolist() == [70]
    assert trace.makespan_s(frame) == pytest.approx(70 * 0.02)


def test_one_slot_takes_as_long_as_the_work() -> None:
    frame = run({}, 200, slots=1)
    service = frame["finished_at"] - frame["started_at"]
    assert trace.makespan_s(frame) == pytest.approx(service.sum(), rel=1e-9)


def test_more_slots_than_users_take_as_long_as_the_longest() -> None:
    frame = run({}, 200, slots=1_000)
    assert trace.makespan_s(frame) == pytest.approx((frame["finished_at"] - frame["started_at"]).max(), rel=1e-9)
    assert (frame["started_at"] == 0).all()


def test_all_users_of_a_batch_at_once_take_as_long_as_the_longest() -> None:
    fields = {"job_types__notify__send_concurrency": 500, "providers__email__latency": CONSTANT}
    assert trace.makespan_s(run(fields, 100, batch=100, slots=1)) == pytest.approx(0.02)


@pytest.mark.parametrize("share", [0.0, 1.0])
def test_all_or_nothing_fails(share: float) -> None:
    fields = {
        "providers__email__temporary_share": share,
        "job_types__notify__retry": {"max_attempts": 4, "backoff": "fixed", "delay_s": 0.1},
    }
    frame = run(fields, 100)
    assert frame["outcome"].tolist() == (["done"] if share == 0 else ["retry", "retry", "retry", "dead"]) * 100
    assert frame["users_done"].sum() == 100 * (1 - share)
    assert frame["users_failed"].sum() == 100 * share


def test_a_limit_of_one_lets_one_job_in_each_period() -> None:
    frame = run({LIMIT: {"limit": 1, "period_s": 3.0}, "providers__email__latency": CONSTANT}, 20)
    assert np.diff(np.sort(frame["taken_at"])) == pytest.approx(3.0, rel=1e-9)


@pytest.mark.parametrize("resolution_s", [1.0, 60.0])
def test_timers_of_whole_minutes_make_every_send_a_minute_long(resolution_s: float) -> None:
    free = free_profile()
    coarse = free.model_copy(update={"host": free.host.model_copy(update={"timer_resolution_s": resolution_s})})
    fields = {"providers__email__latency": CONSTANT, "job_types__notify__timeout_s": 1e6}
    frame = run(fields, 20, batch=20, profile=coarse)
    assert trace.makespan_s(frame) == pytest.approx(20 * resolution_s, rel=1e-9)


def test_work_that_takes_no_time_takes_none() -> None:
    frame = run({"job_types__notify__per_user__provider": "none"}, 5_000, batch=100)
    assert trace.makespan_s(frame) == 0.0
    assert frame["users_done"].sum() == 5_000
