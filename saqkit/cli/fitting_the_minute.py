"""What `saqkit demo` changes in a topology so that its two real runs fit a minute, and who arrives in them."""

from __future__ import annotations

import asyncio
from collections.abc import Iterator
from typing import Any

import sim
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Recorded, Workload

RUNS_S = 22.0
"""What both real runs together may take on a nominal host, so that all fits a minute with the probe and start-up."""
JOBS = 50
"""Users are cut into about so many jobs, so that the picture shows a curve and the slots have several turns each."""
LONGEST_RETRY_S = 1.0
MOST_SLOTS = 80
FITTED, SHARED = 300, 800
"""Users of the run that is fitted: at most so many, and so many by the job types, as each makes the fit longer."""
QUICKEST = 1 / 32
"""The least share that is left of how long providers take."""
HELPS = 0.95
"""A change is made only if what is left is at most this share of the time."""
GROUP = 50
"""Where a topology has several entries, users come in groups of at most so many, all at once."""


async def fit_the_minute(
    topology: Topology, users: int, calibration_users: int, workers: int
) -> tuple[Topology, int | None, dict[str, str]]:
    """The topology changed so that both runs end within `RUNS_S` on a nominal host, the slots (None: its own), and
    what was changed, by path, with the reason.

    What no arrival leads to is left out, and batches become smaller, always. Only while that is not enough, and only
    where it helps: no retry waits longer than a second, then rate limits are lifted, then every queue gets more slots,
    and at last simulated providers take less time. It can be cancelled: it waits for one prediction at most.
    """
    changes: dict[str, str] = {}
    if unmet := len(topology.job_types) - len(reached(topology)):
        all_types = len(topology.job_types)
        changes["job_types"] = f"without {unmet} of {all_types} job types: only schedules or the application start them"
        topology = _reduced(topology)
    batch = max(1, users // JOBS)
    for name, job in topology.job_types.items():
        if job.fan_out and job.fan_out.batch_size > batch:
            path = f"job_types.{name}.fan_out.batch_size"
            topology = override(topology, {path: batch})
            changes[path] = (
                f"batches of {batch} users instead of {job.fan_out.batch_size:,}, so that there are about {JOBS} jobs"
            )

    async def takes_s(shaped: Topology, slots: int | None = None) -> float:
        took_s = 0.0
        for n, w in ((calibration_users, 1), (users, workers)):
            came = arriving(shaped, n)
            found = await asyncio.to_thread(
                sim.predict, shaped, workload=came, workers=w, concurrency=slots, replications=1
            )
            took_s += found.combinations[0].measures["makespan_s"]["mean"]
        return took_s

    took_s = await takes_s(topology)
    for path, value, reason in _shortcuts(topology):
        if took_s <= RUNS_S:
            break
        shaped = override(topology, {path: value})
        if (shorter_s := await takes_s(shaped)) < HELPS * took_s:
            topology, took_s, changes[path] = shaped, shorter_s, reason
    slots, own = None, max(queue.concurrency for queue in topology.queues.values())
    while took_s > RUNS_S and (more := 2 * (slots or own)) <= MOST_SLOTS:
        if (shorter_s := await takes_s(topology, more)) >= HELPS * took_s:
            break
        slots, took_s = more, shorter_s
        changes["concurrency"] = f"{slots} slots for each queue of a worker process instead of {_own_slots(topology)}"
    share = 1.0
    while took_s > RUNS_S and share > QUICKEST and (quicker := _quicker(topology)):
        shaped = override(topology, quicker)
        if (shorter_s := await takes_s(shaped, slots)) >= HELPS * took_s:
            break
        share, topology, took_s = share / 2, shaped, shorter_s
        changes |= {path: f"{path.split('.')[1]} takes {share:.2g} of its time" for path in quicker}
    return topology, slots, changes


def users_to_fit(topology: Topology) -> int:
    """Of how many users the small run is."""
    return min(FITTED, SHARED // len(reached(topology)))


def reached(topology: Topology) -> list[str]:
    """The job types that arrivals lead to, whatever of them; in the order of the file."""
    left, found = [name for entry in topology.entry for name in topology.starts(entry)], set[str]()
    while left:
        if (name := left.pop()) not in found:
            found.add(name)
            left += [target for _, target in topology.job_types[name].edges()]
    return [name for name in topology.job_types if name in found]


def _reduced(topology: Topology) -> Topology:
    """Only what arrivals lead to: job types, and their topics, queues and providers; no schedules."""
    data = topology.to_dict()
    jobs = [topology.job_types[name] for name in reached(topology)]
    kept: dict[str, set[Any]] = {
        "job_types": set(reached(topology)),
        "topics": {entry.topic for entry in topology.entry},
        "queues": {job.queue for job in jobs},
        "providers": {job.per_user.provider for job in jobs},
    }
    for part, names in kept.items():
        data[part] = {name: value for name, value in data[part].items() if name in names}
    return Topology.parse({**data, "schedules": []}, topology.name)


def _own_slots(topology: Topology) -> str:
    found = sorted({queue.concurrency for queue in topology.queues.values()})
    return f"{found[0]}" if len(found) == 1 else f"{found[0]} to {found[-1]}"


def _quicker(topology: Topology) -> dict[str, float]:
    """Half the mean time of every simulated provider whose latency has one, by path: a real server stays as it is."""
    simulated = {name: one for name, one in topology.providers.items() if one.kind == "simulated"}
    latencies = {f"providers.{name}.latency.mean_s": one.latency for name, one in simulated.items()}
    own = ("constant", "exponential", "lognormal", "gamma")
    return {path: latency.mean_s / 2 for path, latency in latencies.items() if latency.kind in own}


def arriving(topology: Topology, users: int) -> Workload:
    """`users` users at once: as one event, or where there are several entries through each its share of them."""
    if len(topology.entry) == 1:
        return Workload.burst(users)
    names, sizes, due, came = list[str](), list[int](), 0.0, 0
    for entry in topology.entry:
        due += entry.share * users
        while (group := min(GROUP, round(due) - came)) > 0:
            names.append(entry.topic or str(entry.job_type))
            sizes.append(group)
            came += group
    return Workload(arrivals=Recorded(at_s=(0.0,) * len(sizes), users=tuple(sizes), entries=tuple(names)))


def _shortcuts(topology: Topology) -> Iterator[tuple[str, Any, str]]:
    """(path, value, reason) of what may make a run shorter without changing what it does, the mildest first."""
    for name, job in topology.job_types.items():
        if (longest := max(job.retry.schedule(), default=0.0)) > LONGEST_RETRY_S:
            reason = f"retries of {name} wait {LONGEST_RETRY_S:g} s at most instead of {longest:g} s"
            yield f"job_types.{name}.retry.cap_s", LONGEST_RETRY_S, reason
    for name, queue in topology.queues.items():
        if limit := queue.rate_limit:
            reason = f"no rate limit on {name} instead of {limit.limit} {limit.unit} in {limit.period_s:g} s"
            yield f"queues.{name}.rate_limit", "none", reason
