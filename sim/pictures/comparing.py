"""Bars and dots to compare by: how busy each part is, what each change does, how far predictions are off."""

from __future__ import annotations

from typing import TYPE_CHECKING

import numpy as np
import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec.pictures import BLUE, GREY, ORANGE, new_axes

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from sim.prediction import Combination


def utilisation(combination: Combination, ax: Axes | None = None) -> Axes:
    """How busy each part is, in percent of its capacity; the bottleneck is named and stands out."""
    ax = new_axes(6) if ax is None else ax
    busy = combination.utilisation
    first = combination.bottlenecks[0]
    parts = list(busy)[::-1]
    shares = [100 * busy[part] for part in parts]
    ax.barh(range(len(parts)), shares, color=[ORANGE if part == first else BLUE for part in parts], height=0.65)
    for row, (part, share) in enumerate(zip(parts, shares, strict=True)):
        note = f"{share:.0f} %" + (" · bottleneck" if part == first else "")
        inside = share > 70
        ax.annotate(note, (share, row), xytext=(-5 if inside else 5, 0), textcoords="offset points", va="center",
                    ha="right" if inside else "left", color="white" if inside else "black",
                    fontsize="small")  # fmt: skip
    ax.set_yticks(range(len(parts)), [part.replace("_", " ") for part in parts])
    ax.set(xlabel="busy, % of the part's capacity", xlim=(0, 100))
    ax.tick_params(axis="y", length=0)
    return ax


def tornado(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """What each change does to one measure: a bar from the base to the scenario's mean, greatest on top.

    `table` has a row per scenario and the columns `scenario measure base value difference lo hi` (90 % interval of
    the paired difference); `WhatIf.plot` makes it. Rows without a difference are left out; with none at all it is a
    `UsageError`.
    """
    table = table[table["difference"].notna()]
    if not len(table):
        raise UsageError("a tornado needs a difference to draw, and there is none")
    ax = new_axes(6) if ax is None else ax
    rows = table.reindex(table["difference"].abs().sort_values(kind="stable").index)
    base = float(rows["base"].iloc[0])
    change = rows["difference"].to_numpy(float)
    places = np.arange(len(rows))
    ax.barh(places, change, left=base, color=[ORANGE if c > 0 else BLUE for c in change], height=0.6)
    ax.hlines(places, base + rows["lo"], base + rows["hi"], color="black", linewidth=1.2)
    ax.axvline(base, color="black", linewidth=1)
    ends = np.where(change >= 0, np.fmax(change, rows["hi"]), np.fmin(change, rows["lo"]))
    for place, end, c in zip(places, ends, change, strict=True):
        ax.annotate(_change(c, base), (base + end, float(place)), xytext=(5 if c >= 0 else -5, 0), va="center",
                    textcoords="offset points", ha="left" if c >= 0 else "right", fontsize="small")  # fmt: skip
    down = min(0.0, float(np.fmin(change, rows["lo"]).min()))
    up = max(0.0, float(np.fmax(change, rows["hi"]).max()))
    room = 0.45 * (up - down) or 0.1 * abs(base) or 1.0  # for what is written beside the bars
    ax.set_xlim(base + down - room * bool((change < 0).any()), base + up + room * bool((change >= 0).any()))
    ax.set_yticks(places, list(rows["scenario"]))
    ax.tick_params(axis="y", length=0)
    name, unit = _named(str(rows["measure"].iloc[0]))
    ax.set(xlabel=f"{name}{unit}, base {base:.4g}")
    return ax


def error_by_class(table: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Errors of predictions in percent, a dot for each and a row per class; the mean absolute error beside it.

    `table` has the columns `class` and `error`, (predicted - measured) ÷ measured. Classes keep their order of first
    appearance, from above. A missing column, or no row at all, is a `UsageError`.
    """
    if missing := [name for name in ("class", "error") if name not in table.columns]:
        raise UsageError(f'the table of errors has no column "{missing[0]}" (it needs class and error)')
    if not table["error"].notna().any():
        raise UsageError("the table of errors has no error in it")
    ax = new_axes(6) if ax is None else ax
    classes = list(dict.fromkeys(table.loc[table["error"].notna(), "class"]))
    widest = 100 * float(table["error"].abs().max())
    ax.axvline(0, color="black", linewidth=1)
    for n, name in enumerate(classes):
        place = len(classes) - 1 - n
        errors = 100 * table.loc[(table["class"] == name) & table["error"].notna(), "error"].to_numpy(float)
        mean, worst = float(np.abs(errors).mean()), float(np.abs(errors).max())
        ax.barh(place, 2 * mean, left=-mean, height=0.7, color=GREY, alpha=0.25, linewidth=0)
        # Dots that would hide each other stand apart: every third of them on another height.
        heights = place + 0.2 * (np.argsort(np.argsort(errors, kind="stable")) % 3 - 1)
        ax.scatter(errors, heights, s=18, color=BLUE, edgecolors="white", linewidths=0.4, zorder=3)
        ax.annotate(f"mean {mean:.1f} %, worst {worst:.1f} %", (1.01, place), xycoords=("axes fraction", "data"),
                    va="center", fontsize="small")  # fmt: skip
    ax.set_yticks(range(len(classes)), [str(name) for name in reversed(classes)])
    ax.tick_params(axis="y", length=0)
    ax.set(xlabel="error of the prediction, % of the measured value", ylim=(-0.6, len(classes) - 0.4))
    ax.set_xlim(-1.08 * widest or -1, 1.08 * widest or 1)
    return ax


def _change(difference: float, base: float) -> str:
    if abs(difference) < 5e-4 * abs(base):
        return "no change"
    return f"{difference:+.3g}" + (f" ({difference / base:+.0%})" if base else "")


def _named(measure: str) -> tuple[str, str]:
    """A measure's name for people, and its unit."""
    if measure == "makespan_s":
        return "time to drain", " in seconds"
    if measure == "throughput_users_per_s":
        return "throughput", " in users/s"
    if measure.endswith("_s"):
        return measure.removesuffix("_s").replace("_", " "), " in seconds"
    return measure.replace("_", " "), ""
