"""What stands before a provider in the model: its rate over all processes, its connections, its circuit breaker."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given
from hypothesis import strategies as st
from simulated_run import free_profile, lab

import sim
from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import SendRate, Topology
from saqkit.spec.turns import Slack
from saqkit.spec.workload import Workload
from sim.engine.coverage import beyond_fast
from sim.engine.providers import Turns

LATENCY_S = 0.05


def singles(**provider: Any) -> Topology:
    """A job for each user, whose only work is one send of constant latency."""
    return Topology.parse(
        {
            "name": "singles",
            "entry": [{"job_type": "mail"}],
            "queues": {"mail": {"concurrency": 20}},
            "job_types": {"mail": {"queue": "mail", "per_user": {"provider": "smtp", "database": "none"}}},
            "providers": {"smtp": {"latency": {"kind": "constant", "mean_s": LATENCY_S}, **provider}},
        }
    )


def run(topology: Topology, users: int = 200, **settings: Any) -> pd.DataFrame:
    given: dict[str, Any] = {"profile": free_profile(), "replications": 1, "same_draw": True, "workers": 2, **settings}
    if "workload" not in given:
        given["users"] = users
    return sim.predict(topology, **given).attempts


def begins(frame: pd.DataFrame) -> np.ndarray[Any, Any]:
    """When the send of each job began: nothing comes after it."""
    return np.sort(frame["finished_at"].to_numpy(float) - LATENCY_S)


@given(
    limit=st.integers(1, 12),
    asks=st.lists(
        st.tuples(st.floats(0, 0.5), st.integers(1, 20), st.floats(0, 0.3), st.floats(0, 1), st.integers(1, 5)),
        min_size=1,
        max_size=40,
    ),
)
def test_however_late_within_their_slack_sends_begin_no_window_has_more_than_the_limit(
    limit: int, asks: list[tuple[float, int, float, float, int]]
) -> None:
    turns, now, began, unused = Turns(SendRate(limit=limit, period_s=1.0)), 0.0, [], list[int]()
    for gap_s, many, slack_s, late, every in asks:
        now += gap_s
        given, unused = turns.reserve(now, slack_s, many, unused), []
        for number, wait_s in given:
            assert wait_s >= 0
            if number % every:
                began.append(now + wait_s + late * slack_s)
            else:
                unused.append(number)
    times = np.sort(began)
    assert (times[limit:] - times[:-limit] >= 1.0 - 1e-9).all()


def test_turns_are_given_as_soon_as_the_limit_allows() -> None:
    turns = Turns(SendRate(limit=3, period_s=1.0))

    def waits(*ask: Any) -> list[float]:
        return [wait for _, wait in turns.reserve(*ask)]

    assert waits(10.0, 0.1, 4) == pytest.approx([0, 0, 0, 1.1])
    assert waits(10.5, 0.1, 3) == pytest.approx([0.6, 0.6, 1.7])
    assert waits(20.0, 0.1, 4) == pytest.approx([0, 0, 0, 1.1])
    assert waits(20.1, 0.1, 2, [8, 11]) == pytest.approx([0, 1.0]), "what nobody took is given to others"


def test_slack_grows_where_a_turn_was_missed_and_goes_back() -> None:
    slack = Slack(1.0)
    assert slack.seconds == 0.01
    slack.missed(0.05)
    assert slack.seconds == pytest.approx(0.0125)
    for _ in range(50):  # together, for one reason
        slack.missed(0.05)
    assert slack.seconds == pytest.approx(0.0625)
    for _ in range(500):
        slack.kept()
    assert slack.seconds == 0.01
    assert Slack(0.1).seconds == 0.005


@pytest.mark.parametrize(("limit", "period_s"), [(14, 1.0), (30, 0.5)])
def test_no_window_sees_more_than_the_rate_over_all_processes_and_hardly_less(limit: int, period_s: float) -> None:
    frame = run(singles(rate={"limit": limit, "period_s": period_s}))
    times = begins(frame)
    assert (times[limit:] - times[:-limit] >= period_s - 1e-9).all()
    assert set(frame["worker"]) == {"w0", "w1"}
    waves = (200 - 1) // limit
    assert times[-1] - times[0] == pytest.approx(waves * (period_s + Slack(period_s).seconds), rel=0.01)


def test_a_rate_counts_failed_and_repeated_sends_too() -> None:
    fields = {"rate": {"limit": 20}, "temporary_share": 0.5}
    frame = run(singles(**fields), 100)
    assert len(frame) > 150
    times = begins(frame)
    assert (times[20:] - times[:-20] >= 1.0 - 1e-9).all()


def test_a_loop_that_is_late_for_its_turns_takes_more_slack_and_gets_on() -> None:
    topology = singles(rate={"limit": 10, "period_s": 0.1}).to_dict()
    topology["job_types"]["mail"]["per_user"]["cpu_us"] = 30_000
    frame = run(Topology.parse(topology), 100)
    assert (frame["outcome"] == "done").all()
    times = begins(frame)
    assert (times[10:] - times[:-10] >= 0.1 - 1e-9).all()


@pytest.mark.parametrize("connections", [1, 3])
def test_each_process_sends_over_its_connections_at_once_first_come_first_served(connections: int) -> None:
    frame = run(singles(connections=connections))
    for _, rows in frame.groupby("worker"):
        ends = rows.sort_values("finished_at", kind="stable")
        began = ends["finished_at"].to_numpy(float) - LATENCY_S
        ended = ends["finished_at"].to_numpy(float)
        assert (began[connections:] >= ended[:-connections] - 1e-9).all()
        assert ends["started_at"].is_monotonic_increasing
    assert trace.makespan_s(frame) == pytest.approx(200 / (2 * connections) * LATENCY_S, rel=0.05)


def test_connections_and_rate_that_are_never_reached_change_nothing() -> None:
    plain = run(lab(), 500)
    for fields in ({"connections": 1_000}, {"breaker": {"failures": 5}}):
        same = run(lab(**{f"providers__email__{name}": value for name, value in fields.items()}), 500)
        pd.testing.assert_frame_equal(plain, same)


def failing(**fields: Any) -> pd.DataFrame:
    constant = {"kind": "constant", "mean_s": LATENCY_S}
    topology = lab(
        providers__email__latency=constant, providers__email__temporary_share=1.0,
        job_types__notify__retry={"max_attempts": 3, "backoff": "fixed", "delay_s": 1.0}, **fields,
    )  # fmt: skip
    frame = run(topology, 60, workers=1, concurrency=1, batch_size=20)
    return frame[frame["job_type"] == "notify"].sort_values("started_at", kind="stable")


def sends(frame: pd.DataFrame) -> list[int]:
    return [round(each / LATENCY_S) for each in frame["provider_s"]]


def test_an_open_circuit_fails_sends_at_once_and_lets_one_try_after_its_time() -> None:
    assert sends(failing()) == [20] * 9
    frame = failing(providers__email__breaker={"failures": 3, "reset_s": 0.3})
    assert sends(frame) == [3, 0, 0, 1, 0, 0, 1, 0, 0]
    assert frame["outcome"].tolist() == ["retry"] * 6 + ["dead"] * 3
    assert frame["users_failed"].sum() == 60
    assert sends(failing(providers__email__breaker={"failures": 3, "reset_s": 100})) == [3, *[0] * 8]


def test_a_circuit_that_an_outage_opened_closes_with_the_first_success() -> None:
    outage = {"kind": "provider_outage", "at_s": 0, "duration_s": 0.8, "provider": "email"}
    workload = Workload.parse({"arrivals": {"kind": "burst", "users": 60}, "faults": [outage]})
    topology = lab(
        providers__email__latency={"kind": "constant", "mean_s": LATENCY_S},
        providers__email__breaker={"failures": 3, "reset_s": 0.5},
        job_types__notify__retry={"max_attempts": 2, "backoff": "fixed", "delay_s": 1.0},
    )
    frame = run(topology, workload=workload, workers=1, concurrency=1, batch_size=20)
    rows = frame[frame["job_type"] == "notify"].sort_values("started_at", kind="stable")
    assert rows["outcome"].tolist() == ["retry"] * 3 + ["done"] * 3
    assert sends(rows) == [0, 0, 0, 20, 20, 20]


def test_one_trial_at_a_time() -> None:
    fields = {"temporary_share": 1.0, "breaker": {"failures": 1, "reset_s": 1.0}}
    frame = run(singles(**fields), 40, workers=1, concurrency=4)
    first = frame[frame["attempt"] == 1]
    assert sends(first).count(1) == 4, "four were under way when the first of them opened it"
    later = frame[frame["attempt"] > 1]
    assert sends(later).count(1) == 2, "a trial for each time that the retries come back"


def test_a_cancelled_attempt_gives_back_its_connection() -> None:
    data = singles(connections=1).to_dict()
    data["providers"]["smtp"]["latency"] = {"kind": "empirical", "values_s": [0.001, 5.0]}
    data["job_types"]["mail"] |= {"timeout_s": 0.5, "retry": {"max_attempts": 50, "backoff": "fixed", "delay_s": 0}}
    frame = run(Topology.parse(data), 30, workers=1, concurrency=5)
    assert set(frame["error"]) == {"", "TimeoutError"}
    assert frame["users_done"].sum() + frame["users_failed"].sum() == 30
    assert frame["users_done"].sum() > 10, "a connection that is kept would serve nobody after the first timeout"


def test_a_killed_process_begins_with_free_connections_and_a_closed_circuit() -> None:
    kill = {"kind": "kill_worker", "at_s": 0.5, "worker": 0}
    topology = lab(
        providers__email__connections=2, providers__email__rate={"limit": 100}, providers__email__breaker={},
        queues__notifications__lease_s=1.0, queues__notifications__sweep_s=0.5,
    )  # fmt: skip
    workload = Workload.parse({"arrivals": {"kind": "burst", "users": 300}, "faults": [kill]})
    frame = run(topology, workload=workload, batch_size=20)
    assert (frame["outcome"] == "lost").any()
    assert frame["users_done"].sum() == 300
    assert (frame[frame["worker"] == "w0"]["started_at"] > 1.5).any()


@pytest.mark.parametrize("field", [{"rate": {"limit": 30}}, {"connections": 1}])
def test_relieving_the_provider_relieves_what_stands_before_it(field: dict[str, Any]) -> None:
    profile = free_profile()
    (found,) = sim.predict(singles(**field), users=200, workers=2, replications=1, profile=profile).to_dicts()
    assert found["bottleneck"] == "provider"


def test_the_fast_engine_is_told_that_it_does_not_do_this() -> None:
    workload = Workload.burst(10)
    assert beyond_fast(lab(), Deployment(), workload) == ""
    for field in ({"rate": {"limit": 1}}, {"connections": 1}, {"breaker": {}}):
        assert "provider smtp" in beyond_fast(singles(**field), Deployment(), workload)
