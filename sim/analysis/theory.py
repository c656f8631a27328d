"""What queueing theory knows exactly, and what planners reckon without a model.

The model is checked against the first half (see docs/theory.md); the accuracy report shows the second half beside it.
Arguments are numbers or arrays that broadcast against each other, and so are the results. Where the offered load
reaches the servers (ρ ≥ 1) there is no steady state: everybody waits, and waits and latencies are inf. Arguments that
mean nothing (negative or missing times, shares outside 0 … 1, half servers) raise `UsageError`.
"""

from __future__ import annotations

from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray

from saqkit.errors import UsageError

Numbers = NDArray[np.float64]

# Steady state of open queues


def waiting_probability(load: ArrayLike, servers: ArrayLike) -> Numbers:
    """The probability that a customer of an M/M/c queue waits (Erlang's C formula, 1917).

    `load` is arrivals per second × seconds of service, in erlangs. Computed by the recursion of Erlang's B formula,
    B(k) = a·B(k-1) / (k + a·B(k-1)), which stays exact for thousands of servers.
    """
    a, c = np.broadcast_arrays(_number("load", load), _whole("servers", servers))
    blocked = np.ones(a.shape)
    for k in range(1, int(c.max(initial=0)) + 1):
        blocked = np.where(k <= c, a * blocked / (k + a * blocked), blocked)
    return _plain(np.where(a < c, blocked / (1 - np.minimum(a / c, 1) * (1 - blocked)), 1.0))


def mmc_wait_s(rate_per_s: ArrayLike, service_s: ArrayLike, servers: ArrayLike) -> Numbers:
    """Mean seconds that a customer of an M/M/c queue waits: C(c, a)·s / (c - a)."""
    a, s, c = _load(rate_per_s, service_s, servers)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _plain(np.where(a < c, waiting_probability(a, c) * s / (c - a), np.inf))


def mmc_wait_quantile_s(q: ArrayLike, rate_per_s: ArrayLike, service_s: ArrayLike, servers: ArrayLike) -> Numbers:
    """Seconds within which a share `q` of the customers of an M/M/c queue begin: P(W > t) = C·exp(-(c - a)·t/s)."""
    a, s, c = _load(rate_per_s, service_s, servers)
    late = 1 - _number("q", q, most=1)
    with np.errstate(divide="ignore", invalid="ignore"):
        found = np.log(waiting_probability(a, c) / late) * s / (c - a)
    return _plain(np.where(a < c, np.maximum(0.0, np.nan_to_num(found, nan=0.0, neginf=0.0, posinf=np.inf)), np.inf))


def mg1_wait_s(rate_per_s: ArrayLike, service_s: ArrayLike, cv: ArrayLike) -> Numbers:
    """Mean seconds that a customer of an M/G/1 queue waits: λ·E[S²] / 2(1 - ρ) (Pollaczek, 1930; Khinchine, 1932).

    `cv` is the service times' standard deviation over their mean: 0 if constant, 1 if exponential.
    """
    rate, s, cv = _number("rate_per_s", rate_per_s), _number("service_s", service_s), _number("cv", cv)
    with np.errstate(divide="ignore", invalid="ignore"):
        return _plain(np.where(rate * s < 1, rate * s**2 * (1 + cv**2) / (2 * (1 - rate * s)), np.inf))


def priority_wait_s(rates_per_s: ArrayLike, service_s: ArrayLike, cv: ArrayLike = 1.0, servers: int = 1) -> Numbers:
    """Mean wait per class, the first going first, none interrupted: W₀ / (1 - σₚ₋₁)(1 - σₚ) (Cobham, 1954).

    σₚ is the load of the classes up to p, per server. One server: any service times (`service_s`, `cv` per class).
    More: exponential ones, of one mean. Beyond capacity the classes that do not fit wait forever, and those before
    them as long as with servers that are never idle.
    """
    count = _whole("servers", servers)
    rates, s, cv = np.broadcast_arrays(
        np.atleast_1d(_number("rates_per_s", rates_per_s)), _number("service_s", service_s), _number("cv", cv)
    )
    if count > 1 and (np.ptp(s) > 0 or np.any(cv != 1)):
        raise UsageError("priority_wait_s: with more than one server, classes need one mean service time and cv = 1")
    upto = np.cumsum(rates * s) / count
    before = np.concatenate(([0.0], upto[:-1]))
    served = np.minimum(rates * s, np.maximum(0.0, 1 - before) * count)  # load of each class that is carried
    if count > 1:
        residual_s = waiting_probability(upto[-1] * count, servers) * s[0] / count
    else:
        residual_s = (served * s * (1 + cv**2)).sum() / 2
    with np.errstate(divide="ignore", invalid="ignore"):
        return np.where(upto < 1, residual_s / ((1 - before) * (1 - upto)), np.inf)


