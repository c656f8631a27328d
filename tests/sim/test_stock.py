"""The model plays stock SAQ: its poll, its sweep, its single line, and what it loses."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from saq.utils import exponential_backoff
from simulated_run import free_profile, lab

import sim
from saqkit.errors import UsageError
from saqkit.spec.backoff import Retry
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.engine.coverage import beyond_fast
from sim.engine.outcome import Outcome
from sim.engine.stock import Lock, StockModel, delay_after, ignored
from sim.fit.profile import Estimate, Profile


@pytest.fixture(autouse=True)
def _sound() -> None:
    """What holds in every run of ours does not in stock SAQ's: a job may end twice, or be given up without an end."""


def jobs(**fields: Any) -> Topology:
    """One user is one job, that waits for 4 s and is repeated at once after a failure."""
    data: dict[str, Any] = {
        "name": "jobs",
        "entry": [{"job_type": "job"}],
        "queues": {"q": {"concurrency": 2}},
        "job_types": {
            "job": {
                "queue": "q",
                "timeout_s": 10,
                "retry": {"max_attempts": 3, "backoff": "fixed", "delay_s": 0},
                "per_user": {"provider": "p", "database": "none"},
            }
        },
        "providers": {"p": {"latency": {"kind": "constant", "mean_s": 4.0}}},
    }
    data["queues"]["q"] |= fields.pop("queue", {})
    data["providers"]["p"] |= fields.pop("provider", {})
    data["job_types"]["job"] |= fields
    return Topology.parse(data)


def play(
    topology: Topology,
    users: int,
    faults: list[dict[str, Any]] | None = None,
    *,
    workers: int = 1,
    up_s: float = 30.0,
    profile: Profile | None = None,
    arrivals: dict[str, Any] | None = None,
    seed: int = 0,
) -> tuple[pd.DataFrame, Outcome]:
    """One run on a nominal host; at the first event its workers have been up for `up_s`, and sweep at 60 - `up_s`."""
    arriving = arrivals or {"kind": "burst", "users": users}
    workload = Workload.parse({"arrivals": arriving, "faults": faults or []})
    costs = (profile or Profile.nominal()).costs(topology)
    outcome = StockModel(topology, Deployment(workers=workers), workload, costs, seed, up_s=up_s).run()
    return outcome.attempts(), outcome


def kill(at_s: float, worker: int = 0) -> dict[str, Any]:
    return {"kind": "kill_worker", "at_s": at_s, "worker": worker}


def column(rows: pd.DataFrame, name: str) -> list[Any]:
    return rows[name].tolist()


def test_a_job_takes_four_round_trips_to_begin_and_two_to_end() -> None:
    free = free_profile()
    wire = free.host.model_copy(update={"broker_wire_s": Estimate(value=0.010)})
    rows, _ = play(jobs(queue={"concurrency": 1}), 2, profile=free.model_copy(update={"host": wire}))
    first, second = rows.to_dict("records")
    assert first["started_at"] - first["taken_at"] == pytest.approx(0.035)  # BLMOVE's reply, GET, SET, PUBLISH
    assert first["finished_at"] - first["started_at"] == pytest.approx(4.005)  # half of the pipeline
    assert second["taken_at"] - first["finished_at"] == pytest.approx(0.020)  # its reply, PUBLISH, BLMOVE's way


@pytest.mark.parametrize("workers", [1, 4])
def test_retries_wake_at_the_poll_of_one_process_each_second(workers: int) -> None:
    retry = {"max_attempts": 3, "backoff": "fixed", "delay_s": 0.3}
    topology = jobs(retry=retry, provider={"latency": {"kind": "constant", "mean_s": 0.02}, "temporary_share": 0.5})
    arrivals = {"kind": "poisson", "rate_per_s": 20, "duration_s": 40}
    rows, _ = play(topology, 0, arrivals=arrivals, workers=workers, up_s=12.25)
    again = rows[rows["attempt"] > 1]
    ended = rows.set_index(["job", "attempt"])["finished_at"]
    due = np.array([ended[row.job, row.attempt - 1] + 0.3 for row in again.itertuples()])
    late = again["ready_at"].to_numpy() - due
    assert len(late) > 300
    assert late.min() >= -0.001  # the worker's clock is read before the call
    polls = np.unique(again["ready_at"])
    if workers == 1:
        assert polls[0] % 1 == pytest.approx(0.75, abs=0.01)  # it has polled since it started
    gaps = np.diff(polls)
    assert gaps.min() >= 1.0
    # Who finds its own lock leaves the next polls to another process, at that one's place in the second.
    on_the_second = np.minimum(gaps % 1, 1 - gaps % 1) < 0.01
    assert (~on_the_second).sum() <= (0 if workers == 1 else 4)
    # The lock of a second lives up to a millisecond longer: a process that alone polls finds its own now and then.
    assert (late > 1.01).mean() <= 0.15
    assert late.max() <= 2.01
    assert 0.4 < late.mean() < 0.6 + (late > 1.01).mean()


