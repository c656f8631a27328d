"""A fit as a picture: the sample, and the curve that was taken for it."""

from __future__ import annotations

from typing import TYPE_CHECKING

import pandas as pd

from sim.inference.types import TypeFound
from sim.pictures.fitting import tail_of_fit

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def fit_picture(found: TypeFound, done: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Share of attempts that took longer than a time, on logarithmic axes: the recorded ones and the fitted curve."""
    waited = done["finished_at"] - done["started_at"] - done["cpu_s"].fillna(0)
    service = waited.clip(lower=0)[: 0 if found.batch else None]
    ax = tail_of_fit(service, found.latency.distribution if found.latency is not None else None, "attempts", ax)
    ax.set(title=found.name, xlabel="time per user (s)" if found.batch else "service time beside CPU (s)")
    return ax
