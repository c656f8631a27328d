"""Laws that hold in every run, not on average: Little's, conservation, retries, the tick, the rate limit."""

from __future__ import annotations

import heapq
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
import simpy
from recursions import mean_by_replications
from scipy import stats
from simulated_run import free_profile, lab
from soundness import sound

from saqkit.spec.deployment import Deployment
from saqkit.spec.draws import Stream, uniforms
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Workload
from sim.analysis import theory
from sim.engine.model import Model
from sim.fit.profile import Profile


class Watch(simpy.Environment):
    """Adds up how much there is of everything over time: between two events nothing changes."""

    model: Model
    waiting_s = held_s = open_s = 0.0

    def step(self) -> None:
        from_s, lines = self.now, self.model.lines.values()
        ready = sum(line.ready for line in lines)
        held, open_jobs = sum(len(worker.held) for worker in self.model.workers), self.model.open_jobs
        due = [wakes_at for line in lines for wakes_at, *_ in line._delayed]  # in line from its tick on, unseen yet
        super().step()
        took_s = self.now - from_s
        self.waiting_s += ready * took_s + sum(max(0.0, self.now - max(from_s, at)) for at in due if at < self.now)
        self.held_s += held * took_s
        self.open_s += open_jobs * took_s


LAWFUL: list[dict[str, Any]] = [
    {},
    {"providers__email__temporary_share": 0.05, "providers__email__permanent_share": 0.05},
    {"providers__email__temporary_share": 1.0},
    {"providers__email__permanent_share": 1.0},
    {"job_types__notify__timeout_s": 0.7},
    {"job_types__notify__retry__delay_s": 0.0, "providers__email__temporary_share": 0.02},
    {"job_types__notify__send_concurrency": 7, "job_types__announce__fan_out__page_size": 130},
    {"queues__notifications__rate_limit": {"limit": 150, "unit": "users"}},
    {"queues__notifications__rate_limit": {"limit": 30, "unit": "users"}},
    {"queues__notifications__rate_limit": {"limit": 3, "period_s": 0.5}},
    {"job_types__notify__per_user__database": "none", "job_types__notify__per_user__provider": "none"},
]
FAULTS: list[dict[str, Any]] = [
    {"kind": "provider_outage", "at_s": 0.5, "duration_s": 1.0, "provider": "email"},
    {"kind": "broker_restart", "at_s": 0.5, "down_s": 2.0},
    {"kind": "kill_worker", "at_s": 0.5, "worker": 1},
]
SINGLE = [{"job_type": "notify"}]
EVERY_KIND = [
    *((fields, {"kind": "burst", "users": 777}, []) for fields in LAWFUL),
    (  # loops so busy that jobs arrive while they have not yet seen the last ones
        {"entry": SINGLE, "job_types__notify__per_user__cpu_us": 6_000},
        {"kind": "poisson", "rate_per_s": 150, "duration_s": 4},
        [],
    ),
    *(({}, {"kind": "burst", "users": 777}, [fault]) for fault in FAULTS),
    ({}, {"kind": "poisson", "rate_per_s": 2, "duration_s": 5, "users_per_event": 60}, FAULTS),
    (
        {"entry": [{"job_type": "notify", "share": 0.3, "priority": "high"}, {"job_type": "notify", "share": 0.7}]},
        {"kind": "poisson", "rate_per_s": 100, "duration_s": 3},
        [],
    ),
    (
        {
            "job_types__audit": {"queue": "notifications", "priority": "low"},
            "job_types__notify__follow_up": [{"to": "audit"}],
        },
        {"kind": "recorded", "at_s": [1.0, 1.5], "users": [1, 120]},
        [],
    ),
]