def customers(rate_per_s: ArrayLike, seconds: ArrayLike) -> Numbers:
    """Mean number of those who spend `seconds` each, arriving at a rate: L = λ·W (Little, 1961)."""
    return _plain(_number("rate_per_s", rate_per_s) * _number("seconds", seconds))


def poll_wait_s(tick_s: ArrayLike) -> Numbers:
    """Mean wait for the next tick of a grid, of what becomes due at any moment: U(0, tick), so half a tick."""
    return _plain(_number("tick_s", tick_s) / 2)


# Retries


def expected_attempts(temporary_share: ArrayLike, max_attempts: int, users: ArrayLike = 1) -> Numbers:
    """Mean number of executions of a job whose users' sends fail with `temporary_share`, independently.

    The job is executed for the (k+1)-th time if any of its users failed k times: Σ (1 - (1 - pᵏ)ⁿ) over k below
    `max_attempts`; for one user that is Σ pᵏ.
    """
    p = _number("temporary_share", temporary_share, most=1)
    n, most = _whole("users", users), int(_whole("max_attempts", max_attempts))
    return _plain(sum((1 - (1 - p**k) ** n for k in range(most)), start=np.zeros(())))


def served_share(temporary_share: ArrayLike, max_attempts: int, permanent_share: ArrayLike = 0.0) -> Numbers:
    """Share of users who are served in the end: (1 - q)·(1 - pᵐ)."""
    p = _number("temporary_share", temporary_share, most=1)
    bad = _number("permanent_share", permanent_share, most=1)
    return _plain((1 - bad) * (1 - p ** int(_whole("max_attempts", max_attempts))))


# Bursts and closed systems


def makespan_bounds_s(jobs_s: ArrayLike, slots: int) -> tuple[float, float]:
    """Bounds of the time to finish jobs of `jobs_s` seconds that are all there at once, none left while a slot is free.

    At least max(work / slots, longest job); at most work / slots + (1 - 1/slots)·longest (Graham, 1969).
    """
    jobs, n = np.atleast_1d(_number("jobs_s", jobs_s)), int(_whole("slots", slots))
    work, longest = float(jobs.sum()), float(jobs.max(initial=0.0))
    return max(work / n, longest), work / n + (1 - 1 / n) * longest


def burst_makespan_s(jobs: int, service_s: ArrayLike, servers: int) -> Numbers:
    """Mean time to finish `jobs` exponential jobs that are all there at once: Σ s / min(n, c) over n = jobs … 1.

    A pure death process (Feller, 1950): with n jobs left, min(n, c) of them are being served.
    """
    left = np.arange(1, int(_whole("jobs", jobs)) + 1)
    return _plain(_number("service_s", service_s) * (1 / np.minimum(left, _whole("servers", servers))).sum())


def throughput_bounds_per_s(circulating: int, demands_s: ArrayLike, think_s: float = 0.0) -> tuple[float, float]:
    """Asymptotic bounds of a closed network's throughput (Denning & Buzen, 1978).

    N customers, `demands_s` seconds per cycle at each single server, `think_s` without queueing: at least
    N / (Z + N·D), at most min(N / (Z + D), 1 / Dmax). `sim.analysis.networks` has the exact value.
    """
    n, demands = int(_whole("circulating", circulating)), np.atleast_1d(_number("demands_s", demands_s))
    total, most, think = float(demands.sum()), float(demands.max(initial=0.0)), float(_number("think_s", think_s))
    if not total + think:
        raise UsageError("throughput_bounds_per_s: a cycle that takes no time has no throughput")
    return n / (think + n * total), min(n / (think + total), 1 / most if most else np.inf)


