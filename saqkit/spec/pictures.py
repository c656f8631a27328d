"""Pictures of an attempts table: how a backlog drains. Colours after Okabe & Ito (2008), apart for all eyes."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any, Literal, get_args

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.errors import UsageError
from saqkit.spec.topology import Priority

if TYPE_CHECKING:
    from matplotlib.axes import Axes

BLUE, ORANGE, GREEN, GREY = "#0072B2", "#D55E00", "#009E73", "#7F7F7F"
LEVEL_COLOURS = {1: "#D55E00", 2: "#E69F00", 3: "#0072B2", 4: "#7F7F7F"}
OUTCOME_COLOURS = {"done": BLUE, "retry": "#E69F00", "dead": "#000000", "lost": "#CC79A7", "released": "#56B4E9",
                   "cancelled": GREY}  # fmt: skip
GROUP_COLOURS = (BLUE, "#E69F00", GREEN, "#CC79A7", "#56B4E9", "#000000")
Grouping = Literal["tenant", "priority"]
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
    ax.legend(handles=[done, depth], loc="lower center", bbox_to_anchor=(0.5, 1.0), ncols=2, frameon=False)
    return ax


def new_axes(width: float = 7.0, height: float = 4.0) -> Axes:
    """Axes of a new figure without its upper and right frame."""
    import matplotlib.pyplot as plt

    _, ax = plt.subplots(figsize=(width, height), layout="constrained")
    ax.spines[["top", "right"]].set_visible(False)
    return ax


def timeline(attempts: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw one row per job, first enqueued on top; returns the Axes. Meant for some forty jobs at most.

    A thin line while it waits, a dotted one while it is delayed, and a bar per attempt, coloured by its outcome.
    """
    order = attempts.sort_values(["queued_at", "taken_at"], kind="stable")["job"].unique()
    place = {job: n for n, job in enumerate(order)}
    ax = new_axes(height=1.2 + 0.26 * len(place)) if ax is None else ax
    for outcome, colour in OUTCOME_COLOURS.items():
        rows = attempts[(attempts["outcome"] == outcome) & attempts["started_at"].notna()]
        if len(rows):
            took = rows["finished_at"] - rows["started_at"]
            ax.barh(rows["job"].map(place), took, left=rows["started_at"], height=0.6, color=colour,
                    edgecolor=colour, linewidth=0.8, label=outcome)  # fmt: skip
    waits = attempts[attempts["taken_at"] > attempts["ready_at"]]
    ax.hlines(waits["job"].map(place), waits["ready_at"], waits["taken_at"], color=GREY, linewidth=2, label="waiting")
    rows = attempts.sort_values(["job", "attempt", "ready_at"], kind="stable")
    before = rows.groupby("job", sort=False)["finished_at"].shift().fillna(rows["queued_at"])
    late = rows["ready_at"] > before + 1e-3
    if late.any():
        ax.hlines(rows["job"][late].map(place), before[late], rows["ready_at"][late], color=GREY, linewidth=1.2,
                  linestyle=":", label="delayed")  # fmt: skip
    ax.set(xlabel="seconds since the first event", xlim=(0, None), ylim=(len(place) - 0.4, -0.6))
    ax.set_yticks(range(len(place)), [str(job) for job in order])
    ax.legend(loc="upper left", bbox_to_anchor=(1.0, 1.0), frameon=False)
    return ax


def jobs_over_time(attempts: pd.DataFrame, by: Grouping = "tenant", ax: Axes | None = None) -> Axes:
    """Draw who goes when: a row per job, a thin line while it waits and a bar while it runs; returns the Axes.

    Rows are grouped by tenant or priority level, each in its colour, who came first on top; inside in order of arrival.
    """
    if by not in get_args(Grouping):
        raise UsageError(f'by="{by}": either "tenant" or "priority"')
    ax = new_axes() if ax is None else ax
    rows = attempts[attempts["started_at"].notna()].sort_values(["queued_at", "taken_at"], kind="stable")
    groups = list(rows[by].unique())
    rows = rows.iloc[np.argsort(rows[by].map(groups.index), kind="stable")]
    place = {job: n for n, job in enumerate(rows["job"].unique())}
    middles = []
    for n, group in enumerate(groups):
        part = rows[rows[by] == group]
        colour = LEVEL_COLOURS[group] if by == "priority" else GROUP_COLOURS[n % len(GROUP_COLOURS)]
        at = part["job"].map(place)
        ax.hlines(at, part["ready_at"], part["taken_at"], color=colour, linewidth=0.8, alpha=0.6)
        ax.barh(at, part["finished_at"] - part["started_at"], left=part["started_at"], height=0.8, color=colour)
        middles.append((at.min() + at.max()) / 2)
    names = [Priority(group).name.lower() if by == "priority" else str(group) for group in groups]
    ax.set_yticks(middles, names)
    ax.tick_params(axis="y", length=0)
    ax.set(
        xlabel="seconds since the first event", ylabel=f"jobs, by {by}", xlim=(0, None), ylim=(len(place) - 0.4, -0.6)
    )
    return ax


def waiting_by_priority(attempts: pd.DataFrame, ax: Axes | None = None) -> Axes:
    """Draw the jobs waiting over time, a line per priority level; returns the Axes."""
    ax = new_axes() if ax is None else ax
    for level, style in zip(Priority, ("-", "--", "-", "--"), strict=True):
        rows = attempts[attempts["priority"] == level]
        if len(rows):
            ax.step(*jobs_waiting(rows), where="post", color=LEVEL_COLOURS[level], linestyle=style, linewidth=1.5,
                    label=level.name.lower())  # fmt: skip
    ax.set(xlabel="seconds since the first event", ylabel="jobs waiting", xlim=(0, None), ylim=(0, None))
    ax.legend(title="priority", frameon=False)
    return ax


def taken_per_period(
    attempts: pd.DataFrame, period_s: float, limit: float | None = None, ax: Axes | None = None
) -> Axes:
    """Draw how many jobs were taken in each period, with the rate limit as a line; returns the Axes."""
    ax = new_axes() if ax is None else ax
    taken = attempts["taken_at"].dropna().to_numpy(float)
    edges = np.arange(0.0, float(taken.max(initial=0.0)) + period_s, period_s)
    counts, _ = np.histogram(taken, bins=np.append(edges, edges[-1] + period_s))
    ax.bar(edges, counts, width=0.9 * period_s, align="edge", color=BLUE, label="jobs taken")
    if limit is not None:
        ax.axhline(limit, color=ORANGE, linestyle="--", label=f"limit: {limit:g} in any {period_s:g} s")
    ax.set(
        xlabel="seconds since the first event",
        ylabel=f"jobs taken in each {period_s:g} s",
        xlim=(0, edges[-1] + period_s),
    )
    ax.set_ylim(0, 1.35 * max(limit or 0, counts.max(initial=1)))
    ax.legend(loc="upper right", frameon=False)
    return ax
