"""Pictures of an attempts table: how a backlog drains. Colours after Okabe & Ito (2008), apart for all eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
Curve = tuple[NDArray[np.float64], NDArray[np.float64]]


def users_done(attempts: pd.DataFrame) -> Curve:
    """Seconds, and the users served by then: a step at the end of each attempt."""
    rows = attempts[attempts["users_done"] > 0].sort_values("finished_at", kind="stable")
    times = rows["finished_at"].to_numpy(float)
    return np.concatenate(([0.0], times)), np.concatenate(([0.0], rows["users_done"].to_numpy(float).cumsum()))


def jobs_waiting(attempts: pd.DataFrame) -> Curve:
    """Seconds, and the jobs waiting then: up when one could be taken, down when it was."""
    rows = attempts[attempts["ready_at"].notna() & attempts["taken_at"].notna()]
    times = np.concatenate((rows["ready_at"].to_numpy(float), rows["taken_at"].to_numpy(float)))
    change = np.concatenate((np.ones(len(rows)), -np.ones(len(rows))))
    order = np.argsort(times, kind="stable")
    return np.concatenate(([0.0], times[order])), np.concatenate(([0.0], change[order].cumsum()))


def at_times(curve: Curve, times: NDArray[np.float64]) -> NDArray[np.float64]:
    """A step curve's values at `times`."""
    places = np.searchsorted(curve[0], times, side="right") - 1
    return np.where(places >= 0, curve[1][np.maximum(places, 0)], 0.0)


def drain_curve(attempts: pd.DataFrame, ax: Axes | None = None, label: str = "run") -> Axes:
    """Draw users served so far (left axis) and jobs waiting (right axis) over time; returns the left Axes."""
    ax = new_axes() if ax is None else ax
    right: Any = ax.twinx()
    served, waiting = users_done(attempts), jobs_waiting(attempts)
    end = attempts["finished_at"].max() if len(attempts) else 1.0
    right.fill_between(*waiting, step="post", color=ORANGE, alpha=0.18, linewidth=0)
    (depth,) = right.step(*waiting, where="post", color=ORANGE, linewidth=1, label=f"{label}: jobs waiting")
    (done,) = ax.step(*served, where="post", color=BLUE, linewidth=2, label=f"{label}: users done")
    ax.set(xlabel="seconds since the first event", ylabel="users done", xlim=(0, end), ylim=(0, None))
    right.set(ylabel="jobs waiting", ylim=(0, max(1.0, 1.05 * float(waiting[1].max()))))
    right.tick_params(axis="y", colors=ORANGE)
    right.yaxis.label.set_color(ORANGE)
    ax.yaxis.label.set_color(BLUE)
    ax.tick_params(axis="y", colors=BLUE)
    right.spines["top"].set_visible(False)
    ax.set_zorder(right.get_zorder() + 1)  # the line that matters lies on top
    ax.patch.set_visible(False)
    ax.legend(handles=[done, depth], loc="center right", frameon=False)
    return ax


def new_axes(width: float = 7.0, height: float = 4.0) -> Axes:
    """Axes of a new figure without its upper and right frame."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax
