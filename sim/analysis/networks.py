"""Closed product-form networks, solved exactly: as many customers as slots go round loops, broker and provider."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import inf, isinf, prod

import numpy as np
from numpy.typing import NDArray

from saqkit.errors import UsageError

Numbers = NDArray[np.float64]
MOST_POPULATIONS = 200_000


@dataclass(frozen=True)
class Station:
    """Where customers are served: `demands_s` seconds per cycle, one number per class.

    `servers`: 1 or more that share one line, first come first served with exponential times (of one mean for all
    classes that come here), or inf: a delay, of any distribution, where nobody waits.
    """

    demands_s: Sequence[float]
    servers: float = 1


@dataclass(frozen=True, eq=False)
class Closed:
    """Cycles per second of each class; for each station the seconds of a cycle spent there and the customers present,
    a number per class.
    """

    throughput_per_s: Numbers
    residence_s: Mapping[str, Numbers]
    present: Mapping[str, Numbers]


def closed_network(circulating: Sequence[int], stations: Mapping[str, Station]) -> Closed:
    """Exact mean value analysis of a closed network with `circulating` customers in each class.

    Reiser & Lavenberg (1980); stations of several servers by their marginal probabilities, whose p(0) is the ratio of
    throughputs with and without the station (Bruell, Balbo & Afshari, 1984), which stays exact where 1 - Σp does not.
    Work and memory grow with Π (customers + 1) over classes; `UsageError` beyond 200,000.
    """
    classes = len(circulating)
    if not classes or any(n < 0 or n != int(n) for n in circulating):
        raise UsageError(f"circulating={list(circulating)}: a whole number of customers for each class")
    if (populations := prod(n + 1 for n in circulating)) > MOST_POPULATIONS:
        raise UsageError(f"circulating={list(circulating)}: {populations:,} populations, at most {MOST_POPULATIONS:,}")
    for name, station in stations.items():
        if len(station.demands_s) != classes or any(not 0 <= d < inf for d in station.demands_s):
            raise UsageError(f"station {name}: demands_s={list(station.demands_s)}: seconds for each of the classes")
        if not (isinf(station.servers) or (station.servers >= 1 and station.servers == int(station.servers))):
            raise UsageError(f"station {name}: servers={station.servers}: a whole number, at least 1, or inf")
    demands = np.array([station.demands_s for station in stations.values()], dtype=np.float64).reshape(-1, classes)
    if any(n and not total for n, total in zip(circulating, demands.sum(axis=0), strict=True)):
        raise UsageError("a class whose cycle takes no time has no throughput")
    throughput, residence = _solve(tuple(circulating), demands, [station.servers for station in stations.values()])
    found = throughput[tuple(circulating)]
    return Closed(
        found,
        {name: residence[k] for k, name in enumerate(stations)},
        {name: residence[k] * found for k, name in enumerate(stations)},
    )


def event_loops(workers: int, slots: int, loop_s: float, broker_s: float, provider_s: float) -> Closed:
    """The kit's own topology: `slots` customers on each of `workers` loops, one broker, and the provider's wait.

    A class per worker; a cycle is one user's CPU on the loop, calls to the broker, and the provider. Seconds per cycle.
    """
    own = np.eye(workers) * loop_s
    stations = {f"loop {w}": Station(own[w].tolist()) for w in range(workers)}
    shared = {"broker": Station([broker_s] * workers), "provider": Station([provider_s] * workers, inf)}
    return closed_network([slots] * workers, stations | shared)


def _solve(circulating: tuple[int, ...], demands: Numbers, servers: Sequence[float]) -> tuple[Numbers, Numbers]:
    """Throughput of every population up to the whole one, and residence (station, class) in the whole one."""
    classes, shape = len(circulating), tuple(n + 1 for n in circulating)
    shared = [k for k, count in enumerate(servers) if 1 < count < inf]
    without = {
        k: _solve(circulating, np.delete(demands, k, axis=0), [*servers[:k], *servers[k + 1 :]])[0] for k in shared
    }
    # Probabilities that 0 … c-2 customers are at a station of c servers.
    few = {k: np.zeros((*shape, int(servers[k]) - 1)) for k in shared}
    # The share of a server's time that a customer needs there, and whether those present keep him waiting.
    speed = np.array([1.0 if isinf(count) else count for count in servers])
    queues = np.array([not isinf(count) for count in servers], dtype=np.float64)
    throughput, present = np.zeros((*shape, classes)), np.zeros((*shape, len(servers)))
    residence = np.zeros((len(servers), classes))
    for n in np.ndindex(*shape):
        residence = np.zeros((len(servers), classes))
        befores = {r: (*n[:r], n[r] - 1, *n[r + 1 :]) for r in range(classes) if n[r]}
        for r, before in befores.items():
            ahead = 1 + queues * present[before]
            for k in shared:
                ahead[k] += (np.arange(servers[k] - 1, 0, -1) * few[k][before]).sum()
            residence[:, r] = demands[:, r] * ahead / speed
            cycle_s = residence[:, r].sum()
            throughput[n][r] = n[r] / cycle_s if cycle_s else inf
            if cycle_s:
                present[n] += n[r] * residence[:, r] / cycle_s
        for k in shared:
            here = {r: before for r, before in befores.items() if demands[k, r]}
            found, rates = few[k][n], throughput[n]
            found[0] = 1.0
            for r, before in here.items():
                found[0] = few[k][before][0] * rates[r] / without[k][n][r]
            for j in range(1, len(found)):
                found[j] = sum(rates[r] * demands[k, r] * few[k][before][j - 1] for r, before in here.items()) / j
    return throughput, residence
