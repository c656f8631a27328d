"""The model as a whole: every mechanism acts, and acts as described."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.errors import DescriptionError
from saqkit.spec import trace
from saqkit.spec.backoff import Retry
from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniform, uniforms
from saqkit.spec.lifecycle import on_tick
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload

TWO_LEVELS: dict[str, Any] = {
    "name": "levels",
    "entry": [
        {"job_type": "mail", "priority": "critical", "share": 0.2, "tenant": "a"},
        {"job_type": "mail", "priority": "low", "share": 0.8, "tenant": "b"},
    ],
    "queues": {"mail": {"concurrency": 2}},
    "job_types": {"mail": {"queue": "mail", "per_user": {"provider": "smtp", "database": "none"}}},
    "providers": {"smtp": {"latency": {"kind": "constant", "mean_s": 0.05}}},
}


def run(topology: Topology, users: int = 1_000, **settings: Any) -> pd.DataFrame:
    """One noise-free replication's attempts."""
    given: dict[str, Any] = {"replications": 1, "same_draw": True, **settings}
    if "workload" not in given:
        given["users"] = users
    return sim.predict(topology, **given).attempts


def burst(users: int, *faults: dict[str, Any]) -> Workload:
    return Workload.parse({"arrivals": {"kind": "burst", "users": users}, "faults": faults})


def test_the_table_has_the_columns_and_types_of_a_measured_one() -> None:
    frame = run(lab())
    assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == trace.ATTEMPTS
    assert (frame["run"] == "predicted").all()
    assert (frame["event_at"] == 0).all()
    order = frame[["queued_at", "ready_at", "taken_at", "started_at", "finished_at"]].to_numpy()
    assert (np.diff(order, axis=1) >= 0).all()
    spent = frame["provider_s"] + frame["database_s"]
    assert (spent <= frame["finished_at"] - frame["started_at"] + 1e-9).all()


def test_a_fan_out_cuts_whole_batches_in_order() -> None:
    frame = run(lab(job_types__announce__fan_out__page_size=250), 730)
    entry, batches = frame[frame["job_type"] == "announce"], frame[frame["job_type"] == "notify"]
    assert entry["users"].tolist() == [0]
    assert (batches["parent"] == entry["job"].iloc[0]).all()
    assert sorted(batches["users"]) == [30, *[100] * 7]
    assert batches["queued_at"].nunique() == 4  # a page of two whole batches at a time


def test_the_same_seed_gives_the_same_table_and_another_seed_another() -> None:
    topology = lab(providers__email__temporary_share=0.05)
    once, again, other = (run(topology, 2_000, workers=2, seed=seed, same_draw=False) for seed in (3, 3, 4))
    pd.testing.assert_frame_equal(once, again)
    assert not once["finished_at"].equals(other["finished_at"])


def test_users_get_the_draws_that_the_real_engine_gives_them() -> None:
    topology = lab(providers__email__permanent_share=0.1)
    frame = run(topology, 400, seed=9)
    batches = frame[frame["job_type"] == "notify"].sort_values("job")
    email = topology.providers["email"]
    for row in batches.itertuples():
        first = int(str(row.job).rsplit("-", 1)[1])
        users = np.arange(first, first + 100)
        drawn = email.latency.quantiles(uniforms(9, Stream.LATENCY, 1, users, 1))
        assert drawn.sum() < float(str(row.provider_s)) < drawn.sum() + 100 * 0.0025
        refused = uniforms(9, Stream.PERMANENT, 1, users) < 0.1
        assert row.users_failed == refused.sum()


@pytest.mark.parametrize(
    "retry",
    [
        {"backoff": "list", "delays_s": [0.7, 1.9]},
        {"backoff": "exponential", "delay_s": 0.5, "factor": 3},
        {"backoff": "fixed", "delay_s": 0.3, "jitter": "full", "max_attempts": 5},
        {"backoff": "fixed", "delay_s": 1.0, "jitter": "equal"},
    ],
)
def test_a_retry_wakes_on_the_tick_after_its_delay(retry: dict[str, Any]) -> None:
    topology = lab(job_types__notify__retry={"max_attempts": 3, **retry}, providers__email__temporary_share=0.5)
    policy = topology.job_types["notify"].retry
    assert isinstance(policy, Retry)
    frame = run(topology, 400, seed=2, batch_size=20)
    jobs = frame[frame["job_type"] == "notify"].sort_values(["job", "attempt"])
    retried = 0
    for job, rows in jobs.groupby("job"):
        first = int(str(job).rsplit("-", 1)[1])
        for (_, before), (_, after) in zip(rows.iloc[:-1].iterrows(), rows.iloc[1:].iterrows(), strict=True):
            delay = policy.delay_after(before["attempt"], uniform(2, Stream.JITTER, 1, first, before["attempt"]))
            assert after["ready_at"] == pytest.approx(on_tick(before["finished_at"] + delay, 0.2), abs=1e-9)
            assert after["users"] == before["users"] - before["users_done"]
            retried += 1
    assert retried > 20