def test_a_lock_is_there_until_its_last_millisecond_is_over() -> None:
    lock = Lock()
    assert [lock.take(now_s, 1.0) for now_s in (0.0005, 0.5, 1.0005, 1.0015, 1.5)] == [True, False, False, True, False]


def test_stranded_jobs_come_back_one_every_five_seconds_after_the_sweep() -> None:
    rows, outcome = play(jobs(queue={"concurrency": 4}), 8, [kill(2.0, worker=1)], workers=2)
    lost, again = rows[rows["outcome"] == "lost"], rows[rows["attempt"] > 1]
    assert len(rows) == 12
    assert set(lost["worker"]) == {"w1"}
    taken = lost.sort_values("taken_at")
    assert column(taken.sort_values("finished_at", kind="stable"), "job") == column(taken, "job")
    assert lost["finished_at"].to_numpy() == pytest.approx([35, 40, 45, 50], abs=0.05)
    assert again["started_at"].to_numpy() == pytest.approx([35, 40, 45, 50], abs=0.05)
    assert column(again, "attempt") == [2] * 4
    assert column(again, "crashes") == [1] * 4
    assert rows["users_done"].sum() == 8
    assert outcome.drained


def test_with_one_attempt_they_are_aborted_and_never_run_again() -> None:
    once = {"max_attempts": 1, "backoff": "fixed", "delay_s": 0}
    rows, outcome = play(jobs(retry=once, queue={"concurrency": 4}), 8, [kill(2.0, worker=1)], workers=2)
    lost = rows[rows["outcome"] == "lost"]
    assert len(rows) == 8
    assert column(lost, "users_failed") == [1] * 4
    assert lost["finished_at"].to_numpy() == pytest.approx([35, 40, 45, 50], abs=0.05)
    assert outcome.drained
    assert outcome.ended_at_s == pytest.approx(50, abs=0.05)


def test_a_sweep_leaves_alone_what_has_not_run_for_longer_than_its_timeout() -> None:
    rows, _ = play(jobs(timeout_s=100), 2, [kill(1.0)])
    restarted_s = 1.0 + 1.5  # the sweep before that left them alone, and so does that after 60 s
    expected = [restarted_s + 120 + 5, restarted_s + 120 + 10]
    assert column(rows[rows["outcome"] == "lost"], "finished_at") == pytest.approx(expected, abs=0.05)


def test_a_process_that_dies_before_it_has_said_so_spends_no_attempt() -> None:
    once = jobs(retry={"max_attempts": 1, "backoff": "fixed", "delay_s": 0}, timeout_s=1000)
    undisturbed, _ = play(once, 1)
    (row,) = undisturbed.to_dict("records")
    rows, _ = play(once, 1, [kill((row["taken_at"] + row["started_at"]) / 2 - 2e-4)])
    assert column(rows, "outcome") == ["lost", "done"]
    assert column(rows, "attempt") == [1, 1]
    assert np.isnan(rows["started_at"][0])
    assert rows["finished_at"][0] == pytest.approx(1.5 + 60 + 5, abs=0.1)  # at the first sweep: it is not active


def test_a_sweeper_that_dies_between_abort_and_retry_loses_its_job_for_ever() -> None:
    rows, outcome = play(jobs(), 4, [kill(2.0, worker=1), kill(32.0, worker=0)], workers=2)
    first, second = rows[rows["outcome"] == "lost"].sort_values("taken_at").to_dict("records")
    assert first["finished_at"] == 32.0
    assert first["users_failed"] == 1
    assert (rows["job"] == first["job"]).sum() == 1  # though two more attempts were left
    assert second["finished_at"] > 60  # the lock of the sweeps is that of a dead process
    assert rows["users_done"].sum() == 3
    assert outcome.drained


