"""Queues by recursion on given draws, a few lines each: what the model must repeat, and what theory is checked on."""

from __future__ import annotations

import heapq
from collections import deque
from dataclasses import dataclass
from math import sqrt

import numpy as np
from numpy.typing import NDArray
from scipy.special import stdtrit

from saqkit.spec.distributions import AnyDistribution
from saqkit.spec.draws import Stream, uniforms

Numbers = NDArray[np.float64]
CONFIDENCE = 0.999


@dataclass(frozen=True)
class Interval:
    """An estimate and the half-width of its 99.9 % interval."""

    mean: float
    half: float

    def __contains__(self, value: float) -> bool:
        return abs(value - self.mean) <= self.half


def begins(at: Numbers, takes: Numbers, servers: int, level: NDArray[np.int64] | None = None) -> Numbers:
    """When each customer begins, first come first served (Kiefer & Wolfowitz, 1955), lower levels first."""
    arrive, take = at.tolist(), takes.tolist()
    of = [0] * len(arrive) if level is None else level.tolist()
    free, waiting = [0.0] * servers, [deque[int]() for _ in range(max(of, default=0) + 1)]
    found, arrived, count = [0.0] * len(arrive), 0, 0
    while count < len(arrive):
        now = heapq.heappop(free)
        if arrived == count:
            now = max(now, arrive[arrived])
        while arrived < len(arrive) and arrive[arrived] <= now:
            waiting[of[arrived]].append(arrived)
            arrived += 1
        n = next(line for line in waiting if line).popleft()
        found[n] = now
        heapq.heappush(free, now + take[n])
        count += 1
    return np.array(found)


def waits_of_one_server(at: Numbers, takes: Numbers) -> Numbers:
    """The waits of a first come, first served queue: W = max(0, W' + S' - A) (Lindley, 1952), all at once."""
    walk = np.concatenate(([0.0], np.cumsum(takes[:-1] - np.diff(at))))
    waits: Numbers = walk - np.minimum.accumulate(walk)
    return waits


def poisson(seed: int, rate_per_s: float, count: int) -> Numbers:
    """Arrival times as a Poisson workload has them."""
    return np.cumsum(-np.log(uniforms(seed, Stream.ARRIVAL, np.arange(count))) / rate_per_s)


def latencies(seed: int, of: AnyDistribution, count: int) -> Numbers:
    """The provider's times of the only user of events 1, 2, …"""
    return of.quantiles(uniforms(seed, Stream.LATENCY, np.arange(1, count + 1), 1, 1))


def surprises(at: Numbers, takes: Numbers, found_s: Numbers, gap_s: float, take_s: float, cv: float) -> Numbers:
    """Per customer what came otherwise than on average: each column has mean 0 whatever happened before.

    `found_s` is anything known as the customer arrives: with it, these explain nearly all of a queue's noise (squaring
    Lindley's equation shows why), at no bias.
    """
    s, a = takes - take_s, np.append(np.diff(at), gap_s) - gap_s
    products = [found_s * s, found_s * a, s * a, s**2 - (cv * take_s) ** 2, a**2 - gap_s**2]
    return np.column_stack([s, a, *products])


def mean_of(values: Numbers, at: Numbers, finished: Numbers, surprise: Numbers, of: Numbers | None = None) -> Interval:
    """The steady-state mean of `values` (of those customers), by the cycles that begin with an empty system.

    Cycles are independent and alike, so that no warm-up has to be cut off (Crane & Iglehart, 1974); what their
    surprises explain is taken out by regression (Lavenberg & Welch, 1981).
    """
    chosen = np.ones(len(values)) if of is None else of
    cycle = np.cumsum(np.concatenate(([True], np.maximum.accumulate(finished)[:-1] <= at[1:]))) - 1
    whole = cycle < cycle[-1]

    def summed(column: Numbers) -> Numbers:
        return np.bincount(cycle[whole], column[whole])

    sums, counts = summed(values * chosen), summed(chosen)
    mean = sums.sum() / counts.sum()
    design = np.column_stack([np.ones(len(sums)), *(summed(column) for column in surprise.T if np.ptp(column) > 1e-9)])
    excess = sums - mean * counts
    weights = np.linalg.lstsq(design, excess, rcond=None)[0]
    left, freedom = excess - design @ weights, len(sums) - design.shape[1]
    error = sqrt(left @ left / freedom * np.linalg.inv(design.T @ design)[0, 0]) / counts.mean()
    return Interval(float(mean + weights[0] / counts.mean()), float(stdtrit(freedom, (1 + CONFIDENCE) / 2) * error))


def mean_by_replications(values: Numbers) -> Interval:
    """The mean of independent values, by Student's t."""
    error = values.std(ddof=1) / sqrt(len(values))
    return Interval(float(values.mean()), float(stdtrit(len(values) - 1, (1 + CONFIDENCE) / 2) * error))