def test_a_retry_without_a_delay_joins_the_line_at_once_whatever_the_tick() -> None:
    fields = {"queues__notifications__tick_s": 5.0, "providers__email__temporary_share": 0.5}
    retry = {"max_attempts": 3, "backoff": "fixed", "delay_s": 0.0}
    jobs = run(lab(job_types__notify__retry=retry, **fields), 400).query("job_type == 'notify'")
    again = jobs[jobs["attempt"] > 1]
    assert len(again) > 5
    ended = jobs.set_index(["job", "attempt"])["finished_at"]
    for row in again.itertuples():
        assert row.ready_at == ended[row.job, row.attempt - 1]


def test_a_high_priority_job_never_waits_for_a_lower_one() -> None:
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 60, "duration_s": 10}})
    frame = run(Topology.parse(TWO_LEVELS), workload=workload)
    assert set(frame["tenant"]) == {"a", "b"}
    high, low = frame[frame["priority"] == 1], frame[frame["priority"] == 4]
    for row in low.itertuples():
        waiting = (high["ready_at"] < float(str(row.taken_at))) & (high["taken_at"] > float(str(row.taken_at)))
        assert not waiting.any()
    assert (
        high["taken_at"].is_monotonic_increasing
        or (high.sort_values("ready_at")["taken_at"].diff().dropna() >= 0).all()
    )
    assert (high["started_at"] - high["ready_at"]).quantile(0.95) < (low["started_at"] - low["ready_at"]).median()


@pytest.mark.parametrize(("unit", "limit"), [("jobs", 7), ("users", 130), ("users", 30)])
def test_no_second_sees_more_than_the_rate_limit(unit: str, limit: int) -> None:
    frame = run(lab(queues__notifications__rate_limit={"limit": limit, "unit": unit}), 1_500, workers=2, batch_size=50)
    taken = frame.sort_values("taken_at")
    weight = np.maximum(1, taken["users"]) if unit == "users" else np.ones(len(taken))
    times = taken["taken_at"].to_numpy()
    for n, at in enumerate(times):
        inside = weight[(times >= at) & (times < at + 1.0 - 1e-9)]
        assert inside.sum() <= limit or len(inside) == 1, n
    if limit == 30:  # each job is heavier than the limit: it blocks weight / limit periods
        assert np.diff(times)[1:].min() >= 50 / 30 - 1e-6
    done = weight.sum() / limit
    assert done * 0.8 < times[-1] < done * 1.1 + 3


def test_a_provider_that_always_fails_fills_the_dead_letters() -> None:
    frame = run(lab(providers__email__temporary_share=1.0), 300)
    jobs = frame[frame["job_type"] == "notify"]
    assert jobs.groupby("job")["outcome"].agg(list).tolist() == [["retry", "retry", "dead"]] * 3
    assert jobs["users_done"].sum() == 0
    assert jobs["users_failed"].sum() == 300
    assert (jobs["error"] == "TemporaryFailure").all()


def test_a_permanent_failure_is_never_repeated() -> None:
    frame = run(lab(providers__email__permanent_share=1.0), 300)
    jobs = frame[frame["job_type"] == "notify"]
    assert jobs["outcome"].tolist() == ["done"] * 3
    assert jobs["users_failed"].sum() == 300


def test_an_attempt_over_its_timeout_fails_and_the_next_one_serves_those_left() -> None:
    frame = run(lab(job_types__notify__timeout_s=0.9), 100)
    jobs = frame[frame["job_type"] == "notify"].sort_values("attempt")
    assert jobs["outcome"].tolist() == ["retry", "retry", "done"]
    assert jobs["error"].tolist() == ["TimeoutError", "TimeoutError", ""]
    assert (jobs["finished_at"] - jobs["started_at"]).iloc[0] == pytest.approx(0.9, abs=0.01)
    assert jobs["users"].tolist()[1:] == (jobs["users"] - jobs["users_done"]).tolist()[:-1]
    assert jobs["users_done"].sum() == 100


def test_a_send_over_the_providers_timeout_is_a_temporary_failure() -> None:
    frame = run(lab(providers__email__timeout_s=0.02, job_types__notify__retry__max_attempts=1), 1_000)
    failed = frame["users_failed"].sum()
    assert 350 < failed < 550  # the median of this lognormal is 18 ms


