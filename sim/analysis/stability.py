"""Whether a stream is more than the system can take: what comes to a queue, against what is begun while jobs wait."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import inf, sqrt

import numpy as np
import pandas as pd

from saqkit.spec.steady import DAY_S
from saqkit.spec.workload import Poisson, Profile, Workload

WAITING = 0.5  # of the time: where jobs wait less often, nothing is near its limit
UNDECIDED = 0.9  # a load from here on may be too much as long as it is not known exactly


@dataclass(frozen=True)
class Backlog:
    """One queue over `span_s` seconds of one or more runs: the jobs expected to come, repeated attempts too; for how
    long some waited, and how many were begun meanwhile.
    """

    queue: str
    span_s: float
    comes: float
    waited_s: float
    begun: float

    @property
    def load(self) -> float:
        """What comes over what could be begun in that time, ρ; 0 where jobs wait less than half of the time.

        While jobs wait the queue gives as many as the system takes: this rate is its capacity, whatever sets it.
        """
        if self.waited_s < WAITING * self.span_s or not self.span_s:
            return 0.0
        return self.comes / (self.begun / self.waited_s * self.span_s) if self.begun else inf

    @property
    def jobs_per_s(self) -> float:
        """How fast the backlog grows in the long run."""
        return self.comes / self.span_s * (1 - 1 / self.load) if self.load > 1 else 0.0

    @property
    def grows(self) -> bool:
        """Whether the load is above 1 by two standard errors of the number begun (as if it were Poisson)."""
        return self.load - 1 > 2 / sqrt(max(1.0, self.begun))

    @property
    def undecided(self) -> bool:
        """Whether a longer run may show that it grows."""
        return not self.grows and self.load > UNDECIDED


def backlogs(workload: Workload, attempts: pd.DataFrame) -> list[Backlog]:
    """Each queue's backlog over a stream's second half, or over its whole days but the first, or over the only one.

    A job waits from `ready_at` to `started_at`: what is served, or delayed until its retry, is no backlog.
    """
    arrivals = workload.arrivals
    if not len(attempts) or not isinstance(arrivals, Poisson | Profile):
        return []
    to_s = float(attempts["event_at"].max())
    if isinstance(arrivals, Poisson):
        from_s, rate = to_s / 2, arrivals.rate_per_s
    else:
        from_s = DAY_S if to_s > DAY_S else 0.0
        rate = arrivals.users_per_day / arrivals.users_per_event / DAY_S
    if to_s <= from_s:
        return []
    per_event = rate / int(attempts["event"].nunique())  # each queue's jobs per event are those of the whole run
    return [_of(str(queue), rows, from_s, to_s, per_event * len(rows)) for queue, rows in attempts.groupby("queue")]


def worst(runs: Sequence[Sequence[Backlog]]) -> Backlog | None:
    """Of several runs' backlogs, each queue's added up: the one of the greatest load."""
    queues: dict[str, list[Backlog]] = {}
    for run in runs:
        for backlog in run:
            queues.setdefault(backlog.queue, []).append(backlog)
    pooled = [
        Backlog(name, *(sum(getattr(b, field) for b in found) for field in ("span_s", "comes", "waited_s", "begun")))
        for name, found in queues.items()
    ]
    return max(pooled, key=lambda backlog: backlog.load, default=None)


def _of(queue: str, rows: pd.DataFrame, from_s: float, to_s: float, comes_per_s: float) -> Backlog:
    ready = rows["ready_at"].to_numpy(float)
    started = rows["started_at"].fillna(rows["finished_at"]).to_numpy(float)
    times = np.concatenate((ready, started))
    steps = np.repeat((1, -1), len(rows))
    order = np.lexsort((-steps, times))  # who comes in the same instant comes before who is begun
    times, steps = times[order], steps[order]
    before = np.concatenate(([0], np.cumsum(steps)[:-1]))  # how many waited until then
    edges = np.clip(np.concatenate((times, [max(to_s, times[-1])])), from_s, to_s)
    waits = np.concatenate((before[1:], [0])) > 0
    inside = (times > from_s) & (times <= to_s)
    return Backlog(
        queue,
        to_s - from_s,
        comes_per_s * (to_s - from_s),
        float(np.diff(edges)[waits].sum()),
        float((inside & (steps < 0) & (before > 1)).sum()),
    )
