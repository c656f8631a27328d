"""What can be changed in a scenario: overrides by path, whole parts, functions, and what planners ask for."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any, get_args

from saqkit.errors import DescriptionError, UsageError
from saqkit.spec.base import did_you_mean
from saqkit.spec.deployment import Deployment
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Burst, ClosedLoop, KillWorker, Poisson, Profile, ProviderOutage, Scheduled, Workload
from sim.running.scenario import QueueKind, Scenario

Change = Mapping[str, Any] | Callable[[Scenario], Scenario] | Topology | Deployment | Workload
"""Overrides by path (`{"providers.email.latency.mean_s": 0.04, "deployment.workers": 4}`; short: `users workers
concurrency batch_size`, and `{"queue": "stock"}` for stock SAQ's queue), a part that replaces the base's, or a function
of the base."""

OUTAGE_S = 600.0
MOMENT = 1 / 3  # faults happen when a third of the base's time is over: work is waiting, and some is done


class Unchanged(Exception):
    """A change that changes nothing here; its text says why."""


def applied(name: str, change: Change | str, base: Scenario, base_s: float) -> Scenario:
    """`base` with `change`, which may be the name of a built-in one; `base_s` is the base's time to drain.

    Raises `Unchanged`, or `DescriptionError` for a path or value that is wrong.
    """
    if isinstance(change, str):
        if change not in BUILT_IN:
            raise DescriptionError(f'there is no built-in change "{change}"', key="changes", value=change,
                                   hint=did_you_mean(change, BUILT_IN))  # fmt: skip
        changed = BUILT_IN[change](base, base_s)
    elif isinstance(change, Topology):
        changed = replace(base, topology=change)
    elif isinstance(change, Deployment):
        changed = replace(base, deployment=change)
    elif isinstance(change, Workload):
        changed = replace(base, workload=change)
    elif isinstance(change, Mapping):
        changed = _overridden(name, change, base)
    elif callable(change):
        changed = change(base)
        if not isinstance(changed, Scenario):
            raise UsageError(f'scenario "{name}": the function returned {type(changed).__name__}, not a Scenario')
    else:
        raise UsageError(f'scenario "{name}": {change!r} is no change (overrides by path, a part, or a function)')
    if changed == base:
        raise Unchanged("everything stays as it is in the base")
    return changed


def _overridden(name: str, paths: Mapping[str, Any], base: Scenario) -> Scenario:
    parts: dict[str, dict[str, Any]] = {"topology": {}, "deployment": {}, "workload": {}}
    for path, value in paths.items():
        part, dot, rest = path.partition(".")
        if path in ("workers", "concurrency"):
            parts["deployment"][path] = value
        elif path == "users":
            parts["workload"]["arrivals.users"] = value
        elif dot and part in parts:
            parts[part][rest] = value
        else:
            parts["topology"][path] = value
    source = f'scenario "{name}"'
    queue = parts["topology"].pop("queue", base.queue)
    if queue not in get_args(QueueKind):
        raise DescriptionError(f'there is no queue "{queue}"', source=source, key="queue", value=queue,
                               hint=did_you_mean(str(queue), get_args(QueueKind)))  # fmt: skip
    batch_size = parts["topology"].pop("batch_size", None)
    topology = override(base.topology, parts["topology"], source) if parts["topology"] else base.topology
    return replace(
        base,
        topology=topology if batch_size is None else topology.with_batch_size(batch_size),
        deployment=override(base.deployment, parts["deployment"], f"{source} deployment"),
        workload=override(base.workload, parts["workload"], f"{source} workload"),
        queue=queue,
    )


# The built-in changes: (base, its time to drain in seconds) -> scenario


def half_the_latency(base: Scenario, base_s: float) -> Scenario:
    """Every provider answers in half the time."""
    return _with_providers(base, lambda data: {**data, "latency": _scaled(data["latency"], 0.5)})


def retries_tripled(base: Scenario, base_s: float) -> Scenario:
    """Three times as many sends fail temporarily."""
    shares = [p.temporary_share for p in base.topology.providers.values()]
    shares += [p.temporary_share for p in base.profile.providers.values()]
    if not any(shares):
        raise Unchanged("no provider has temporary failures")
    return _with_providers(base, lambda data: {**data, "temporary_share": min(1.0, 3 * data["temporary_share"])})


def double_the_users(base: Scenario, base_s: float) -> Scenario:
    """Twice as many users arrive: as large a burst, as fast a stream, as many in each recorded arrival."""
    arrivals = base.workload.arrivals
    if isinstance(arrivals, Burst):
        change: dict[str, Any] = {"users": 2 * arrivals.users}
    elif isinstance(arrivals, Poisson):
        change = {"rate_per_s": 2 * arrivals.rate_per_s}
    elif isinstance(arrivals, Profile):
        change = {"users_per_day": 2 * arrivals.users_per_day}
    elif isinstance(arrivals, ClosedLoop):
        change = {"clients": 2 * arrivals.clients}
    elif isinstance(arrivals, Scheduled):
        return _twice_as_many_scheduled(base, arrivals, base_s)
    else:
        change = {"users": [2 * users for users in arrivals.users or (1,) * len(arrivals.at_s)]}
    return replace(base, workload=override(base.workload, {f"arrivals.{name}": v for name, v in change.items()}))


def _twice_as_many_scheduled(base: Scenario, arrivals: Scheduled, base_s: float) -> Scenario:
    """Twice the users of every schedule, and of what comes besides."""
    doubled = {f"schedules.{n}.users": 2 * one.users for n, one in enumerate(base.topology.schedules) if one.users}
    others = arrivals.others
    if others:
        besides = replace(base, workload=Workload(arrivals=others))
        others = double_the_users(besides, base_s).workload.arrivals  # type: ignore[assignment]  # of the same kind
    what = arrivals.model_copy(update={"others": others})
    workload = base.workload.model_copy(update={"arrivals": what})
    return replace(base, topology=override(base.topology, doubled), workload=workload)


def outage(base: Scenario, base_s: float) -> Scenario:
    """Every provider refuses everything for ten minutes."""
    if not base.topology.providers:
        raise Unchanged("there is no provider that could be out")
    faults = [
        ProviderOutage(at_s=MOMENT * base_s, duration_s=OUTAGE_S, provider=name) for name in base.topology.providers
    ]
    return _with_faults(base, faults)


def two_workers_killed(base: Scenario, base_s: float) -> Scenario:
    """Two worker processes (or the only one) are killed at once; the launcher starts them again."""
    processes = base.deployment.hosts * len(base.deployment.processes(base.topology))
    return _with_faults(base, [KillWorker(at_s=MOMENT * base_s, worker=n) for n in range(min(2, processes))])


def two_workers_fewer(base: Scenario, base_s: float) -> Scenario:
    """Two worker processes fewer from the beginning."""
    if base.deployment.groups or base.deployment.workers <= 2:
        raise Unchanged("there are not three workers a host of which two could be missing")
    return replace(base, deployment=override(base.deployment, {"workers": base.deployment.workers - 2}))


BUILT_IN: dict[str, Callable[[Scenario, float], Scenario]] = {
    "half the latency": half_the_latency,
    "double the users": double_the_users,
    "outage of 10 min": outage,
    "two workers killed": two_workers_killed,
    "two workers fewer": two_workers_fewer,
    "retries tripled": retries_tripled,
}
"""The changes that are tried when none is given, as far as they change something."""


def _with_faults(base: Scenario, faults: list[Any]) -> Scenario:
    added = [*base.workload.faults, *faults]
    return replace(base, workload=base.workload.model_copy(update={"faults": tuple(added)}))


def _with_providers(base: Scenario, change: Callable[[dict[str, Any]], dict[str, Any]]) -> Scenario:
    """Providers changed where they are described, and where the profile has measured ones."""
    if not base.topology.providers:
        raise Unchanged("there is no provider")
    topology, profile = base.topology.to_dict(), base.profile.to_dict()
    for data in (topology, profile):
        data["providers"] = {name: change(provider) for name, provider in data["providers"].items()}
    return replace(
        base, topology=type(base.topology).parse(topology), profile=type(base.profile).parse(profile, "profile")
    )


def _scaled(distribution: Any, factor: float) -> Any:
    """A distribution's table with every time in it (keys that end in `_s`) multiplied."""
    if isinstance(distribution, list):
        return [_scaled(part, factor) for part in distribution]
    if not isinstance(distribution, dict):
        return distribution
    return {
        name: _times(value, factor) if name.endswith("_s") else _scaled(value, factor)
        for name, value in distribution.items()
    }


def _times(value: Any, factor: float) -> Any:
    if isinstance(value, dict):
        return {name: _times(inner, factor) for name, inner in value.items()}
    if isinstance(value, list):
        return [_times(inner, factor) for inner in value]
    return value if value is None else factor * value