@pytest.mark.parametrize("host", ["nominal", "free"])
@pytest.mark.parametrize(("fields", "arrivals", "faults"), EVERY_KIND, ids=lambda value: str(value)[:50])
def test_littles_law_of_the_line_the_slots_and_the_whole(
    fields: dict[str, Any], arrivals: dict[str, Any], faults: list[Any], host: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was there, added up over time in the model's own state, is what the table says that jobs spent: L = λW."""
    monkeypatch.setattr(simpy, "Environment", Watch)
    topology = lab(queues__notifications__lease_s=0.6, queues__notifications__sweep_s=0.3).to_dict()
    for path, value in fields.items():
        table = topology
        *keys, last = path.split("__")
        for key in keys:
            table = table[key]
        table[last] = value
    profile = Profile.nominal() if host == "nominal" else free_profile()
    shaped = Topology.parse(topology).with_batch_size(50)
    workload = Workload.parse({"arrivals": arrivals, "faults": faults})
    model = Model(shaped, Deployment(workers=2, concurrency=3), workload, profile.costs(shaped), seed=11)
    watch = model.env
    assert isinstance(watch, Watch)
    watch.model = model
    frame = sound(model, model.run())
    ended = frame.groupby("job")["finished_at"].max()
    began = frame["event_at"].where(frame["parent"] == "", frame["queued_at"]).groupby(frame["job"]).first()
    assert watch.waiting_s == pytest.approx((frame["taken_at"] - frame["ready_at"]).sum(), rel=1e-9, abs=1e-9)
    assert watch.open_s == pytest.approx((ended - began).sum(), rel=1e-9)
    if not (frame["outcome"] == "lost").any():  # a dead process holds nothing, its jobs are not yet known to be lost
        assert watch.held_s == pytest.approx((frame["finished_at"] - frame["taken_at"]).sum(), rel=1e-9)


@pytest.mark.parametrize(
    "columns",
    [
        {"ready_at": 1e6},
        {"started_at": -1.0},
        {"finished_at": float("nan")},
        {"users_done": 49},
        {"users_failed": 1},
        {"users": 0, "users_done": 0},
        {"attempt": 2},
        {"outcome": "retry"},
        {"job": "notify-1-1"},
        {"taken_at": 0.02, "started_at": 0.02, "ready_at": 0.02, "queued_at": 0.01},
        {"provider_s": 1e3},
    ],
)
def test_the_checker_sees_a_single_wrong_number(columns: dict[str, Any]) -> None:
    topology = lab(queues__notifications__rate_limit={"limit": 2}).with_batch_size(50)
    costs = Profile.nominal().costs(topology)
    model = Model(topology, Deployment(concurrency=1), Workload.burst(500), costs, seed=1)
    outcome = model.run()
    sound(model, outcome)
    rows = {name: [*column] for name, column in outcome.rows.items()}
    for name, value in columns.items():
        rows[name][-1] = value
    with pytest.raises(AssertionError):
        sound(model, replace(outcome, rows=rows))


def sends(users: int, share: float, most: int, **fields: Any) -> Topology:
    return lab(
        providers__email__temporary_share=share,
        providers__email__latency={"kind": "exponential", "mean_s": 0.1},
        job_types__notify__per_user__database="none",
        job_types__notify__retry={"max_attempts": most, "backoff": "fixed", "delay_s": 0.5},
        **fields,
    ).with_batch_size(users)


@pytest.mark.parametrize(("batch", "share", "most"), [(1, 0.3, 4), (20, 0.1, 3), (20, 0.2, 2)])
def test_attempts_are_those_that_the_draws_ask_for_and_their_mean_is_the_geometric_sum(
    batch: int, share: float, most: int
) -> None:
    topology, jobs = sends(batch, share, most, providers__email__permanent_share=0.2), 300
    model = Model(topology, Deployment(concurrency=50), Workload.burst(jobs * batch), costs_of(topology), seed=3)
    frame = sound(model, model.run()).query("job_type == 'notify'")
    asked, gone = needed(3, jobs * batch, share, most, 0.2)
    found = frame.groupby("job")["attempt"].max()
    expected = np.minimum(asked, most).reshape(jobs, batch).max(axis=1)
    assert found[[f"notify-1-{1 + n * batch}" for n in range(jobs)]].to_numpy() == pytest.approx(expected)
    assert frame["users_failed"].sum() == gone.sum()
    # The same draws, of many more users than need be simulated: the formula.
    asked, gone = needed(4, 400_000, share, most, 0.2)
    attempts = np.minimum(asked, most).reshape(-1, batch).max(axis=1).astype(float)
    assert theory.expected_attempts(share, most, batch) in mean_by_replications(attempts)
    assert theory.served_share(share, most, 0.2) in mean_by_replications((~gone).astype(float))


def costs_of(topology: Topology) -> Any:
    return free_profile().costs(topology)


def needed(seed: int, users: int, share: float, most: int, permanent: float) -> tuple[Any, Any]:
    """For each user of event 1 the number of the first send that does not fail (or more than `most`), and who fails."""
    who = np.arange(1, users + 1)
    failed = np.array([uniforms(seed, Stream.TEMPORARY, 1, who, k) < share for k in range(1, most + 1)])
    asked = np.where(failed.all(axis=0), most + 1, failed.argmin(axis=0) + 1)
    return asked, (asked > most) | (uniforms(seed, Stream.PERMANENT, 1, who) < permanent)


def test_the_tick_adds_a_uniform_wait() -> None:
    """Departures of a steady stream are random (Burke, 1956), so what becomes due is anywhere between two ticks."""
    topology = sends(1, 0.5, 2, queues__notifications__tick_s=0.2, entry=SINGLE)
    workload = Workload.parse({"arrivals": {"kind": "poisson", "rate_per_s": 100, "duration_s": 20}})
    model = Model(topology, Deployment(concurrency=200), workload, costs_of(topology), seed=5)
    frame = model.run().attempts().sort_values(["job", "attempt"])
    first, again = frame["outcome"] == "retry", frame["attempt"] == 2
    waits = frame["ready_at"][again].to_numpy() - frame["finished_at"][first].to_numpy() - 0.5
    assert len(waits) > 900
    assert ((waits >= -1e-9) & (waits < 0.2 + 1e-9)).all()
    assert theory.poll_wait_s(0.2) in mean_by_replications(waits)
    assert stats.kstest(waits / 0.2, "uniform").pvalue > 0.001


@pytest.mark.parametrize(("workers", "slots", "limit", "period_s"), [(1, 8, 5, 0.5), (2, 3, 20, 1.0), (1, 4, 1, 0.25)])
def test_a_limited_queue_starts_as_its_recursion_says(workers: int, slots: int, limit: int, period_s: float) -> None:
    """A job begins when a slot is free and the one `limit` places before it is a period old."""
    limited = {"queues__notifications__rate_limit": {"limit": limit, "period_s": period_s}}
    topology = sends(1, 0.0, 1, entry=SINGLE, **limited)
    deployment = Deployment(workers=workers, concurrency=slots)
    frame = Model(topology, deployment, Workload.burst(80), costs_of(topology), seed=6).run().attempts()
    latency = topology.providers["email"].latency
    takes = latency.quantiles(uniforms(6, Stream.LATENCY, 1, np.arange(1, 81), 1))
    free, starts = [0.0] * (workers * slots), []
    for n, took_s in enumerate(takes.tolist()):
        at = max(heapq.heappop(free), starts[n - limit] + period_s if n >= limit else 0.0)
        starts.append(at)
        heapq.heappush(free, at + took_s)
    by_user = frame.assign(user=frame["job"].str.rsplit("-", n=1).str[1].astype(int)).sort_values("user")
    assert by_user["started_at"].to_numpy() == pytest.approx(starts, abs=1e-9)
