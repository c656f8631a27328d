"""Measured runs: what they count, and that every field of a description acts in the stated direction."""

from __future__ import annotations

from pathlib import Path

import pandas as pd
import pytest
from measured import LAB, attempts_by_job, expected, lab, run

from saqkit import Deployment, Run, Topology, Workload, measure
from saqkit.errors import DescriptionError, RunError
from saqkit.spec.trace import attempts_frame, steps_frame

USERS = 200
FAILING = {
    "providers__email__temporary_share": 0.3,
    "providers__email__permanent_share": 0.05,
    "providers__email__latency": {"kind": "constant", "mean_s": 0.002},
    "job_types__notify__retry": {"max_attempts": 3, "backoff": "fixed", "delay_s": 0.2},
}


@pytest.mark.parametrize("database", ["ledger", "none"])
async def test_every_attempt_is_the_one_that_the_draws_say(database: str, tmp_path: Path) -> None:
    topology = lab(**FAILING, job_types__notify__per_user__database=database)
    done = await run(topology, users=USERS, batch_size=20, concurrency=5, seed=3, out=tmp_path / "run.parquet")
    by_job = attempts_by_job(done.attempts[done.attempts["job_type"] == "notify"])
    assert by_job == {
        f"notify:1:{before}": expected(topology, list(range(before + 1, before + 21)), seed=3)
        for before in range(0, USERS, 20)
    }
    outcomes = {row[4] for rows in by_job.values() for row in rows}
    assert outcomes == {"done", "retry", "dead"}, "the seed is to show all three"
    fan_out = done.attempts[done.attempts["job_type"] == "announce"].iloc[0]
    assert (fan_out["users"], fan_out["outcome"], fan_out["parent"]) == (0, "done", "")
    assert set(done.attempts["parent"]) == {"", "announce:1"}

    assert list(done.attempts.dtypes.items()) == list(attempts_frame([]).dtypes.items())
    assert list(done.steps.dtypes.items()) == list(steps_frame([]).dtypes.items())
    kinds = done.steps.groupby("step")["user"].nunique()
    assert kinds["cpu"] == kinds["provider"] == USERS  # few users: each is sampled
    saved = Run.load(tmp_path / "run.parquet")
    pd.testing.assert_frame_equal(saved.attempts, done.attempts)
    pd.testing.assert_frame_equal(saved.steps, done.steps)
    assert (saved.topology, saved.workload, saved.deployment) == (done.topology, done.workload, done.deployment)

    retried = done.attempts[done.attempts["attempt"] > 1].sort_values(["job", "attempt"])
    before = done.attempts.set_index(["job", "attempt"])["finished_at"]
    for row in retried.itertuples():
        assert row.ready_at >= before[(row.job, row.attempt - 1)] + 0.2, "a retry waits for its delay"


async def test_the_same_seed_counts_the_same_on_another_deployment() -> None:
    topology = lab(**FAILING, job_types__notify__send_concurrency=4)
    columns = ["job", "attempt", "users", "users_done", "users_failed", "outcome", "event", "parent", "priority"]
    done = await run(topology, users=USERS, batch_size=20, workers=2, concurrency=3, seed=3)
    one = done.attempts[columns].sort_values(["job", "attempt"]).reset_index(drop=True)
    assert attempts_by_job(done.attempts)["notify:1:0"] == expected(topology, list(range(1, 21)), seed=3)
    assert set(done.attempts["worker"]) == {"worker-0", "worker-1"}
    assert len(one) == len(one.drop_duplicates(["job", "attempt"]))


@pytest.mark.row("000.18")
async def test_concurrency_and_send_concurrency_shorten_a_run() -> None:
    slow = {"kind": "constant", "mean_s": 0.01}
    one = await run(lab(providers__email__latency=slow), users=100, batch_size=20, concurrency=1)
    assert one.measures()["makespan_s"] > 1.0  # 100 users one after the other
    five = await run(lab(providers__email__latency=slow), users=100, batch_size=20, concurrency={"notifications": 5})
    lanes = lab(providers__email__latency=slow, job_types__notify__send_concurrency=5)
    at_once = await run(lanes, users=100, batch_size=20, concurrency=1)
    for shorter in (five, at_once):
        assert shorter.measures()["makespan_s"] < 0.7 * one.measures()["makespan_s"]
        assert shorter.attempts["provider_s"].sum() >= 100 * 0.01
    assert len(one.attempts) == 6