def test_a_long_sweep_repeats_jobs_that_were_done_meanwhile() -> None:
    topology = jobs(queue={"concurrency": 4}, timeout_s=6)
    rows, _ = play(topology, 120, [kill(2.0, worker=1)], workers=2)
    done = rows[rows["outcome"] == "done"].groupby("job").size()
    swept = rows[(rows["taken_at"] < 30.0) & (rows["finished_at"] > 30.1) & (rows["outcome"] == "done")]
    assert len(swept) == 8  # they ran when the sweep began, which came to them too late
    assert (done[swept["job"]] == 2).all()
    assert (done.drop(swept["job"]) == 1).all()
    assert rows["users_done"].sum() == 120  # nobody is served anew
    again = rows[rows["job"].isin(swept["job"]) & (rows["attempt"] == 2)]["ready_at"].sort_values()
    assert np.diff(again) == pytest.approx(5.0, abs=0.05)


def test_with_a_ledger_a_repeated_job_finds_nobody_left() -> None:
    ledger = {"provider": "p", "database": "ledger"}
    topology = jobs(queue={"concurrency": 4}, timeout_s=6, per_user=ledger)
    rows, _ = play(topology, 120, [kill(2.0, worker=1)], workers=2)
    repeated = rows[(rows["attempt"] == 2) & (rows["crashes"] == 0)]
    assert len(repeated) == 8
    assert column(repeated, "users") == [0] * 8
    assert (repeated["finished_at"] - repeated["started_at"]).max() < 0.1


def test_there_is_one_line_whatever_the_priority_and_no_rate_limit() -> None:
    topology = Topology.parse(
        {
            "name": "levels",
            "entry": [
                {"job_type": "mail", "priority": "critical", "share": 0.2},
                {"job_type": "mail", "priority": "low", "share": 0.8},
            ],
            "queues": {"mail": {"concurrency": 2, "rate_limit": {"limit": 1}}},
            "job_types": {"mail": {"queue": "mail", "per_user": {"provider": "smtp", "database": "none"}}},
            "providers": {"smtp": {"latency": {"kind": "constant", "mean_s": 0.05}}},
        }
    )
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 60, "duration_s": 5}})
    found = sim.predict(topology, workload=workload, replications=1, queue="stock")
    rows = found.attempts.sort_values("queued_at", kind="stable")
    assert set(rows["priority"]) == {1, 4}
    assert rows["taken_at"].is_monotonic_increasing
    assert rows["finished_at"].max() < 15  # 300 jobs, one a second
    assert any("no priorities" in note for note in found.warnings)
    assert any("rate limit" in note and "queue mail" in note for note in found.warnings)
    assert not ignored(jobs())


@pytest.mark.parametrize("retry", [{"delay_s": 2.0}, {"delay_s": 0.5, "cap_s": 3.0}, {"delay_s": 0.0}])
def test_its_one_backoff_is_saqs(retry: dict[str, float]) -> None:
    policy = Retry(backoff="exponential", factor=5, max_attempts=9, **retry)  # type: ignore[arg-type]
    for failed in range(9):
        most = exponential_backoff(failed, policy.delay_s, policy.cap_s, jitter=False)
        assert delay_after(policy, failed, 0.25) == pytest.approx(most / 4)


def test_lists_and_fixed_delays_are_one_fixed_delay() -> None:
    assert delay_after(Retry(backoff="list", delays_s=(3, 9, 27)), 2, 0.1) == 3
    assert delay_after(Retry(backoff="fixed", delay_s=4, jitter="full"), 3, 0.1) == 4


def test_no_delay_of_stock_saq_is_longer_than_a_week_either() -> None:
    assert delay_after(Retry(delay_s=1e6, cap_s=1e7, max_attempts=9), 5, 0.5) == 7 * 86_400 / 2


def test_a_job_that_ends_while_the_broker_is_away_is_done_again() -> None:
    away = {"kind": "broker_restart", "at_s": 3.5, "down_s": 1.0}
    rows, outcome = play(jobs(), 1, [away])
    assert column(rows, "outcome") == ["lost", "done"]
    assert rows["finished_at"][0] == pytest.approx(35, abs=0.05)
    assert rows["provider_s"][0] == pytest.approx(4, abs=0.01)
    assert outcome.drained


