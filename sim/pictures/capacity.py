"""Pictures to decide by: the map of workers × slots, and the frontier of cost against time."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec.pictures import BLUE, GREEN, GREY, ORANGE, new_axes
from sim.targets import METRICS, Target

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.prediction import Prediction

NAMES = {"makespan_s": "drain", **{measure: metric for metric, measure in METRICS.items()}}


def capacity_map(prediction: Prediction, target: str | None = None, ax: Axes | None = None) -> Axes:
    """A cell per workers × slots with the mean time to drain in seconds; dark is slow. `target`: its contour.

    With a target the time is that of its metric, and the line divides the deployments whose mean meets it from those
    whose mean does not. `prediction` is one of lists of workers and concurrency, the rest the same everywhere; anything
    else is a `UsageError`.
    """
    from matplotlib.colors import LogNorm

    aim = None if target is None else Target.parse(target)
    measure = "makespan_s" if aim is None else aim.measure
    workers, slots, seconds = _grid(prediction, measure)
    ax = new_axes(6) if ax is None else ax
    low, high = float(np.nanmin(seconds)), float(np.nanmax(seconds))
    norm = LogNorm(max(low, 1e-6), max(high, 1.001 * low, 2e-6))
    ax.pcolormesh(
        np.arange(len(slots) + 1) - 0.5, np.arange(len(workers) + 1) - 0.5, seconds, cmap="cividis_r", norm=norm
    )
    for (row, column), value in np.ndenumerate(seconds):
        dark = float(norm(value)) > 0.55
        ax.text(column, row, _seconds(value), ha="center", va="center", color="white" if dark else "black",
                fontsize="small")  # fmt: skip
    ax.set_xticks(range(len(slots)), [str(n) for n in slots])
    ax.set_yticks(range(len(workers)), [str(n) for n in workers])
    ax.set(xlabel="slots per worker process", ylabel="worker processes")
    name = "seconds to drain" if measure == "makespan_s" else f"{NAMES[measure]} in seconds"
    title = f"{name}, {prediction.combinations[0].settings['users']:,} users"
    if aim is not None:
        lines = _contour(seconds <= aim.bound_s)
        for x, y in lines:
            ax.plot(x, y, color=ORANGE, linewidth=3, solid_capstyle="round")
        met = "all meet" if (seconds <= aim.bound_s).all() else "none meets" if not lines else "line:"
        title += f" · {met} {aim.metric} ≤ {aim.bound_s:g} s"
    ax.set_title(title, fontsize="medium", loc="left")
    ax.spines[["left", "bottom"]].set_visible(False)
    ax.tick_params(length=0)
    return ax


def cost_frontier(
    table: pd.DataFrame, bound_s: float | None = None, time: str = "seconds", workers: int | None = None,
    ax: Axes | None = None,
) -> Axes:  # fmt: skip
    """Cost per hour (worker processes where they have no price) against time: deployments that no cheaper one beats.

    `table` is `Plan.frontier`. `bound_s` is drawn as a line with the label of the target; the deployment of `workers`
    is marked.
    """
    from matplotlib.ticker import LogLocator

    ax = new_axes(6) if ax is None else ax
    priced = bool(len(table)) and float(table["cost_per_hour"].max()) > 0
    cost = table["cost_per_hour" if priced else "workers"].to_numpy(float)
    seconds = table["time_s"].to_numpy(float)
    ax.step(cost, seconds, where="post", color=GREY, linewidth=1)
    ax.scatter(cost, seconds, color=BLUE, s=30, zorder=3)
    chosen = table["workers"].to_numpy() == workers
    ax.scatter(cost[chosen], seconds[chosen], s=130, facecolors="none", edgecolors=ORANGE, linewidths=2, zorder=4)
    shown = np.append(seconds, [] if bound_s is None else bound_s)
    if len(shown) and shown.max() > 5 * shown.min() > 0:
        ax.set_yscale("log")
        ax.yaxis.set_major_locator(LogLocator(subs=(1.0, 2.0, 5.0)))
        ax.yaxis.set_major_formatter("{x:,g}")
        ax.yaxis.set_minor_formatter("")
    for x, y, row in zip(cost, seconds, table.to_dict("records"), strict=True):
        # Slanted, as those of cheap deployments stand close together.
        ax.annotate(f"{row['workers']} × {row['concurrency']}, batch {row['batch_size']}", (x, y), xytext=(3, 6),
                    textcoords="offset points", fontsize="small", rotation=30, rotation_mode="anchor")  # fmt: skip
    if bound_s is not None:
        ax.axhline(bound_s, color=GREEN, linestyle="--", linewidth=1.2)
        ax.annotate(f"target {bound_s:g}", (1.0, bound_s), xycoords=("axes fraction", "data"), xytext=(0, 3),
                    textcoords="offset points", ha="right", color=GREEN, fontsize="small")  # fmt: skip
    ax.set(xlabel="cost per hour" if priced else "worker processes", ylabel=time)
    if ax.get_yscale() == "linear":
        ax.set_ylim(0, 1.3 * shown.max(initial=0.0) or 1)
    elif len(seconds):
        ax.set_ylim(0.7 * shown.min(), 2.5 * shown.max())
    left, right = (cost.min(), cost.max()) if len(cost) else (0.0, 1.0)
    ax.set_xlim(max(0.0, left - 0.1 * (right - left or right)), right + 0.38 * (right - left or right))
    return ax


def _grid(prediction: Prediction, measure: str) -> tuple[list[int], list[int], np.ndarray]:
    cells = {(c.settings["workers"], str(c.settings["concurrency"])): c for c in prediction.combinations}
    varied = [n for n in ("users", "batch_size", "hosts") if len({c.settings[n] for c in prediction.combinations}) > 1]
    if varied or len(cells) < len(prediction.combinations):
        other = varied[0].replace("_", " ") if varied else "workers and slots"
        raise UsageError(f"a capacity map has workers and slots along its edges, but {other} differ too: predict one")
    if any(not isinstance(c.settings["concurrency"], int) for c in prediction.combinations):
        raise UsageError("a capacity map needs one number of slots for all queues, e.g. concurrency=[5, 10, 20]")
    workers = sorted({c.settings["workers"] for c in prediction.combinations})
    slots = sorted({c.settings["concurrency"] for c in prediction.combinations})
    missing = float("nan")
    seconds = np.array(
        [[cells[w, str(n)].measures[measure]["mean"] if (w, str(n)) in cells else missing for n in slots]
         for w in workers]
    )  # fmt: skip
    return workers, slots, seconds


def _contour(met: np.ndarray) -> list[tuple[list[float], list[float]]]:
    """The edges between cells that meet the target and cells that do not, as (x, y) of each piece."""
    lines: list[tuple[list[float], list[float]]] = []
    rows, columns = met.shape
    for row in range(rows):
        for column in range(columns):
            if column + 1 < columns and met[row, column] != met[row, column + 1]:
                lines.append(([column + 0.5, column + 0.5], [row - 0.5, row + 0.5]))
            if row + 1 < rows and met[row, column] != met[row + 1, column]:
                lines.append(([column - 0.5, column + 0.5], [row + 0.5, row + 0.5]))
    return lines


def _seconds(value: float) -> str:
    return "" if value != value else f"{value:,.0f}" if value >= 100 else f"{value:.3g}"
