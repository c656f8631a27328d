"""What a plan says of waiting: the oldest job's age, how long low waits, and the autoscaler's trigger."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_run import free_profile, lab

from saqkit.spec import trace
from saqkit.spec.deployment import Deployment
from saqkit.spec.topology import Topology
from saqkit.spec.trace import attempts_frame
from saqkit.spec.workload import KillWorker, Recorded, Workload
from sim.capacity.autoscaling import Trigger, trigger_of
from sim.capacity.waiting import low_wait_s, oldest_age, oldest_age_s
from sim.fit.profile import Estimate, Profile
from sim.running.scenario import Scenario
from sim.targets import Target

FRAME = attempts_frame(
    {
        "job": ["a", "b", "c", "b"],
        "priority": [3, 4, 4, 4],
        "attempt": [1, 1, 1, 2],
        "queued_at": [0.0, 0.0, 1.0, 0.0],
        "ready_at": [0.0, 0.0, 1.0, 9.0],
        "taken_at": [0.5, 4.0, 2.0, 9.5],
        "started_at": [0.5, 5.0, 2.0, 9.5],
        "finished_at": [4.0, 6.0, 3.0, 10.0],
        "outcome": ["done", "retry", "done", "done"],
    }
)


def test_the_oldest_jobs_age_peaks_just_before_it_is_taken() -> None:
    assert oldest_age_s(FRAME) == 4.0
    t = np.arange(0, 10, 0.001)[:, None]
    ready, taken = FRAME["ready_at"].to_numpy(), FRAME["taken_at"].to_numpy()
    ages = np.where((ready <= t) & (t < taken), t - ready, 0.0)
    assert oldest_age_s(FRAME) == pytest.approx(ages.max(), abs=0.0011)
    assert oldest_age_s(FRAME[:0]) == 0.0


def test_the_oldest_jobs_age_has_an_interval_over_runs() -> None:
    found = oldest_age([FRAME, FRAME.assign(taken_at=FRAME["taken_at"] + 0.2)])
    assert found["mean"] == pytest.approx(4.1)
    assert found["lo"] < found["mean_lo"] < 4.1 < found["mean_hi"] < found["hi"]


def test_low_waits_for_its_start_and_nobody_waits_where_nobody_is_low() -> None:
    assert low_wait_s([FRAME]) == {"p50": 1.0, "p95": 5.0, "max": 5.0}
    assert low_wait_s([FRAME, FRAME[FRAME["priority"] == 3]]) == {"p50": 1.0, "p95": 5.0, "max": 5.0}
    assert low_wait_s([FRAME[FRAME["priority"] == 3]]) is None


# A stream of single-user jobs of 0.1 s on 2 slots a worker: a worker serves 20 a second and nothing else takes time.

RATE, START_S, WORKERS = 20.0, 4.0, 2


def stream() -> Topology:
    return lab(
        entry=[{"job_type": "notify"}],
        queues__notifications__concurrency=2,
        providers__email__latency={"kind": "constant", "mean_s": 0.1},
    )


def host(restart_s: float) -> Profile:
    profile = free_profile()
    return profile.model_copy(
        update={"host": profile.host.model_copy(update={"restart_s": Estimate(value=restart_s), "cores": 8})}
    )


def arrivals(at_s: np.ndarray, **more: Any) -> Workload:
    return Workload(arrivals=Recorded(at_s=tuple(float(t) for t in at_s)), **more)


def outgrowing(rate: float, for_s: float) -> np.ndarray:
    """Ten easy seconds, then `rate` jobs a second."""
    calm = np.arange(0, 10, 1 / (0.5 * WORKERS * RATE))
    return np.concatenate((calm, 10 + np.arange(0, for_s, 1 / rate)))


def scenario(at_s: np.ndarray) -> Scenario:
    return Scenario(stream(), Deployment(workers=WORKERS), arrivals(at_s), host(START_S), 0, True)


def trigger(text: str, at_s: np.ndarray) -> Trigger:
    here = scenario(at_s)
    calm = replace(here, workload=arrivals(at_s[at_s < 10])).run().attempts()
    return trigger_of(here, WORKERS, Target.parse(text), calm)


def with_a_worker_from(at_s: np.ndarray, starts_s: float) -> pd.DataFrame:
    """The same stream with one more worker that serves from `starts_s` on: it is killed at 0 and is that long away."""
    late = arrivals(at_s, faults=(KillWorker(at_s=0.0, worker=WORKERS),))
    return Scenario(stream(), Deployment(workers=WORKERS + 1), late, host(starts_s), 0, True).run().attempts()


def first_moment(attempts: pd.DataFrame, age_s: float | None = None, depth: int | None = None) -> float:
    """When the oldest waiting job first is `age_s` old, or so many jobs wait."""
    if age_s is not None:
        late = attempts[attempts["taken_at"] - attempts["ready_at"] >= age_s]
        return float((late["ready_at"] + age_s).min())
    times = np.concatenate((attempts["ready_at"], attempts["taken_at"]))
    change = np.repeat([1, -1], len(attempts))
    order = np.argsort(times, kind="stable")
    return float(times[order][np.argmax(change[order].cumsum() >= depth)])


def test_the_trigger_is_what_its_formula_says() -> None:
    found = trigger("p99<=6s", outgrowing(58, 60))
    assert found.queue == "notifications"
    assert (found.passes, found.restart_s) == (1, START_S)
    assert found.service_s == pytest.approx(0.1, abs=0.02)
    assert found.rate_per_s == pytest.approx(WORKERS * RATE, rel=0.03)
    assert found.rate_with_one_more_per_s == pytest.approx((WORKERS + 1) * RATE, rel=0.03)
    assert found.age_s == pytest.approx(6 - 0.1 - START_S * (1 - 2 / 3), abs=0.15)
    assert found.depth == pytest.approx(found.age_s * (WORKERS + 1) * RATE, rel=0.03)


@pytest.mark.parametrize("kind", ["age_s", "depth"])
def test_a_worker_started_at_the_trigger_keeps_the_target_and_one_started_later_does_not(kind: str) -> None:
    at_s = outgrowing(59, 45)  # nearly all that three workers can serve
    found = trigger("p99<=6s", at_s)
    at = first_moment(scenario(at_s).run().attempts(), **{kind: getattr(found, kind)})
    assert 10 < at < 40
    in_time = trace.measures(with_a_worker_from(at_s, at + START_S))["latency_p99_s"]
    late = trace.measures(with_a_worker_from(at_s, at + START_S + 6))["latency_p99_s"]
    assert 5.0 < in_time <= 6.1 < late
    never = trace.measures(scenario(at_s).run().attempts())["latency_p99_s"]
    assert never > 15


def test_where_a_fan_out_shares_the_queue_of_its_batches_the_trigger_is_on_the_safe_side() -> None:
    pairs = lab(
        queues__notifications__concurrency=2,
        providers__email__latency={"kind": "constant", "mean_s": 0.1},
        job_types__announce__fan_out__batch_size=2,
    )

    def of_pairs(at_s: np.ndarray, workers: int, starts_s: float, **more: Any) -> Scenario:
        two_each = Recorded(at_s=tuple(map(float, at_s)), users=(2,) * len(at_s))
        return Scenario(
            pairs, Deployment(workers=workers), Workload(arrivals=two_each, **more), host(starts_s), 0, True
        )

    at_s = np.concatenate((np.arange(0, 10, 0.1), 10 + np.arange(0, 40, 1 / 29)))  # a worker serves 10 pairs a second
    alone = of_pairs(at_s, WORKERS, START_S)
    calm = of_pairs(at_s[at_s < 10], WORKERS, START_S).run().attempts()
    found = trigger_of(alone, WORKERS, Target.parse("p99<=10s"), calm)
    assert found.passes == 2
    outgrown = alone.run().attempts()
    assert trace.measures(outgrown)["latency_p99_s"] > 11
    for kind in ("age_s", "depth"):
        at = first_moment(outgrown, **{kind: getattr(found, kind)})
        late = (KillWorker(at_s=0.0, worker=WORKERS),)
        helped = of_pairs(at_s, WORKERS + 1, at + START_S, faults=late).run().attempts()
        assert trace.measures(helped)["latency_p99_s"] <= 10


def test_the_depth_is_also_the_largest_burst_that_one_more_worker_saves() -> None:
    found = trigger("p99<=6s", outgrowing(59, 60))
    assert found.depth is not None
    for jobs, met in ((found.depth, True), (round(1.15 * found.depth), False)):
        took_s = trace.measures(with_a_worker_from(np.zeros(jobs), START_S))["makespan_s"]
        assert (took_s <= 6.15) is met


def test_no_trigger_where_a_start_takes_longer_than_the_target_leaves() -> None:
    found = trigger("p99<=1s", outgrowing(59, 60))
    assert (found.age_s, found.depth) == (None, None)
    assert found.reason.startswith("no time to react: of 1 s a user's jobs take 0.1")


def test_no_trigger_where_one_more_worker_does_not_help() -> None:
    here = scenario(outgrowing(59, 60))
    limited = lab(
        entry=[{"job_type": "notify"}],
        queues__notifications__concurrency=2,
        queues__notifications__rate_limit={"limit": 30},
        providers__email__latency={"kind": "constant", "mean_s": 0.1},
    )
    calm = replace(here, workload=arrivals(np.arange(0, 10, 0.1))).run().attempts()
    found = trigger_of(replace(here, topology=limited), WORKERS, Target.parse("p99<=6s"), calm)
    assert (found.age_s, found.depth) == (None, None)
    assert found.reason == "one more worker would not help: the bottleneck is rate_limit"
