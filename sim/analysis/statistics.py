"""Two intervals of replicated runs, and when enough have been run."""

from __future__ import annotations

from collections.abc import Sequence
from math import sqrt

import numpy as np
from scipy.special import stdtr, stdtrit  # Student's t; scipy.stats has the same and takes a second to load

LEVEL = 0.90
HALF_WIDTH = 0.01
LEAST, MOST = 5, 20


def intervals(values: Sequence[float], residual: float = 0.0, level: float = LEVEL) -> dict[str, float]:
    """Mean of replications with two intervals (of 90 %); NaN replications (a percentile of nobody) are left out.

    `lo`, `hi`: one further run, mean ± t·s·√(1 + 1/n), the normal-theory prediction interval (Hahn & Meeker, 1991), to
    whose variance the model's own relative `residual` adds. `mean_lo`, `mean_hi`: the mean of all runs, mean ± t·s/√n.
    No measure is negative, so neither are the bounds. One replication alone shows no spread.
    """
    sample = np.asarray([value for value in values if value == value], dtype=float)
    if not len(sample):
        return dict.fromkeys(("mean", "lo", "hi", "mean_lo", "mean_hi"), float("nan"))
    mean, count = float(sample.mean()), len(sample)
    spread = float(sample.std(ddof=1)) if count > 1 and np.ptp(sample) > 0 else 0.0
    reach = float(stdtrit(max(1, count - 1), (1 + level) / 2))
    model = reach if count < 2 else float(stdtrit(1000, (1 + level) / 2))
    one = sqrt((reach * spread) ** 2 * (1 + 1 / count) + (model * residual * mean) ** 2)
    of_mean = reach * spread / sqrt(count)
    return {
        "mean": mean,
        "lo": max(0.0, mean - one),
        "hi": mean + one,
        "mean_lo": max(0.0, mean - of_mean),
        "mean_hi": mean + of_mean,
    }


def enough(values: Sequence[float], precision: float = HALF_WIDTH) -> bool:
    """Whether the relative 90 % half-width of the mean is at most `precision`, by at least five replications.

    To stop by what was seen costs coverage (Chow & Robbins, 1965): of normal replications that need 6 to 20, `mean_lo`
    to `mean_hi` hold the true mean in 85 to 90 % of experiments; a number of replications fixed beforehand costs none.
    """
    if len(values) < LEAST:
        return False
    found = intervals(values)
    return found["mean_hi"] - found["mean"] <= precision * found["mean"]


def chance_below(values: Sequence[float], bound: float, residual: float = 0.0) -> float:
    """The probability that one further run stays at or below `bound`, by the same theory as `lo` and `hi`."""
    sample = np.asarray(values, dtype=float)
    mean, count = float(sample.mean()), len(sample)
    spread = float(sample.std(ddof=1)) if count > 1 else 0.0
    scale = sqrt(spread**2 * (1 + 1 / count) + (residual * mean) ** 2)
    return float(mean <= bound) if not scale else float(stdtr(max(1, count - 1), (bound - mean) / scale))
