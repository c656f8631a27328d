"""How long jobs wait to be taken: the oldest job's age, and what priority *low* has to bear."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import pandas as pd

from saqkit.spec import trace
from saqkit.spec.topology import Priority
from sim.analysis.statistics import intervals


def oldest_age_s(attempts: pd.DataFrame) -> float:
    """The greatest age that the oldest waiting job of a run ever had, in seconds (0 if none was ever taken).

    The age of a waiting job counts from `ready_at`. It grows until the job is taken, so the peak over the whole run is
    the greatest of `taken_at` - `ready_at`: exact, whatever the order of service.
    """
    waits = (attempts["taken_at"] - attempts["ready_at"]).to_numpy(float)
    return float(np.nanmax(waits, initial=0.0))


def oldest_age(tables: Sequence[pd.DataFrame], residual: float = 0.0) -> dict[str, float]:
    """`oldest_age_s` over replications, as `{mean, lo, hi, mean_lo, mean_hi}`."""
    return intervals([oldest_age_s(table) for table in tables], residual)


def low_wait_s(tables: Sequence[pd.DataFrame]) -> dict[str, float] | None:
    """How long jobs of priority *low* wait, as `{p50, p95, max}` in seconds, each the mean over replications.

    wait = `started_at` - `ready_at`, over attempts. None where no job is low.
    """
    found = []
    for table in tables:
        rows = table[table["priority"] == Priority.LOW]
        waits = (rows["started_at"] - rows["ready_at"]).dropna().to_numpy(float)
        if len(waits):
            found.append([*trace.weighted_quantiles(waits, np.ones(len(waits)), (0.5, 0.95)), float(waits.max())])
    if not found:
        return None
    return {name: float(value) for name, value in zip(("p50", "p95", "max"), np.mean(found, axis=0), strict=True)}
