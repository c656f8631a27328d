"""How long users wait and how many jobs wait: the distribution of latency, and the queue's depth by priority."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.spec.pictures import BLUE, GREEN, LEVEL_COLOURS, ORANGE, at_times, jobs_waiting, new_axes
from saqkit.spec.runs import Run
from saqkit.spec.topology import Priority
from saqkit.spec.trace import weighted_quantiles
from sim.analysis.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.prediction import Combination

SHARES = np.linspace(0.005, 0.995, 199)
MARKED = (0.5, 0.95, 0.99)
POINTS = 400


def latency_distribution(
    combination: Combination, measured: Run | None = None, *, target_s: float | None = None, ax: Axes | None = None
) -> Axes:
    """The share of users served within so many seconds: predicted with the band of 90 % of runs, measured over it.

    The band is that of the quantiles. p50, p95 and p99 are marked, and the target, if given, is a line.
    """
    ax = new_axes(6) if ax is None else ax
    residual = 0.0 if combination.scenario.same_draw else combination.scenario.profile.residual
    runs = np.array([_quantiles(outcome.attempts()) for outcome in combination.outcomes])
    bounds = [intervals(column, residual) for column in runs.T]
    mean, low, high = (np.array([bound[name] for bound in bounds]) for name in ("mean", "lo", "hi"))
    percent = 100 * SHARES
    ax.fill_betweenx(percent, low, high, color=BLUE, alpha=0.25, linewidth=0, label="predicted, 90 % of runs")
    lines = [("predicted, mean", mean, BLUE)]
    if measured is not None:
        lines.append(("measured", np.array(_quantiles(measured.attempts)), ORANGE))
    for name, values, colour in lines:
        at = np.interp(MARKED, SHARES, values)
        shown = ", ".join(f"p{100 * share:.0f} {value:.3g} s" for share, value in zip(MARKED, at, strict=True))
        ax.plot(values, percent, color=colour, linewidth=1.5, label=f"{name}: {shown}")
        ax.plot(at, [100 * share for share in MARKED], linestyle="", marker="o", markersize=4, color=colour)
    if target_s is not None:
        ax.axvline(target_s, color=GREEN, linestyle="--", linewidth=1.2, label=f"target: {target_s:g} s")
    right = 1.04 * max(float(np.nanmax([high, *(values for _, values, _ in lines)])), target_s or 0.0)
    ax.set(xlabel="latency of a user in seconds", ylabel="users served within it, %", xlim=(0, right), ylim=(0, 104))
    ax.legend(loc="lower left", bbox_to_anchor=(0.0, 1.0), frameon=False, fontsize="small")
    return ax


def depth_by_priority(source: Combination | pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Jobs waiting over time, a line per priority level that occurs; of a prediction the mean, with 90 % of runs.

    Above it each level's name and the greatest depth that it reaches in a run (mean over runs).

    `source`: one combination of a prediction, or an attempts table (of a measured run).
    """
    ax = new_axes(6) if ax is None else ax
    tables = [source] if isinstance(source, pd.DataFrame) else [outcome.attempts() for outcome in source.outcomes]
    end = 1.02 * max(float(table["finished_at"].max()) for table in tables)
    times: NDArray[np.float64] = np.linspace(0, end, POINTS)
    names: list[tuple[str, str]] = []
    for level in Priority:
        curves = [jobs_waiting(table[table["priority"] == level]) for table in tables]
        if all(len(heights) == 1 for _, heights in curves):
            continue
        drawn = np.array([at_times(curve, times) for curve in curves])
        colour, name = LEVEL_COLOURS[level], level.name.lower()
        if len(tables) > 1:
            bounds = [intervals(column) for column in drawn.T]
            ax.fill_between(times, [b["lo"] for b in bounds], [b["hi"] for b in bounds], color=colour, alpha=0.15,
                            linewidth=0)  # fmt: skip
            ax.plot(times, drawn.mean(axis=0), color=colour, linewidth=1.2, label=name)
        else:
            ax.step(*curves[0], where="post", color=colour, linewidth=1.2, label=name)
        peak = np.mean([heights.max() for _, heights in curves])
        names.append((f"{name}: peak of a run {peak:,.0f}", colour))
    ax.set(xlabel="seconds since the first event", ylabel="jobs waiting", xlim=(0, end), ylim=(0, None))
    for n, (text, colour) in enumerate(names):
        ax.annotate(text, (n / len(names), 1.02), xycoords="axes fraction", color=colour, fontsize="small")
    return ax


def _quantiles(attempts: pd.DataFrame) -> list[float]:
    served = attempts[attempts["users_done"] > 0]
    latency = (served["finished_at"] - served["event_at"]).to_numpy(float)
    return weighted_quantiles(latency, served["users_done"].to_numpy(float), list(SHARES))
