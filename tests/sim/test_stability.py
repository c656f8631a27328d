"""A stream that is more than the system can take: a verdict with the growth rate, and not an endless run."""

from __future__ import annotations

import time
from typing import Any

import pandas as pd
import pytest
from simulated_run import free_profile, lab

import sim
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Poisson, Profile, ProviderOutage, Workload
from sim.analysis.stability import Backlog, backlogs, worst
from sim.running.combination import Combination

SLOTS = lab(job_types__announce__fan_out__batch_size=10)
LOOP = override(SLOTS, {"job_types.notify.per_user.cpu_us": 2_000})


def stream(rate_per_s: float, duration_s: float, users_per_event: int = 10) -> Workload:
    return Workload(arrivals=Poisson(rate_per_s=rate_per_s, duration_s=duration_s, users_per_event=users_per_event))


def single(mean_s: float) -> Topology:
    """One slot, and jobs of one user that take exactly `mean_s`."""
    return Topology.parse(
        {
            "name": "single",
            "entry": [{"job_type": "notify"}],
            "queues": {"q": {"concurrency": 1}},
            "job_types": {"notify": {"queue": "q", "per_user": {"database": "none", "provider": "email"}}},
            "providers": {"email": {"latency": {"kind": "constant", "mean_s": mean_s}}},
        }
    )


def one(topology: Topology, workload: Workload, **settings: Any) -> Combination:
    return sim.predict(topology, workload=workload, replications=2, keep="summary", **settings).combinations[0]


@pytest.mark.parametrize(
    ("topology", "rate", "concurrency", "part"),
    [
        (SLOTS, 30.0, 5, "the slots are at 1"),
        (LOOP, 50.0, 50, "the loop is at 1"),
        (
            override(SLOTS, {"queues.notifications.rate_limit": {"limit": 20}}),
            15.0,
            20,
            "the rate limit (at best 100 users/s) is at 1",
        ),
    ],
)
def test_the_verdict_names_the_part_and_the_growth(
    topology: Topology, rate: float, concurrency: int, part: str
) -> None:
    cell = one(topology, stream(rate, 20), concurrency=concurrency)
    assert cell.stable is False
    assert cell.verdict.startswith("unstable: the backlog of notifications grows by ")
    assert part in cell.verdict
    assert cell.steady is None
    said = cell.to_dict()
    assert said["stable"] is False
    assert said["backlog_jobs_per_s"] > 0
    assert said["steady"] is None
    assert said["makespan_s"]["mean"] > 20  # a stream this short is played to its end


@pytest.mark.parametrize("rate", [10.0, 18.0])
def test_a_stream_that_can_be_served_is_called_stable(rate: float) -> None:
    cell = one(SLOTS, stream(rate, 30))
    assert cell.stable is True
    assert cell.verdict.startswith("stable: ")
    assert cell.to_dict()["backlog_jobs_per_s"] == 0.0


def test_the_load_and_the_growth_are_those_of_theory() -> None:
    """One slot, jobs of exactly 0.1 s, 12.5 a second: ρ = 1.25, and 2.5 jobs a second are left over."""
    topology = single(0.1)
    cell = sim.predict(topology, workload=stream(12.5, 150, 1), profile=free_profile(), replications=3).combinations[0]
    assert cell.stream is not None
    assert cell.stream.backlog.load == pytest.approx(1.25, rel=0.01)
    assert cell.stream.backlog.jobs_per_s == pytest.approx(2.5, rel=0.05)
    calm = sim.predict(topology, workload=stream(9, 150, 1), profile=free_profile(), replications=3).combinations[0]
    assert calm.stable is True


def test_a_week_of_too_much_is_not_played_to_its_end() -> None:
    began = time.process_time()
    forecast = sim.predict(SLOTS, workload=stream(40, 7 * 86_400))  # 240 million users
    (cell,) = forecast
    assert cell.stable is False
    assert cell.verdict.endswith("the stream was not played to its end")
    assert time.process_time() - began < 60
    said = forecast.to_dicts()[0]
    assert said["users"] == 40 * 10 * 7 * 86_400
    assert said["makespan_s"] == dict.fromkeys(said["makespan_s"])
    assert said["bottleneck"] == "slots"
    assert "unstable" in repr(forecast)
    assert forecast._repr_html_()


def test_where_nothing_is_begun_any_more_the_load_is_no_number() -> None:
    cell = one(load("school-events"), stream(100, 86_400, 1000), concurrency=5)
    assert cell.stream is not None
    assert cell.stream.backlog is not None
    assert cell.stream.backlog.load == float("inf")
    assert "the slots are at far more than 100%" in cell.verdict


def test_repeated_attempts_count_as_load() -> None:
    """At 175 users a second five slots of 20 ms are 70 % busy with first attempts; with 30 % of sends failing, not."""
    topology = override(SLOTS, {"providers.email.temporary_share": 0.3})
    assert one(SLOTS, stream(17.5, 40)).stable is True
    assert one(topology, stream(17.5, 40)).stable is False


def test_a_fault_does_not_make_a_stream_unstable() -> None:
    outage = ProviderOutage(at_s=20, duration_s=10, provider="email")
    cell = one(SLOTS, stream(10, 35).model_copy(update={"faults": (outage,)}))
    assert cell.stable is True
    assert cell.measures["retries"]["mean"] > 0  # it was played with its fault


def test_a_day_with_a_rush_hour_beyond_capacity_is_stable_and_one_with_too_many_users_is_not() -> None:
    rush = (1.0,) * 12 + (12.0,) + (1.0,) * 11

    def day(users: int) -> Combination:
        return one(single(20.0), Workload(arrivals=Profile(users_per_day=users, hourly=rush)))  # serves 4,320 a day

    assert day(2_000).stable is True  # 0.19 a second in its 13th hour, 0.05 can be served
    assert day(8_000).stable is False


def test_a_burst_has_no_verdict_and_the_keys_of_the_contract() -> None:
    cell = sim.predict(SLOTS, users=100, replications=1).combinations[0]
    assert (cell.stable, cell.verdict, cell.steady) == (None, "", None)
    assert not {"stable", "verdict", "steady", "backlog_jobs_per_s"} & set(cell.to_dict())


def test_backlogs_are_counted_as_by_hand() -> None:
    """Over the second half, from 5 s to 10 s: a job waits from 4 to 7, another from 6 to 8, a third begins at once."""
    rows = {
        "event": ["1", "2", "3", "4"],
        "event_at": [0.0, 4.0, 6.0, 10.0],
        "ready_at": [0.0, 4.0, 6.0, 10.0],
        "started_at": [0.0, 7.0, 8.0, 10.0],
        "finished_at": [1.0, 8.0, 9.0, 11.0],
        "queue": ["q"] * 4,
    }
    (found,) = backlogs(stream(0.4, 10), pd.DataFrame(rows))
    assert (found.span_s, found.waited_s) == (5.0, 3.0)
    assert found.comes == pytest.approx(0.4 * 5)
    assert found.begun == 1.0  # at 7 s another still waited; at 8 s nobody was left waiting behind


def test_of_several_queues_the_one_of_the_greatest_load_is_named() -> None:
    calm, busy = Backlog("a", 10, 10, 6, 9), Backlog("b", 10, 15, 10, 10)
    assert worst([[calm, busy], [calm, busy]]) == Backlog("b", 20, 30, 20, 20)
    assert worst([]) is None
    assert Backlog("c", 10, 10, 4, 1).load == 0.0
    assert Backlog("d", 10, 1, 10, 0).load == float("inf")
