"""What is demanded of predictions, and whether a judged grid keeps it: one table for reports and tests."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from sim.judging import DRAIN, LATENCY

__all__ = ["DEMANDS", "Demand", "IDLE", "WIDE", "grade", "readable", "wide"]

WIDE = 0.10
"""A value whose repeats spread by more than this is judged by its spread, not by a demand."""
IDLE = 0.70
"""Loops and cores that are less busy do not saturate."""
CROWDED = 0.85  # between the designed loads of 80 and of 90 %
SMOOTH = ("io", "loop", "core", "limiter", "priorities")  # bursts whose end does not hang on a last retry
SCORED = {"expected": "error", "same_draw": "same_draw_error"}


@dataclass(frozen=True)
class Demand:
    """One line of the table: which rows of `Accuracy.table` it is about, and mean and worst error that are allowed.

    `column` is the error of what was expected, `expected` and `same_draw` (mean, worst) bounds of its size and of the
    same-draw error's: shares of the measured value, or in ticks of the cell's queue if `ticks`; None asks for nothing.
    """

    name: str
    about: Callable[[pd.DataFrame], pd.Series[bool]]
    expected: tuple[float | None, float] | None
    same_draw: tuple[float | None, float] | None
    column: str = "error"
    ticks: bool = False


def _of(kinds: Sequence[str], measures: Sequence[str]) -> Callable[[pd.DataFrame], pd.Series[bool]]:
    return lambda t: t["kind"].isin(kinds) & t["measure"].isin(measures)


PLAIN, STREAM = ("io", "loop", "core"), _of(["stream"], ["latency_mean_s", *LATENCY])
DEMANDS = (
    Demand(
        "loops and cores under 70 % busy: makespan, throughput",
        lambda t: _of(PLAIN, DRAIN)(t) & (t["busy"] < IDLE),
        (0.02, 0.05),
        (0.01, 0.02),
    ),
    Demand(
        "loops or cores saturated, with the yardstick: makespan, throughput",
        lambda t: _of(PLAIN, DRAIN)(t) & (t["busy"] >= IDLE),
        (0.05, 0.12),
        (0.03, 0.08),
        column="yardstick_error",
    ),
    Demand("rate limits: makespan, throughput", _of(["limiter"], DRAIN), (0.02, 0.05), (0.01, 0.03)),
    Demand("mixed priorities: makespan, throughput", _of(["priorities"], DRAIN), (0.02, 0.05), (0.01, 0.03)),
    Demand("all bursts: makespan, throughput", _of(SMOOTH, DRAIN), (0.03, 0.10), (0.015, 0.08)),
    Demand("all bursts: p50, p95, p99", _of((*SMOOTH, "retries"), LATENCY), (0.04, 0.12), (0.015, 0.08)),
    Demand(
        "streams to 80 % load: mean, p95, p99",
        lambda t: STREAM(t) & (t["load"] < CROWDED),
        (0.03, 0.06),
        (0.02, 0.04),
    ),
    Demand(
        "streams at 90 % load: mean, p95, p99",
        lambda t: STREAM(t) & (t["load"] >= CROWDED),
        (0.06, 0.12),
        (0.03, 0.08),
    ),
    Demand("retries: p95", _of(["retries"], ["latency_p95_s"]), (0.05, 0.08), (0.03, 0.06)),
    Demand("retries: makespan", _of(["retries"], ["makespan_s"]), (None, 1.0), (None, 1.0), ticks=True),
    Demand("recovery from a kill or an outage", _of(["fault"], ["recovery_s"]), (None, 0.15), None),
)
"""What this kit demands of itself: mean and worst error, beyond what published predictors of such systems reach."""


def grade(table: pd.DataFrame) -> pd.DataFrame:
    """A row per demand of `DEMANDS` on the rows of `Accuracy.table`; demands that no row is about are left out.

    Columns: `cells`, `values`, and of both scores, `expected` and `same_draw`: `… wide`, the number of values that are
    not counted because repeats do not show them to a tenth (see `wide`), `… mean` and `… worst` size of the error of
    the others, `… may mean` and `… may be`, what is allowed (NaN: anything), and `… verdict`: `kept`, `missed`, or `-`
    where nothing is demanded or nothing counts. Beside them mean and worst of the estimates without a model, `naive …`
    and `mmc …`, over all values. Errors are in `unit`: % of the measured value, or ticks.
    """
    rows = []
    for demand in DEMANDS:
        part = table[demand.about(table) & table["measured"].notna()]
        if not len(part):
            continue
        unit = part["measured"] / part["tick_s"] if demand.ticks else pd.Series(100.0, part.index)
        row: dict[str, Any] = {"demand": demand.name, "unit": "ticks" if demand.ticks else "%"}
        row |= {"cells": part["cell"].nunique(), "values": len(part)}
        for score, column, bounds in (
            ("expected", demand.column, demand.expected),
            ("same_draw", "same_draw_error", demand.same_draw),
        ):
            size = (part[column] * unit).abs()[_shown_by_repeats(part, score)]
            row |= {f"{score} wide": len(part) - len(size)}
            row |= _score(score, size, bounds, 1.0 if demand.ticks else 100.0)
        for estimate in ("naive", "mmc"):
            size = (part[f"{estimate}_error"] * unit).abs()
            row |= {f"{estimate} mean": size.mean(), f"{estimate} worst": size.max()}
        rows.append(row)
    return pd.DataFrame(rows).set_index("demand")


def readable(graded: pd.DataFrame) -> pd.DataFrame:
    """`grade`'s table for people: mean / worst, what is allowed beside it, and whether it is kept."""

    def pair(row: pd.Series[Any], name: str) -> str:
        numbers = [row[f"{name} {which}"] for which in (("mean", "worst") if name[-3:] != "may" else ("mean", "be"))]
        return " / ".join("-" if one != one else f"{one:.3g}" for one in numbers)

    rows = {}
    for name, row in graded.iterrows():
        shown: dict[str, Any] = {"unit": row["unit"], "cells": row["cells"], "values": row["values"]}
        for score in SCORED:
            title = score.replace("_", "-")
            shown |= {title: pair(row, score), f"{title} may be": pair(row, f"{score} may")}
            shown |= {f"{title} is": row[f"{score} verdict"], f"{title} not counted": row[f"{score} wide"]}
        rows[name] = shown | {"users × time / slots": pair(row, "naive"), "M/M/c": pair(row, "mmc")}
    return pd.DataFrame(rows).T.rename_axis("mean / worst error of")