def test_a_follow_up_serves_the_same_users_once_its_parent_is_done() -> None:
    data = lab().to_dict()
    data["job_types"]["audit"] = {"queue": "notifications", "priority": "low"}
    data["job_types"]["notify"]["follow_up"] = [{"to": "audit"}]
    frame = run(Topology.parse(data), 350)
    parents = frame[frame["job_type"] == "notify"].set_index("job")
    follow = frame[frame["job_type"] == "audit"]
    assert sorted(follow["users"]) == [50, 100, 100, 100]
    assert set(follow["parent"]) == set(parents.index)
    assert (follow["queued_at"].to_numpy() == parents.loc[follow["parent"], "finished_at"].to_numpy()).all()
    assert (follow["priority"] == 4).all()


def test_a_killed_worker_loses_its_jobs_and_they_are_recovered_in_time() -> None:
    topology = lab(queues__notifications__lease_s=1.0, queues__notifications__sweep_s=0.5)
    frame = run(topology, workload=burst(3_000, {"kind": "kill_worker", "at_s": 1.0, "worker": 1}), workers=2)
    lost = frame[frame["outcome"] == "lost"]
    assert len(lost) == 5
    assert set(lost["worker"]) == {"w1"}
    assert lost["finished_at"].between(1.0 + 2 / 3, 1.0 + 1.0 + 0.5 + 0.1).all()
    assert lost["finished_at"].nunique() == 1
    assert (lost["crashes"] == 1).all()
    again = frame[frame["job"].isin(lost["job"]) & (frame["outcome"] == "done")]
    assert (again["attempt"] == 1).all()
    assert frame["users_done"].sum() == 3_000
    assert (frame[frame["worker"] == "w1"]["started_at"] > 1.5).any(), "the worker is started again"


@pytest.mark.parametrize("field", ["lease_s", "sweep_s"])
def test_a_longer_lease_or_rarer_sweep_recovers_later(field: str) -> None:
    workload = burst(1_000, {"kind": "kill_worker", "at_s": 0.5, "worker": 0})
    recovered = []
    for seconds in (1.0, 8.0):
        topology = lab(
            **{
                "queues__notifications__lease_s": 1.0,
                "queues__notifications__sweep_s": 1.0,
                f"queues__notifications__{field}": seconds,
            }
        )
        frame = run(topology, workload=workload, workers=2)
        recovered.append(float(frame.loc[frame["outcome"] == "lost", "finished_at"].min()))
    assert recovered[1] > recovered[0] + 1.0


def test_a_job_that_takes_its_worker_along_three_times_is_poison() -> None:
    topology = lab(
        queues__notifications__lease_s=0.3, queues__notifications__sweep_s=0.1, providers__email__latency__mean_s=1.0
    )
    kills = [{"kind": "kill_worker", "at_s": at, "worker": 0} for at in (3.0, 6.0, 9.0)]
    frame = run(topology, workload=burst(100, *kills))
    notify = frame[frame["job_type"] == "notify"]
    assert notify["outcome"].tolist() == ["lost"] * 3
    assert notify["crashes"].tolist() == [1, 2, 3]
    assert notify["users_done"].sum() + notify["users_failed"].sum() == 100


def test_during_an_outage_every_send_fails_at_once() -> None:
    workload = burst(3_000, {"kind": "provider_outage", "at_s": 1.0, "duration_s": 2.0, "provider": "email"})
    frame = run(lab(), workload=workload, workers=2)
    inside = frame[(frame["started_at"] > 1.0) & (frame["finished_at"] < 3.0) & (frame["job_type"] == "notify")]
    assert len(inside) > 0
    assert (inside["users_done"] == 0).all()
    assert (inside["outcome"] == "retry").all()
    calm = run(lab(), 3_000, workers=2)
    assert trace.makespan_s(frame) > trace.makespan_s(calm) + 1.0
    assert (calm["outcome"] == "done").all()


def test_nothing_is_taken_or_finished_while_the_broker_is_down() -> None:
    frame = run(lab(), workload=burst(3_000, {"kind": "broker_restart", "at_s": 1.0, "down_s": 3.0}), workers=2)
    for column in ("taken_at", "finished_at", "queued_at"):
        assert not frame[column].between(1.001, 3.999).any()
    assert frame["users_done"].sum() == 3_000


@pytest.mark.parametrize(
    ("kind", "text"),
    [
        ({"kind": "provider_outage", "at_s": 1, "duration_s": 1, "provider": "emial"}, "emial"),
        ({"kind": "kill_worker", "at_s": 1, "worker": 2}, "worker process 2"),
    ],
)
def test_a_fault_that_hits_nothing_is_refused(kind: dict[str, Any], text: str) -> None:
    with pytest.raises(DescriptionError, match=text):
        run(lab(), workload=burst(100, kind), workers=2)


