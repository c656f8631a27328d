"""Runs the kernel, and makes the outcome of what it returns."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.spec.deployment import Deployment
from saqkit.spec.lifecycle import OUTCOMES
from saqkit.spec.topology import Topology
from saqkit.spec.workload import Arrival, Workload
from sim.engine.costs import Costs
from sim.engine.draws import TEMPORARY
from sim.engine.fast.compiled import as_arrays, as_views, call, compiled, pays
from sim.engine.fast.kernel import DEAD, NO_DRAW, NO_ROOM, STUCK, simulate
from sim.engine.fast.sends import Sends, deal
from sim.engine.fast.tables import Tables, flatten
from sim.engine.outcome import COLUMNS, Outcome, shares

ERRORS = ("", "TemporaryFailure", "TimeoutError")


def run_fast(
    topology: Topology,
    deployment: Deployment,
    workload: Workload,
    costs: Costs,
    seed: int,
    relieved: str = "",
    tick_phase_s: float = 0.0,
    deadline_s: float | None = None,
    compiles: bool | None = None,
) -> Outcome:
    """What `Model(...).run(deadline_s)` returns, by the fast engine; what it does not cover: `coverage.beyond_fast`.

    `compiles`: whether numba compiles the kernel (if it is installed); None: if it has done so before, or if so much is
    simulated that compiling pays.
    """
    deployment.check(topology)
    workload.check(topology, deployment)
    arrivals = list(workload.events(topology, seed))
    providers = {
        name: replace(provider, latency_scale=0.5) if relieved == "provider" else provider
        for name, provider in costs.providers.items()
    }
    tables = flatten(topology, deployment, costs, arrivals, seed, relieved, tick_phase_s, deadline_s)
    users = tables.event_start[-1]
    kernel = compiled() if compiles or (compiles is None and pays(users, tables.jobs)) else None
    sends, everybody, most, scale = deal(topology, providers, arrivals, seed), False, users, 1
    while True:
        roomy = _with_room(topology, tables, sends, scale)
        found = call(kernel, as_arrays(roomy), sends) if kernel else simulate(roomy, as_views(sends))
        # Where jobs time out, more may happen than is foreseen: then more is foreseen, and all begins again.
        if found[0] == NO_ROOM:
            scale *= 4
        elif found[0] == NO_DRAW:
            everybody, most = everybody or bool(sends.fate[found[1]] != TEMPORARY), 2 * most
            sends = deal(topology, providers, arrivals, seed, everybody, most)
        elif found[0] == STUCK:
            raise AssertionError("nothing happens any more, but not all jobs are done")
        else:
            return _outcome(topology, arrivals, tables, found)


def _with_room(topology: Topology, tables: Tables, sends: Sends, scale: int) -> Tables:
    nodes = int(np.count_nonzero(sends.fate == TEMPORARY)) * scale + tables.event_start[-1] * (scale - 1) // 4 + 16
    tries = max(job.retry.max_attempts for job in topology.job_types.values())
    attempts = min(tables.jobs * tries, tables.jobs + nodes) + 16 * scale
    return tables._replace(nodes=nodes, attempts=attempts, lanes=tables.lanes * scale)


def _outcome(topology: Topology, arrivals: list[Arrival], tables: Tables, found: tuple[Any, ...]) -> Outcome:
    _, _, ended_at_s, drained, ended, order, totals, parts, *rows = found
    slot_s, lane_s, provider_s, broker_s, database_s = map(float, totals)
    busy_s, core_s, wakes, admitted, event_at, lent_s = map(np.array, parts)
    served = zip(tables.serves_from, tables.serves_from[1:], strict=False)
    utilisation = shares(
        span_s=ended_at_s,
        slot_s=slot_s,
        slots=sum(tables.slots[queue] for begin, end in served for queue in tables.serves[begin:end]),
        loop_s=sum(busy_s.tolist()),
        loops=tables.workers,
        core_s=sum(core_s.tolist()),
        cores=tables.hosts * tables.cores,
        broker_s=broker_s,
        database_s=database_s,
        provider_s=provider_s,
        lane_s=lane_s,
        limits=[*zip(admitted.tolist(), tables.limit, tables.period_s, strict=True)],
    )
    columns = [[np.array(column) for column in part] for part in rows]
    attempts = Rows(topology, arrivals, tables, np.array(order[:ended], np.int64), event_at, *columns)
    told = sum(wakes.tolist()), sum(lent_s.tolist())
    return Outcome(attempts, utilisation, bool(drained), float(ended_at_s), *told)


class Rows(Mapping[str, Any]):
    """The columns of the attempts: numbers as the kernel returns them, words made when they are asked for."""

    def __init__(
        self,
        topology: Topology,
        arrivals: list[Arrival],
        tables: Tables,
        order: NDArray[np.int64],
        event_at: NDArray[np.float64],
        jobs: list[NDArray[Any]],
        counts: list[NDArray[Any]],
        times: list[NDArray[Any]],
    ) -> None:
        job, self._worker, attempt, users, refused, again, self._outcome, self._error = (c[order] for c in counts)
        self._kind, self._event, self._first, priority, parent, queued_at = (column[job] for column in jobs)
        self._topology, self._tables, self._arrivals = topology, tables, arrivals
        self._parent, self._jobs = parent, jobs[:3]
        serves = np.array(tables.type_batch)[self._kind] == 0
        self._numbers: dict[str, NDArray[Any]] = {
            "event_at": event_at[self._event],
            "priority": priority,
            "attempt": attempt,
            "crashes": np.zeros(len(order), np.int64),
            "users": users * serves,
            "users_done": (users - refused - again) * serves,
            "users_failed": (refused + again * (self._outcome == DEAD)) * serves,
            "queued_at": queued_at,
        }
        names = ("ready_at", "taken_at", "started_at", "finished_at", "cpu_s", "provider_s", "database_s")
        self._numbers |= {name: column[order] for name, column in zip(names, times, strict=True)}

    def __getitem__(self, name: str) -> Any:
        if name in self._numbers:
            return self._numbers[name]
        types, kind = self._topology.job_types, self._kind
        match name:
            case "event":
                return _words([str(arrival.event) for arrival in self._arrivals], self._event)
            case "job":
                return self._keys(kind, self._event, self._first)
            case "job_type":
                return _words(list(types), kind)
            case "queue":
                return _words([job.queue for job in types.values()], kind)
            case "parent":  # many have the same
                parents, which = np.unique(self._parent, return_inverse=True)
                keys = self._keys(*(np.append(column, -1)[parents] for column in self._jobs))
                return keys.take(which)
            case "tenant":
                return _words([arrival.entry.tenant for arrival in self._arrivals], self._event)
            case "outcome":
                return pd.Categorical.from_codes(self._outcome.astype(np.int8), categories=pd.Index(OUTCOMES))
            case "worker":
                return _words([f"w{n}" for n in range(self._tables.workers)], self._worker)
            case "host":
                return _words([f"h{host}" for host in self._tables.host_of], self._worker)
            case "error":
                return _words(ERRORS, self._error)
        raise KeyError(name)

    def _keys(self, kind: NDArray[Any], event: NDArray[Any], first: NDArray[Any]) -> Any:
        """The keys of jobs; of kind -1, ""."""
        types = self._topology.job_types
        shapes = [f"{name}-{{}}" + ("" if job.fan_out else "-{}") for name, job in types.items()] + [""]
        forms = [shape.format for shape in shapes]  # the last is that of no job
        keys = [forms[k](e + 1, user) for k, e, user in zip(kind.tolist(), event.tolist(), first.tolist(), strict=True)]
        return pd.array(keys, dtype="str")

    def __iter__(self) -> Iterator[str]:
        return iter(COLUMNS)

    def __len__(self) -> int:
        return len(COLUMNS)


def _words(words: Sequence[str], numbers: NDArray[Any]) -> Any:
    return pd.array(list(words), dtype="str").take(numbers)