def wide(table: pd.DataFrame) -> pd.DataFrame:
    """The values whose repeats spread by more than a tenth, for each score: its error may be as large as the spread.

    With them those that were measured in disturbed runs only (`calm` is false). Columns `score cell measure runs calm
    error spread within`. Of what is expected the spread is that of the measured
    repeats, which have their own draws; of same-draw simulations, which have the same, it is that of their errors.
    """
    rows = []
    for score, column in SCORED.items():
        found = table[~_shown_by_repeats(table, score) & table["measured"].notna()]
        part = found[["cell", "measure", "runs", "calm"]].assign(error=found[column], spread=found[_spread(score)])
        part.insert(0, "score", score)
        rows.append(part.assign(within=part["error"].abs() <= part["spread"]))
    return pd.concat(rows, ignore_index=True)


def _shown_by_repeats(table: pd.DataFrame, score: str) -> pd.Series[bool]:
    return (table[_spread(score)] <= WIDE) & table["calm"]


def _spread(score: str) -> str:
    return "spread" if score == "expected" else "same_draw_spread"


def _score(
    name: str, size: pd.Series[float], bounds: tuple[float | None, float] | None, unit: float
) -> dict[str, float | str]:
    mean, worst = float(size.mean()), float(size.max())
    may_mean, may_be = (np.nan, np.nan) if bounds is None else (unit * (bounds[0] or np.nan), unit * bounds[1])
    verdict = "missed" if mean > may_mean or worst > may_be else "kept"
    return {f"{name} mean": mean, f"{name} worst": worst, f"{name} may mean": may_mean, f"{name} may be": may_be,
            f"{name} verdict": "-" if bounds is None or not len(size) else verdict}  # fmt: skip
