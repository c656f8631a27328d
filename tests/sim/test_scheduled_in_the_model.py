"""What schedules fire in a window: at the same times in the model as for real, and by both engines alike."""

from __future__ import annotations

from datetime import datetime
from typing import Any
from zoneinfo import ZoneInfo

import pandas as pd
import pytest
from measured import lab, run

import sim
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.changes import double_the_users

START = datetime(2026, 3, 28, tzinfo=ZoneInfo("Europe/Berlin"))
DIGEST = {"name": "digest", "job_type": "announce", "cron": "30 2 * * *", "zone": "Europe/Berlin", "users": 250}
TIDY = {"name": "tidy", "job_type": "notify", "cron": "0 */12 * * *", "audience": "none"}
SHORT: list[dict[str, Any]] = [
    {"name": "digest", "job_type": "announce", "cron": "0 7 * * * 0-59/2", "users": 5, "priority": "high"},
    {"name": "hello", "job_type": "notify", "cron": "0 7 * * * *", "users": 2, "tenant": "north"},
    {"name": "tidy", "job_type": "notify", "cron": "0 7 * * * 1", "audience": "none"},
]


def nightly(*schedules: dict[str, Any]) -> Topology:
    return lab(schedules=list(schedules))


def window(days: float = 2, **other: Any) -> Workload:
    start = {"start": "2026-03-28T00:00:00", "zone": "Europe/Berlin", "duration_s": days * 86_400}
    return Workload.parse({"arrivals": {"kind": "scheduled", **start, **other}})


def fired(topology: Topology, workload: Workload) -> list[tuple[str, int]]:
    """(time on the clock in Berlin, users) of each event."""
    begin, zone = START.timestamp(), ZoneInfo("Europe/Berlin")
    return [
        (datetime.fromtimestamp(begin + arrival.at_s, zone).isoformat()[5:], arrival.users)
        for arrival in workload.events(topology, 0)
    ]


def test_the_window_begins_with_its_start_and_goes_by_the_schedules_own_clocks() -> None:
    """The clocks jump on the second day, which has an hour less."""
    midnight = {**DIGEST, "name": "midnight", "cron": "0 0 * * *", "users": 7}
    assert fired(nightly(DIGEST, midnight, TIDY), window()) == [
        ("03-28T00:00:00+01:00", 7), ("03-28T01:00:00+01:00", 0), ("03-28T02:30:00+01:00", 250),
        ("03-28T13:00:00+01:00", 0), ("03-29T00:00:00+01:00", 7), ("03-29T01:00:00+01:00", 0),
        ("03-29T03:00:00+02:00", 250), ("03-29T14:00:00+02:00", 0), ("03-30T00:00:00+02:00", 7),
    ]  # fmt: skip
    assert window(start="2026-03-28T00:00:00+01:00", zone="UTC").arrivals.started_at == START.timestamp()  # type: ignore[union-attr]


def test_what_comes_besides_is_merged_by_its_times() -> None:
    others = {"kind": "recorded", "at_s": [0, 9000, 9001], "users": [1, 2, 3]}
    events = list(window(1, others=others).events(nightly(DIGEST), 0))
    assert [(one.event, one.at_s, one.users) for one in events] == [
        (1, 0, 1), (2, 9000, 250), (3, 9000, 2), (4, 9001, 3),
    ]  # fmt: skip


def test_the_burst_of_a_night_waits_in_the_model_for_what_is_there() -> None:
    alone = sim.predict(nightly(DIGEST), workload=window(1), replications=1)
    busy = window(1, others={"kind": "recorded", "at_s": [8999], "users": [20_000]})
    both = sim.predict(nightly(DIGEST), workload=busy, replications=1)

    def latency_s(rows: pd.DataFrame) -> float:
        digest = rows[rows.groupby("event")["users"].transform("sum") == 250]
        return float((digest["finished_at"] - digest["event_at"]).max())

    assert alone.attempts["users_done"].sum() == 250
    assert both.attempts["users_done"].sum() == 20_250
    assert latency_s(both.attempts) > 3 * latency_s(alone.attempts)


@pytest.mark.parametrize("relieved", ["", "slots", "rate_limit"])
def test_both_engines_return_the_same_attempts(relieved: str) -> None:
    low = {**DIGEST, "name": "low", "cron": "29 2 * * *", "priority": "low", "tenant": "south", "users": 900}
    busy = window(2, others={"kind": "poisson", "rate_per_s": 0.01, "duration_s": 20_000, "users_per_event": 30})
    topology = nightly(DIGEST, low, {**DIGEST, "name": "direct", "job_type": "notify", "users": 40})
    fast, slow = (
        sim.predict(topology, workload=busy, replications=1, engine="fast"),
        sim.predict(topology, workload=busy, replications=1, engine="simpy"),
    )
    assert (fast.engine, slow.engine) == ("fast", "simpy")
    outcomes = [one.combinations[0].scenario.run(relieved=relieved) for one in (fast, slow)]
    pd.testing.assert_frame_equal(outcomes[0].attempts(), outcomes[1].attempts(), check_exact=True)
    assert set(outcomes[0].attempts()["tenant"]) == {"", "south"}


def test_jobs_without_users_are_left_to_simpy() -> None:
    found = sim.predict(nightly(DIGEST, TIDY), workload=window(), replications=1)
    assert found.engine == "simpy: schedule tidy starts jobs without users"
    alone = sim.predict(nightly(TIDY), workload=window(), replications=1).attempts
    assert [*alone["users"]] == [0] * 4
    assert [*alone["outcome"]] == ["done"] * 4


async def test_the_same_things_come_at_the_same_times_in_the_model_and_for_real() -> None:
    workload = Workload.parse({"arrivals": {"kind": "scheduled", "start": "2026-03-28T07:00:00", "duration_s": 2.5}})
    topology = nightly(*SHORT)
    measured = (await run(topology, workload=workload, workers=2)).attempts
    predicted = sim.predict(topology, workload=workload, replications=1, same_draw=True).attempts
    due = [0, 0, 1, 1, 2, 2]  # digest and hello, hello and tidy, digest and hello

    def what(rows: pd.DataFrame) -> pd.DataFrame:
        """Of each event: its jobs, users, priority, tenant, and when it came."""
        made = rows.assign(number=rows["event"].astype(int)).groupby("number")
        return made.agg(jobs=("job", "nunique"), users=("users_done", "sum"), level=("priority", "min"),
                        tenant=("tenant", "first"), at=("event_at", "first"))  # fmt: skip

    ours, theirs = what(measured), what(predicted)
    pd.testing.assert_frame_equal(ours.drop(columns="at"), theirs.drop(columns="at"))
    assert [*theirs["at"]] == due
    assert [*ours["jobs"]] == [2, 2, 2, 1, 2, 2]
    late_s = [at - expected for at, expected in zip(ours["at"], due, strict=True)]
    assert min(late_s) > -0.005
    assert max(late_s) < 2


def test_a_planner_plans_a_night_and_doubles_it() -> None:
    plan = sim.plan(nightly(DIGEST), workload=window(1), target="drain<=60s")
    assert plan.feasible
    base = sim.predict(nightly(DIGEST), workload=window(1), replications=1).combinations[0].scenario
    assert base.users == 250
    twice = double_the_users(base, 1.0)
    assert twice.users == 500
