"""Measured runs in which workers die, providers fail and the broker is away: the users add up all the same."""

from __future__ import annotations

from typing import Any

import pytest
from measured import lab, run

from saqkit import Run, Workload
from saqkit.errors import RunError


def burst(users: int, *faults: dict[str, Any]) -> Workload:
    return Workload.parse({"arrivals": {"kind": "burst", "users": users}, "faults": list(faults)})


def served(done: Run) -> tuple[int, int]:
    measures = done.measures()
    return int(measures["users_done"]), int(measures["users_failed"])


async def test_what_a_killed_worker_held_is_recovered_and_nobody_is_counted_twice() -> None:
    topology = lab(providers__email__latency={"kind": "constant", "mean_s": 0.03})
    kills = [{"kind": "kill_worker", "at_s": 0.7, "worker": 0}, {"kind": "kill_worker", "at_s": 0.9, "worker": 1}]
    done = await run(topology, workload=burst(400, *kills), workers=2, concurrency=4, batch_size=50)
    assert served(done) == (400, 0)
    lost = done.attempts[done.attempts["outcome"] == "lost"]
    assert set(lost["worker"]) == {"worker-0", "worker-1"}
    assert set(lost["crashes"]) == {1}
    assert set(lost["users"]) == {50}
    held_s = lost["finished_at"] - 0.7
    assert held_s.min() > 0
    assert held_s.max() < 20, "both workers were killed: their jobs wait for one to be back, on a busy machine"
    again = done.attempts[(done.attempts["crashes"] == 1) & (done.attempts["outcome"] != "lost")]
    assert set(again["job"]) == set(lost["job"])
    assert set(again["attempt"]) == {1}, "a crash is no attempt"
    assert lost["users_done"].sum() > 0, "what was sent before the kill is known"
    assert again["users_done"].sum() + lost["users_done"].sum() == lost["users"].sum()


async def test_during_an_outage_every_send_fails_at_once_and_is_tried_again() -> None:
    topology = lab(job_types__notify__retry={"max_attempts": 3, "backoff": "fixed", "delay_s": 1.0})
    outage = {"kind": "provider_outage", "at_s": 0, "duration_s": 0.8, "provider": "email"}
    done = await run(topology, workload=burst(60, outage), batch_size=20)
    notify = done.attempts[done.attempts["job_type"] == "notify"]
    first, second = notify[notify["attempt"] == 1], notify[notify["attempt"] == 2]
    assert list(first["outcome"]) == ["retry"] * 3
    assert first["users_done"].sum() == 0
    assert first["provider_s"].max() < 0.3
    assert set(first["error"]) == {"saqkit.errors.TemporaryFailure"}
    assert (second["ready_at"] >= 1.0).all()
    assert served(done) == (60, 0)


async def test_a_broker_that_is_away_for_a_while_loses_nobody() -> None:
    topology = lab(providers__email__latency={"kind": "constant", "mean_s": 0.02})
    restart = {"kind": "broker_restart", "at_s": 0.5, "down_s": 0.4}
    done = await run(topology, workload=burst(300, restart), batch_size=25, workers=2)
    assert served(done) == (300, 0)
    assert done.measures()["makespan_s"] > 0.9


async def test_events_that_come_while_the_broker_is_away_are_delivered_by_the_relay() -> None:
    arrivals = {"kind": "recorded", "at_s": [0, 0.6], "users": [20, 30]}
    faults = [{"kind": "broker_restart", "at_s": 0.3, "down_s": 0.8}]
    done = await run(lab(), workload=Workload.parse({"arrivals": arrivals, "faults": faults}))
    assert served(done) == (50, 0)
    late = done.attempts[(done.attempts["event"] == "2") & (done.attempts["job_type"] == "announce")]
    assert late["queued_at"].item() - late["event_at"].item() > 0.4


async def test_a_worker_that_cannot_start_ends_the_run_with_its_reason() -> None:
    topology = lab(providers__email__kind="smtp", providers__email__url="nonsense://nowhere")
    with pytest.raises(RunError, match=r"worker worker-0 did not start: .*smtp") as caught:
        await run(topology, users=10)
    assert "\n" not in str(caught.value)
