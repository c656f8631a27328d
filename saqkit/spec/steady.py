"""Warm-up and cool-down: the part of a stream that counts, by one rule for measured and for simulated runs.

A stream finds an empty system and leaves one that empties: neither is what users meet in between. Users of events
created before `from_s` or after `to_s` do not count for latency, wait and throughput; the makespan and all counts are
those of the whole run.

- **Poisson**: the warm-up ends where MSER-5 cuts the waits of first attempts: where the mean of what is left has the
  smallest standard error (White, Cobb & Spratt, 2000; recommended by Hoad, Robinson & Davies, 2010, where nobody is to
  look). Waits are averaged over equal spans of five events each, and over replications if there are several (Welch,
  1983), which steadies the cut. It is looked for in the first half; found at its very end, the system has not settled.
  What it leaves out has to be lower than the rest by two standard errors: a system that begins empty begins with short
  waits, any other cut is chance. The cool-down are the users who come in the last p95 of latency, a tenth of the stream
  at most: nobody comes after them to slow them down.
- **A closed loop** is stable whatever the system can take: never more events are in it than it has clients. Its warm-up
  and cool-down are those of a Poisson stream, but for one thing: its clients all begin at once, so a beginning whose
  waits are significantly *higher* is left out as well.
- **A daily profile** is steady from day to day only, so whole days count: all but the first one, or the only one.
- Bursts and recorded arrivals are not steady, nor is a stream with a fault: the whole run counts.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import NamedTuple

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.spec import trace
from saqkit.spec.workload import ClosedLoop, Poisson, Profile, Workload

BATCH = 5  # events averaged to one observation: the 5 of MSER-5
FEWEST = 10  # observations; with fewer no cut can be told from chance
DAY_S = 86_400.0


class Window(NamedTuple):
    """Users of events created from `from_s` to `to_s` seconds after the first event count.

    `settled` is false where no steady state was found: the stream is too short, or too much for the system.
    """

    from_s: float
    to_s: float
    settled: bool


def is_steady(workload: Workload) -> bool:
    """Whether a workload is a stream, or a closed loop, that a steady state is expected of."""
    return isinstance(workload.arrivals, Poisson | Profile | ClosedLoop) and not workload.faults


def window(workload: Workload, runs: Sequence[pd.DataFrame]) -> Window | None:
    """What counts of runs of `workload`, from their attempts tables; None if it is no steady stream.

    Give all replications of a prediction at once, and lay the measured run beside it in the prediction's window.
    """
    runs = [attempts for attempts in runs if len(attempts)]
    if not is_steady(workload) or not runs:
        return None
    last_s = float(np.mean([attempts["event_at"].max() for attempts in runs]))
    if isinstance(workload.arrivals, Profile):
        return Window(DAY_S if workload.arrivals.days > 1 and last_s > DAY_S else 0.0, last_s, True)
    waits = _waits(runs, last_s)
    if len(waits) < FEWEST:
        return Window(0.0, last_s, False)
    cut = warm_up(waits, isinstance(workload.arrivals, ClosedLoop))
    cooling_s = min(_p95(runs), 0.1 * last_s)
    return Window(cut * last_s / len(waits), last_s - cooling_s, cut < len(waits) // 2)


def measures(attempts: pd.DataFrame, counted: Window | None) -> dict[str, float]:
    """`saqkit.spec.trace.measures`, but latency, wait and throughput over the users who count.

    throughput = users done of those who came in the window ÷ its length.
    """
    whole = trace.measures(attempts)
    if counted is None:
        return whole
    inside = attempts[(attempts["event_at"] >= counted.from_s) & (attempts["event_at"] <= counted.to_s)]
    found, span_s = trace.measures(inside), counted.to_s - counted.from_s
    timed = {name: value for name, value in found.items() if name.startswith(("latency", "wait"))}
    served = found["users_done"] / span_s if span_s > 0 else float("nan")
    return {**whole, **timed, "throughput_users_per_s": served}


def mser(values: NDArray[np.float64]) -> int:
    """How many leading observations, up to half, to leave out: what minimises Σ(x - mean)² ÷ (count left)²."""
    centred = values - values.mean()
    left = len(values) - np.arange(len(values) // 2 + 1)
    sums, squares = (np.cumsum(x[::-1])[::-1][: len(left)] for x in (centred, centred**2))
    return int(np.argmin((squares - sums**2 / left) / left**2))


def warm_up(waits: NDArray[np.float64], all_at_once: bool = False) -> int:
    """The cut of `mser`, if what it leaves out is significantly below what it leaves, else 0.

    A system that begins empty begins with short waits; a cut that takes off a high or an ordinary beginning is chance.
    Where all come at once in the beginning, a high one is none.
    """
    if not (cut := mser(waits)):
        return 0
    head, rest = waits[:cut], waits[cut:]
    rise = float(rest.mean() - head.mean())
    return cut if (abs(rise) if all_at_once else rise) > 2 * rest.std() / np.sqrt(cut) else 0


def _waits(runs: Sequence[pd.DataFrame], last_s: float) -> NDArray[np.float64]:
    """Mean wait of first attempts by the time of their event, in equal spans of `BATCH` events."""
    first = pd.concat([run.loc[(run["attempt"] == 1) & (run["crashes"] == 0)] for run in runs], ignore_index=True)
    events = np.mean([run["event"].nunique() for run in runs])
    spans = int(events // BATCH)
    if not spans or last_s <= 0:
        return np.empty(0)
    place = np.minimum((first["event_at"].to_numpy(float) / last_s * spans).astype(int), spans - 1)
    mean = (first["started_at"] - first["ready_at"]).groupby(place).mean()
    return mean.reindex(range(spans)).ffill().bfill().to_numpy(float)


def _p95(runs: Sequence[pd.DataFrame]) -> float:
    found = [trace.measures(run)["latency_p95_s"] for run in runs]
    return float(np.mean([value for value in found if value == value] or [0.0]))
