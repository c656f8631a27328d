"""How a backlog drains: users done over time with the band of one run, measured over predicted, and over sizes."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.spec.pictures import BLUE, GREEN, GREY, ORANGE, Curve, at_times, jobs_waiting, new_axes, users_done
from saqkit.spec.runs import Run
from sim.analysis.statistics import intervals

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.prediction import Combination

POINTS = 300
COLOURS = (BLUE, ORANGE, GREEN, "#CC79A7", "#56B4E9", "#E69F00", GREY)
MARKERS = "os^Dv<>"


def drain_band(combination: Combination, ax: Axes | None = None) -> Axes:
    """Users done over time: the mean of the replications, and the 90 % band of one run."""
    ax = new_axes(6) if ax is None else ax
    _band(ax, combination, users_done, BLUE, "predicted", _end(combination))
    ax.set(xlabel="seconds since the first event", ylabel="users done", xlim=(0, None), ylim=(0, None))
    ax.yaxis.set_major_formatter("{x:,.0f}")
    ax.legend(loc="lower right", frameon=False)
    return ax


def drain_to_target(combination: Combination, bound_s: float, target: str, ax: Axes | None = None) -> Axes:
    """`drain_band` with the target's time as a line."""
    ax = drain_band(combination, ax)
    ax.axvline(bound_s, color=GREEN, linestyle="--", label=f"target {target}")
    ax.set_xlim(0, max(ax.get_xlim()[1], 1.05 * bound_s))
    ax.legend(loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False, fontsize="small")
    return ax


def sweep(combinations: Sequence[Combination], ax: Axes | None = None) -> Axes:
    """Time to drain against users (or workers, if there is one size), a line per other setting, with 90 % intervals."""
    from matplotlib.ticker import LogLocator

    ax = new_axes() if ax is None else ax
    names = [
        n
        for n in ("users", "workers", "concurrency", "batch_size")
        if len({str(c.settings[n]) for c in combinations}) > 1
    ]
    along = next((n for n in names if all(isinstance(c.settings[n], int) for c in combinations)), "users")
    lines: dict[str, list[Combination]] = {}
    for c in combinations:
        rest = ", ".join(f"{n.replace('_', ' ')} {c.settings[n]}" for n in names if n != along)
        lines.setdefault(rest, []).append(c)
    for n, (label, cells) in enumerate(lines.items()):
        cells = sorted(cells, key=lambda c: int(c.settings[along]))
        x = np.array([float(c.settings[along]) for c in cells])
        found = [c.measures["makespan_s"] for c in cells]
        mean, lo, hi = (np.array([f[k] for f in found]) for k in ("mean", "lo", "hi"))
        colour = COLOURS[n % len(COLOURS)]
        ax.fill_between(x, lo, hi, color=colour, alpha=0.2, linewidth=0)
        ax.plot(x, mean, marker=MARKERS[n % len(MARKERS)], color=colour, label=label or "mean and 90 % of runs")
    if along == "users":
        ax.set_xscale("log")
        ax.set_yscale("log")
        ax.xaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_major_formatter("{x:,g}")
        if float(ax.get_ylim()[1]) / float(ax.get_ylim()[0]) < 100:  # too few powers of ten to read by
            ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_minor_formatter("")
    ax.set(xlabel=along.replace("_", " "), ylabel="seconds to drain")
    ax.legend(frameon=False)
    return ax


def measured_over_predicted(
    run: Run, combination: Combination, axes: tuple[Axes, Axes] | None = None
) -> tuple[Axes, Axes]:
    """Users done and jobs waiting over time: the measured line over the band of 90 % of predicted runs."""
    if axes is None:
        import matplotlib.pyplot as plt

        _, (upper, lower) = plt.subplots(2, 1, figsize=(7.5, 6), sharex=True, layout="constrained")
        for ax in (upper, lower):
            ax.spines[["top", "right"]].set_visible(False)
    else:
        upper, lower = axes
    end = max(_end(combination), float(run.attempts["finished_at"].max()))
    _panel(upper, run.attempts, combination, users_done, end)
    _panel(lower, run.attempts, combination, jobs_waiting, end)
    upper.set(ylabel="users done", ylim=(0, None))
    lower.set(ylabel="jobs waiting", xlabel="seconds since the first event", xlim=(0, end * 1.02), ylim=(0, None))
    upper.legend(loc="lower right", frameon=False)
    return upper, lower


def _panel(
    ax: Axes, measured: pd.DataFrame, combination: Combination, curve: Callable[[pd.DataFrame], Curve], end: float
) -> None:
    _band(ax, combination, curve, BLUE, "predicted", end)
    times, values = curve(measured)
    ax.step(
        np.append(times, end),
        np.append(values, values[-1]),
        where="post",
        color=ORANGE,
        linewidth=1.5,
        label="measured",
    )


def _band(
    ax: Axes, combination: Combination, curve: Callable[[pd.DataFrame], Curve], colour: str, label: str, end: float
) -> None:
    times: NDArray[np.float64] = np.linspace(0, end, POINTS)
    tables = [outcome.attempts() for outcome in combination.outcomes]
    drawn = np.array([at_times(curve(table), times) for table in tables])
    # The model's own error is one of pace: it shifts each curve in time.
    shift = combination.scenario.profile.residual if not combination.scenario.same_draw else 0.0
    slower = np.array([at_times(curve(table), times / (1 + 1.645 * shift)) for table in tables])
    faster = np.array([at_times(curve(table), times * (1 + 1.645 * shift)) for table in tables])
    bounds = [intervals(column) for column in drawn.T]
    low = np.minimum([b["lo"] for b in bounds], np.minimum(slower, faster).min(axis=0))
    high = np.maximum([b["hi"] for b in bounds], np.maximum(slower, faster).max(axis=0))
    top = drawn.max()
    ax.fill_between(
        times,
        np.clip(low, 0, top),
        np.clip(high, 0, top),
        color=colour,
        alpha=0.25,
        linewidth=0,
        label=f"{label}, 90 % of runs",
    )
    ax.plot(times, drawn.mean(axis=0), color=colour, linewidth=1.5, label=f"{label}, mean")


def _end(combination: Combination) -> float:
    return max(float(outcome.ended_at_s) for outcome in combination.outcomes) * 1.02