def test_each_queue_has_processes_of_its_own_and_a_kill_takes_all_of_one() -> None:
    data = jobs().to_dict()
    data["queues"]["r"] = {"concurrency": 1}
    data["job_types"]["other"] = {**data["job_types"]["job"], "queue": "r"}
    data["entry"] = [{"job_type": "job", "share": 0.5}, {"job_type": "other", "share": 0.5}]
    arrivals = {"kind": "recorded", "at_s": [0.0, 0.1, 0.2, 0.3, 0.4, 0.5, 0.6, 0.7]}
    rows, _ = play(Topology.parse(data), 0, [kill(1.5, worker=1)], workers=2, arrivals=arrivals)
    assert set(rows.loc[rows["queue"] == "q", "worker"]) <= {"w0", "w2"}
    assert set(rows.loc[rows["queue"] == "r", "worker"]) <= {"w1", "w3"}
    assert set(rows.loc[rows["outcome"] == "lost", "worker"]) == {"w2", "w3"}


@pytest.mark.parametrize("seed", range(6))
def test_users_add_up_whatever_goes_wrong(seed: int) -> None:
    topology = lab(
        job_types__notify__timeout_s=8.0,
        job_types__announce__timeout_s=8.0,
        providers__email__temporary_share=0.03,
        providers__email__permanent_share=0.01,
    )
    faults = [kill(0.3 + 0.37 * seed, worker=1), kill(1.1 + 0.2 * seed), kill(33.0 + seed), kill(36.0, worker=2)]
    if seed % 2:
        faults.append({"kind": "broker_restart", "at_s": 0.8, "down_s": 1.5})
    rows, outcome = play(topology, 2_000, faults, workers=3, up_s=28.0 + seed, seed=seed)
    assert outcome.drained
    batches = rows[rows["job_type"] == "notify"]
    assert batches["users_done"].sum() + batches["users_failed"].sum() == 2_000
    assert "lost" in set(rows["outcome"])


def test_the_same_seed_gives_the_same_run() -> None:
    topology = lab(providers__email__temporary_share=0.05)
    once, again, other = (
        sim.predict(topology, users=1_000, workers=2, replications=1, seed=seed, queue="stock").attempts
        for seed in (3, 3, 4)
    )
    pd.testing.assert_frame_equal(once, again)
    assert not once["finished_at"].equals(other["finished_at"])


def test_small_jobs_show_what_its_round_trips_cost() -> None:
    # With a constant latency the slots fall into step, or do not, as the first moments have it.
    topology = jobs(queue={"concurrency": 10}, provider={"latency": {"kind": "lognormal", "mean_s": 0.001, "cv": 0.5}})
    ours, stock = (
        sim.predict(topology, users=3_000, replications=1, same_draw=True, queue=queue).combinations[0]
        for queue in ("saqkit", "stock")
    )
    assert stock.measures["makespan_s"]["mean"] > 1.2 * ours.measures["makespan_s"]["mean"]
    assert stock.settings["queue"] == "stock"
    assert stock.bottlenecks[0] in ("loop", "cores")


def test_it_can_be_one_of_the_scenarios_side_by_side() -> None:
    topology = jobs(queue={"concurrency": 10}, provider={"latency": {"kind": "constant", "mean_s": 0.001}})
    found = sim.what_if(topology, {"on stock SAQ": {"queue": "stock"}}, users=500, replications=3)
    assert found.scenarios["on stock SAQ"].settings["queue"] == "stock"
    assert found.summary().loc[("on stock SAQ", "makespan_s"), "lo"] > 0


def test_the_fast_engine_does_not_play_it() -> None:
    assert beyond_fast(jobs(), Deployment(), Workload.burst(1)) == ""
    assert "stock" in beyond_fast(jobs(), Deployment(), Workload.burst(1), queue="stock")


def test_another_queue_is_refused_in_one_line() -> None:
    with pytest.raises(UsageError, match='queue="celery": either "saqkit" or "stock"'):
        sim.predict(jobs(), users=1, queue="celery")  # type: ignore[arg-type]