# What planners reckon: shown beside the model, so that a reader sees what it adds


def naive_makespan_s(users: ArrayLike, user_s: ArrayLike, slots: ArrayLike) -> Numbers:
    """Users × time / slots: the estimate on the back of an envelope. `slots` are those of all processes together."""
    return _plain(_number("users", users) * _number("user_s", user_s) / _whole("slots", slots))


def naive_latency_quantile_s(q: ArrayLike, users: ArrayLike, user_s: ArrayLike, slots: ArrayLike) -> Numbers:
    """Latency of a burst's users at share `q`, if they are served evenly over `naive_makespan_s`."""
    return _plain(_number("q", q, most=1) * naive_makespan_s(users, user_s, slots))


def mmc_latency_s(rate_per_s: ArrayLike, service_s: ArrayLike, servers: ArrayLike) -> Numbers:
    """Mean latency (wait and service) of a steady stream, if arrivals were Poisson and service exponential."""
    return _plain(mmc_wait_s(rate_per_s, service_s, servers) + _number("service_s", service_s))


def mmc_latency_quantile_s(q: ArrayLike, rate_per_s: ArrayLike, service_s: ArrayLike, servers: ArrayLike) -> Numbers:
    """Latency of a steady stream at share `q`, by the same estimate.

    With d = c - a, C the waiting probability and x in mean services: P(T > x) = e⁻ˣ + C·(e⁻ˣ - e⁻ᵈˣ) / (d - 1)
    (Gross & Harris, 1974), inverted by bisection.
    """
    a, s, c = _load(rate_per_s, service_s, servers)
    late, a, s, c = np.broadcast_arrays(1 - _number("q", q, most=1), a, s, c)
    waits, d = waiting_probability(a, c), np.where(a < c, c - a, 1.0)
    low = np.zeros(late.shape)
    with np.errstate(divide="ignore"):
        # Wait and service are not both above their own quantiles at late / 2 more often than `late`.
        high = -np.log(late / 2) + np.maximum(0.0, np.log(np.maximum(2 * waits / late, 1.0))) / d
    for _ in range(64):
        x = (low + high) / 2
        near = np.abs(d - 1) < 1e-7
        both = np.where(near, x * np.exp(-x), (np.exp(-x) - np.exp(-d * x)) / np.where(near, 1.0, d - 1))
        above = np.exp(-x) + waits * both > late
        low, high = np.where(above, x, low), np.where(above, high, x)
    return _plain(np.where((a < c) & (late > 0), high * s, np.inf))


def _number(name: str, value: ArrayLike, most: float = np.inf) -> Numbers:
    """Finite numbers from 0 to `most`, or `UsageError`."""
    given = np.asarray(value, dtype=np.float64)
    if not np.all((given >= 0) & (given <= most) & np.isfinite(given)):
        raise UsageError(f"{name}={value!r}: {'finite, from 0 on' if most == np.inf else f'from 0 to {most:g}'}")
    return given


def _whole(name: str, value: ArrayLike) -> Numbers:
    """Whole numbers from 1 on, or `UsageError`."""
    given = np.asarray(value, dtype=np.float64)
    if not np.all((given >= 1) & (given == np.floor(given)) & np.isfinite(given)):
        raise UsageError(f"{name}={value!r}: a whole number, at least 1")
    return given


def _load(rate_per_s: ArrayLike, service_s: ArrayLike, servers: ArrayLike) -> tuple[Numbers, Numbers, Numbers]:
    rate, s, c = _number("rate_per_s", rate_per_s), _number("service_s", service_s), _whole("servers", servers)
    return rate * s, s, c


def _plain(value: Any) -> Numbers:
    """A number for numbers, an array for arrays."""
    found: Numbers = np.asarray(value, dtype=np.float64)[()]
    return found
