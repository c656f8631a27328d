"""What arrives: when, how many, and through which entry."""

from __future__ import annotations

import itertools
from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from saqkit.spec.topology import Topology, load
from saqkit.spec.workload import Poisson, Profile, Recorded, Workload


def shop(shares: list[float]) -> Topology:
    return Topology.parse(
        {
            "name": "shop",
            "entry": [{"job_type": f"j{n}", "share": share} for n, share in enumerate(shares)],
            "queues": {"q": {}},
            "job_types": {f"j{n}": {"queue": "q"} for n in range(len(shares))},
        }
    )


def test_a_burst_is_one_event_to_all_users() -> None:
    (arrival,) = Workload.burst(1000).events(load("school-events"), seed=1)
    assert (arrival.event, arrival.at_s, arrival.users) == (1, 0.0, 1000)
    assert arrival.entry.topic == "event.created"


def test_a_poisson_stream_has_its_rate_and_exponential_gaps() -> None:
    times = [at for at, _ in Poisson(rate_per_s=5, duration_s=4000, users_per_event=3).times(seed=1)]
    assert abs(len(times) - 20_000) < 4.5 * 20_000**0.5
    assert times == sorted(times)
    assert times[0] > 0
    assert times[-1] < 4000
    gaps = [b - a for a, b in itertools.pairwise(times)]
    mean = sum(gaps) / len(gaps)
    assert sum((gap - mean) ** 2 for gap in gaps) / len(gaps) == pytest.approx(mean**2, rel=0.1)
    assert {users for _, users in Poisson(rate_per_s=5, duration_s=10, users_per_event=3).times(1)} == {3}


def test_a_profile_spreads_its_users_over_the_hours_by_weight() -> None:
    weights = tuple(float(hour % 8) for hour in range(24))
    profile = Profile(users_per_day=20_000, hourly=weights, days=3, users_per_event=2)
    times = [at for at, users in profile.times(seed=1) if users == 2]
    assert times == sorted(times)
    assert times[-1] < 3 * 86_400
    per_hour = Counter(int(at // 3600) for at in times)
    for hour in range(72):
        expected = 10_000 * weights[hour % 24] / sum(weights)
        assert abs(per_hour[hour] - expected) <= 4.5 * expected**0.5  # exactly none where the weight is 0


@given(st.lists(st.tuples(st.floats(0, 1e6), st.integers(1, 100)), min_size=1, max_size=30))
def test_a_recorded_trace_is_replayed_in_order_of_time(rows: list[tuple[float, int]]) -> None:
    at_s, users = (tuple(column) for column in zip(*rows, strict=True))
    replayed = list(Recorded(at_s=at_s, users=users).times(0))
    assert replayed == sorted(rows, key=lambda row: row[0])
    assert [users for _, users in Recorded(at_s=at_s).times(0)] == [1] * len(rows)


@given(st.integers(0, 2**40), st.floats(0.1, 20))
def test_events_are_sorted_numbered_from_one_and_repeatable(seed: int, rate: float) -> None:
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": rate, "duration_s": 5}})
    topology = shop([0.5, 0.5])
    events = list(workload.events(topology, seed))
    assert [arrival.event for arrival in events] == list(range(1, len(events) + 1))
    assert [arrival.at_s for arrival in events] == sorted(arrival.at_s for arrival in events)
    assert events == list(workload.events(topology, seed))


def test_another_seed_gives_other_arrivals() -> None:
    poisson = Poisson(rate_per_s=5, duration_s=10)
    assert list(poisson.times(1)) != list(poisson.times(2))


def test_events_take_the_entries_by_their_shares() -> None:
    shares = [0.1, 0.2, 0.7]
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 100, "duration_s": 200}})
    taken = Counter(arrival.entry.job_type for arrival in workload.events(shop(shares), seed=3))
    total = sum(taken.values())
    for n, share in enumerate(shares):
        assert abs(taken[f"j{n}"] - share * total) < 4.5 * (share * (1 - share) * total) ** 0.5


def test_a_workload_reads_back_equal() -> None:
    workload = Workload.parse(
        {
            "arrivals": {"kind": "profile", "users_per_day": 5, "hourly": [1] * 24},
            "faults": [
                {"kind": "kill_worker", "at_s": 1, "worker": 1},
                {"kind": "provider_outage", "at_s": 2, "duration_s": 3, "provider": "email"},
                {"kind": "broker_restart", "at_s": 4},
            ],
        }
    )
    assert Workload.parse(workload.to_dict()) == workload