@pytest.mark.row("000.18")
async def test_more_workers_shorten_a_run_and_larger_batches_only_while_every_slot_has_one() -> None:
    """Eight batches of 25 on one worker of two slots: 1 s; on two workers half of it; one batch of 200: 2 s."""
    slow = lab(providers__email__latency={"kind": "constant", "mean_s": 0.01})
    made = {
        (workers, size): await run(slow, users=200, batch_size=size, workers=workers, concurrency=2)
        for workers, size in ((1, 25), (2, 25), (1, 50), (1, 200))
    }
    took = {how: one.measures()["makespan_s"] for how, one in made.items()}
    jobs = {how: int((one.attempts["job_type"] == "notify").sum()) for how, one in made.items()}
    assert jobs == {(1, 25): 8, (2, 25): 8, (1, 50): 4, (1, 200): 1}
    assert took[1, 25] > 1.0, "200 users of 10 ms on two slots"
    assert took[2, 25] < 0.75 * took[1, 25], "twice the slots"
    assert took[1, 50] > 1.0, "twice the batch brings nothing that two slots could do"
    assert took[1, 200] > 2.0, "too large a batch leaves a slot empty"


@pytest.mark.row("000.18")
async def test_groups_follow_ups_and_two_queues() -> None:
    data = lab().to_dict()
    data["queues"]["archive"] = {"concurrency": 2}
    data["job_types"]["archive"] = {"queue": "archive", "priority": "low", "cpu_us": 100}
    data["job_types"]["notify"]["follow_up"] = [{"to": "archive"}]
    deployment = Deployment.parse({"groups": [{"queues": ["notifications"]}, {"queues": ["archive"]}]})
    done = await run(Topology.parse(data), users=50, batch_size=20, deployment=deployment)
    rows = done.attempts.set_index("job").sort_index()
    assert list(rows.groupby("job_type")["users_done"].sum().items()) == [
        ("announce", 0),
        ("archive", 50),
        ("notify", 50),
    ]
    assert rows.loc["archive:notify:1:40", "parent"] == "notify:1:40"
    assert rows.loc["archive:notify:1:40", "users"] == 10
    assert set(rows[rows["queue"] == "archive"]["worker"]) == {"worker-1"}
    assert set(rows[rows["queue"] == "notifications"]["worker"]) == {"worker-0"}
    assert set(rows[rows["queue"] == "archive"]["priority"]) == {4}
    assert [worker["jobs"] for worker in done.workers] == [4, 3]


async def test_a_job_for_each_user_with_recorded_arrivals() -> None:
    data = lab(job_types__notify__per_user__database="none").to_dict()
    data["entry"] = [{"job_type": "notify", "priority": "high", "tenant": "north"}]
    workload = Workload.parse({"arrivals": {"kind": "recorded", "at_s": [5.0, 5.4, 5.4], "users": [3, 1, 2]}})
    done = await run(Topology.parse(data), workload=workload)
    rows = done.attempts.sort_values("job")
    assert list(rows["job"]) == ["notify:1:1", "notify:1:2", "notify:1:3", "notify:2:1", "notify:3:1", "notify:3:2"]
    assert set(rows["users"]) == {1}
    assert set(rows["priority"]) == {2}
    assert set(rows["tenant"]) == {"north"}
    times = rows.groupby("event")["event_at"].first()
    assert times["1"] == 0  # the first event is the beginning, whenever the workload's was
    assert 0.39 < times["2"] < 1.4


async def test_poisson_arrivals_take_the_entries_that_their_draws_say() -> None:
    data = lab().to_dict()
    data["entry"] = [
        {"job_type": "announce", "share": 0.5, "priority": "critical"},
        {"job_type": "notify", "share": 0.5},
    ]
    topology = Topology.parse(data)
    workload = Workload.parse(
        {"arrivals": {"kind": "poisson", "rate_per_s": 20, "duration_s": 0.6, "users_per_event": 4}}
    )
    events = list(workload.events(topology, 5))
    assert len({event.entry.job_type for event in events}) == 2
    done = await run(topology, workload=workload, seed=5)
    assert done.measures()["users_done"] == 4 * len(events)
    rows = done.attempts.groupby("event").agg(jobs=("job", "count"), priority=("priority", "max"))
    for event in events:
        fans_out = event.entry.job_type == "announce"
        assert tuple(rows.loc[str(event.event)]) == ((2, 1) if fans_out else (4, 3))