DIRECTIONS: list[tuple[dict[str, Any], str, str]] = [
    ({"queues__notifications__concurrency": 10}, "makespan_s", "<"),
    ({"queues__notifications__rate_limit": {"limit": 5}}, "makespan_s", ">"),
    ({"queues__notifications__tick_s": 5.0}, "latency_p99_s", ">"),
    ({"job_types__notify__retry__max_attempts": 1}, "retries", "<"),
    ({"job_types__notify__retry__delay_s": 20.0}, "makespan_s", ">"),
    ({"job_types__notify__retry__factor": 50.0}, "makespan_s", ">"),
    ({"job_types__notify__retry__cap_s": 0.1}, "makespan_s", "<"),
    ({"job_types__notify__timeout_s": 1.0}, "retries", ">"),
    ({"job_types__notify__cpu_us": 200_000}, "makespan_s", ">"),
    ({"job_types__notify__per_user__cpu_us": 5_000}, "makespan_s", ">"),
    ({"job_types__notify__per_user__database": "none"}, "makespan_s", "<"),
    ({"job_types__notify__per_user__provider": "none"}, "makespan_s", "<"),
    ({"job_types__notify__send_concurrency": 10}, "makespan_s", "<"),
    ({"job_types__announce__fan_out__batch_size": 1_000}, "attempts", "<"),
    ({"job_types__announce__fan_out__page_size": 100}, "latency_mean_s", ">"),
    ({"job_types__announce__cpu_us": 500_000}, "makespan_s", ">"),
    ({"providers__email__latency__mean_s": 0.04}, "makespan_s", ">"),
    ({"providers__email__latency__cv": 3.0}, "latency_p99_s", ">"),
    ({"providers__email__temporary_share": 0.2}, "retries", ">"),
    ({"providers__email__permanent_share": 0.2}, "users_failed", ">"),
    ({"providers__email__timeout_s": 0.03}, "retries", ">"),
]


@pytest.mark.parametrize(("fields", "measure", "direction"), DIRECTIONS, ids=lambda value: str(value)[:60])
def test_a_field_acts_in_the_stated_direction(fields: dict[str, Any], measure: str, direction: str) -> None:
    """On common random numbers; where retries are to move, the baseline has some."""
    retrying = measure == "retries" or any("retry" in name or "tick" in name for name in fields)
    base = {"providers__email__temporary_share": 0.05 if retrying else 0.0}
    before = trace.measures(run(lab(**base), 3_000, workers=2, seed=4))
    after = trace.measures(run(lab(**{**base, **fields}), 3_000, workers=2, seed=4))
    assert after[measure] < before[measure] if direction == "<" else after[measure] > before[measure]


def test_more_workers_and_cores_are_faster_and_a_network_is_slower() -> None:
    topology = lab(job_types__notify__per_user__cpu_us=3_000)
    spans = [
        trace.makespan_s(run(topology, 4_000, deployment=Deployment.parse(deployment)))
        for deployment in (
            {"workers": 1, "concurrency": 20},
            {"workers": 2, "concurrency": 20},
            {"workers": 4, "concurrency": 20, "cores": 4},
            {"workers": 4, "concurrency": 20, "cores": 1},
            {"workers": 2, "hosts": 2, "concurrency": 20},
            {"workers": 2, "hosts": 2, "concurrency": 20, "network_round_trip_ms": 200},
        )
    ]
    one, two, four, crowded, hosts, far = spans
    assert one > 1.7 * two > 2.5 * four
    assert crowded == pytest.approx(one, rel=0.1), "four busy processes on one core are no faster than one"
    assert hosts == pytest.approx(four, rel=0.1)
    assert far > hosts + 0.2


def test_groups_serve_their_own_queues_only() -> None:
    data = lab().to_dict()
    data["queues"]["control"] = {"concurrency": 1}
    data["job_types"]["announce"]["queue"] = "control"
    groups = [{"queues": ["control"], "processes": 1}, {"queues": ["notifications"], "processes": 2}]
    frame = run(Topology.parse(data), 1_000, deployment=Deployment.parse({"groups": groups}))
    assert set(frame[frame["queue"] == "control"]["worker"]) == {"w0"}
    assert set(frame[frame["queue"] == "notifications"]["worker"]) == {"w1", "w2"}


def test_a_free_host_adds_nothing_to_the_described_work() -> None:
    topology = lab(
        providers__email__latency={"kind": "constant", "mean_s": 0.02}, job_types__notify__per_user__cpu_us=1_000
    )
    frame = run(topology, 100, concurrency=1, profile=free_profile())
    assert trace.makespan_s(frame) == pytest.approx(100 * 0.021, rel=1e-9)


def test_arrivals_keep_their_times_after_the_first_event() -> None:
    workload = Workload.parse({"arrivals": {"kind": "recorded", "at_s": [5.0, 7.5, 11.0], "users": [100, 200, 50]}})
    frame = run(lab(), workload=workload)
    assert sorted(frame["event_at"].unique()) == [0.0, 2.5, 6.0]
    assert frame.groupby("event")["users_done"].sum().to_dict() == {"1": 100, "2": 200, "3": 50}
