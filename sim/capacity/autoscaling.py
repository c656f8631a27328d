"""An autoscaler's trigger: the age of the oldest job, or the depth, at which one more worker has to be started."""

from __future__ import annotations

from dataclasses import asdict, dataclass, replace
from math import floor
from typing import Any

import pandas as pd

from saqkit.spec import trace
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Burst
from sim.capacity.saturation import saturated
from sim.running.scenario import Scenario, deploy
from sim.targets import Target

HELPS = 1.02  # one more worker that brings less than this does not help


@dataclass(frozen=True)
class Trigger:
    """When to start one more worker, so that the target still holds; whichever of `age_s` and `depth` comes first.

    While the stream outgrows its workers (rate μ) and one more (μ') would carry it, a job that joins the line waits at
    most w = (T - S) / passes, if the target T leaves that beside what else a user's job takes (S). A worker started at
    age A of the oldest job serves after R = `restart_s`. At the highest rate that it makes bearable, λ = μ', the line
    is A·μ' long by then and grows by (μ' - μ)·R until it serves; every job from then on waits A + R·(1 - μ/μ'). So

        age A = w - R·(1 - μ/μ')        depth D = A·μ'

    and slower growth is safer still. The depth says also how large a burst, W workers running and one being started,
    still meets the target: μ·R + μ'·(w - R) jobs is the same D. `age_s` and `depth` are None where no trigger exists;
    `reason` says why. Levels of priority are not told apart: it is a rule for the line as a whole. Where jobs pass the
    line twice (a fan-out and its batches share a queue) both waits are taken to be equal, which is on the safe side.
    """

    queue: str
    age_s: float | None
    depth: int | None
    reason: str
    restart_s: float
    service_s: float
    passes: int
    rate_per_s: float
    rate_with_one_more_per_s: float

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types."""
        return asdict(self)


def trigger_of(scenario: Scenario, workers: int, target: Target, attempts: pd.DataFrame) -> Trigger:
    """The trigger for `scenario` with `workers` worker processes a host; `attempts`: of a run that is in order."""
    queue = _busiest(scenario, attempts)
    passes = 1 if isinstance(scenario.workload.arrivals, Burst) else _passes(scenario.topology, queue)
    service_s = 0.0 if target.metric == "wait_p95" else _beside_waiting_s(attempts, target.share)
    slots = scenario.deployment.concurrency
    here = saturated(replace(scenario, same_draw=True))
    more = saturated(replace(scenario, deployment=deploy(scenario.deployment, workers + 1, slots), same_draw=True))
    rate, next_rate = here.jobs_per_s(queue), more.jobs_per_s(queue)
    restart_s = scenario.profile.host.restart_s.value
    age_s: float | None = None
    depth: int | None = None
    if next_rate < HELPS * rate:
        reason = f"one more worker would not help: the bottleneck is {more.bottleneck}"
    else:
        age = (target.bound_s - service_s) / passes - restart_s * (1 - rate / next_rate)
        if age > 0:
            age_s, depth = age, floor(age * next_rate)
            reason = f"start one more worker at an age of {age:.3g} s or {depth:,} jobs, whichever comes first"
        else:
            reason = (
                f"no time to react: of {target.bound_s:g} s a user's jobs take {service_s:.3g} s without waiting, "
                f"a start {restart_s:.3g} s"
            )
    return Trigger(queue, age_s, depth, reason, restart_s, service_s, passes, rate, next_rate)


def _busiest(scenario: Scenario, attempts: pd.DataFrame) -> str:
    """The queue whose slots have the most to do: where a backlog forms."""
    took_s = (attempts["finished_at"] - attempts["started_at"]).groupby(attempts["queue"]).sum()
    slots = {queue: scenario.deployment.slots(scenario.topology, queue) for queue in took_s.index}
    return str(max(slots, key=lambda queue: float(took_s[queue]) / slots[queue]))


def _passes(topology: Topology, queue: str) -> int:
    """How often, at most, the jobs of one user stand in this line, one after another."""

    def below(name: str) -> int:
        job = topology.job_types[name]
        return (job.queue == queue) + max((below(to) for _, to in job.edges()), default=0)

    return max(1, *(below(name) for entry in topology.entry for name in topology.starts(entry)))


def _beside_waiting_s(attempts: pd.DataFrame, share: float) -> float:
    """The quantile over users of their latency without the first wait of the job that served them, in seconds.

    Retries' delays belong to it; so does the time until a fan-out has enqueued the job.
    """
    first = attempts.sort_values("attempt", kind="stable").drop_duplicates("job").set_index("job")
    served = attempts[attempts["users_done"] > 0]
    waited = (first["taken_at"] - first["ready_at"]).reindex(served["job"]).to_numpy(float)
    other = (served["finished_at"] - served["event_at"]).to_numpy(float) - waited
    return trace.weighted_quantiles(other, served["users_done"].to_numpy(float), [share])[0]