async def test_the_cpu_of_users_is_measured() -> None:
    done = await run(lab(job_types__notify__per_user__cpu_us=2000), users=50, batch_size=10)
    scale = done.facts["yardstick"]
    served = done.attempts[done.attempts["job_type"] == "notify"]
    assert 0.6 * 50 * 0.002 * scale < served["cpu_s"].sum() < 4 * 50 * 0.002 * scale
    assert served["cpu_s"].sum() < sum(worker["cpu_s"] for worker in done.workers) + 0.05
    cpu = done.steps[done.steps["step"] == "cpu"]
    assert len(cpu) == 50
    assert cpu["took_s"].sum() < served["cpu_s"].sum()


async def test_a_rate_limit_spreads_a_run() -> None:
    limited = lab(queues__notifications__rate_limit={"limit": 3, "period_s": 0.5, "unit": "jobs"})
    done = await run(limited, users=40, batch_size=5)  # 9 jobs: three windows
    taken = done.attempts["taken_at"].sort_values().to_list()
    assert len(taken) == 9
    assert all(later - earlier >= 0.499 for earlier, later in zip(taken, taken[3:], strict=False))


async def test_a_job_that_takes_longer_than_its_timeout_dies_and_leaves_its_users_failed() -> None:
    topology = lab(
        providers__email__latency={"kind": "constant", "mean_s": 0.25},
        job_types__notify__timeout_s=0.6,
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 0},
    )
    done = await run(topology, users=8, batch_size=8)
    rows = done.attempts[done.attempts["job_type"] == "notify"].sort_values("attempt")
    assert list(rows["outcome"]) == ["retry", "dead"]
    assert list(rows["error"]) == ["TimeoutError", "TimeoutError"]
    assert list(rows["users"]) == [8, 8 - rows["users_done"].iloc[0]]
    assert 1 <= rows["users_done"].iloc[0] <= 2


@pytest.mark.parametrize(
    ("how", "words"),
    [
        ({}, "either users or a workload"),
        ({"users": 0}, "users"),
        ({"users": 10, "concurrency": {"nobody": 1}}, 'no queue "nobody"'),
        ({"users": 10, "deployment": Deployment(hosts=2)}, "measure one host, predict several"),
        ({"users": 10, "deployment": Deployment(cores=4096)}, "this host has"),
        ({"users": 10, "deployment": Deployment(database="postgresql://x/y")}, "SQLite file of its own"),
        ({"users": 10, "out": "/nowhere/at/all.parquet"}, "cannot be saved there"),
        (
            {"workload": Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 1e-9, "duration_s": 1}})},
            "no users",
        ),
        (
            {
                "redis": "redis://127.0.0.1:1",
                "workload": Workload.parse(
                    {"arrivals": {"kind": "burst", "users": 1}, "faults": [{"kind": "broker_restart", "at_s": 0}]}
                ),
            },
            "needs the private broker",
        ),
    ],
)
async def test_a_wrong_description_is_refused_before_anything_starts(how: dict[str, object], words: str) -> None:
    with pytest.raises((DescriptionError, RunError), match=words) as caught:
        await measure(LAB, **how)  # type: ignore[arg-type]
    assert "\n" not in str(caught.value)


async def test_a_deployment_may_keep_a_run_to_one_core() -> None:
    slow = lab(job_types__notify__per_user__cpu_us=3000, providers__email__latency={"kind": "constant", "mean_s": 0})
    deployment = Deployment(cores=1, workers=2, concurrency=1)
    one = await run(slow, users=200, batch_size=20, deployment=deployment)
    scale = min(one.facts["yardstick"], one.facts["yardstick"] * (1 + one.facts["yardstick_drift"]))
    assert one.measures()["makespan_s"] > 0.8 * 200 * 0.003 * scale  # no two at once
