"""Whether prediction intervals cover what they say: a binomial test over the runs of a judged grid."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import pandas as pd

from saqkit.errors import UsageError
from saqkit.spec.base import did_you_mean
from sim.analysis.statistics import LEVEL

LEAST = 100
"""So many runs that cover 80 % in place of 90 % are told apart by seven of eight such tests."""


@dataclass(frozen=True)
class Coverage:
    """Of `total` runs of `cells` cells, `inside` lie in their intervals, which claim `level` of them.

    `p_two_sided` is the chance of so unlikely a number, `p_covers_less` of so low a one, if the claim were true; `lo`,
    `hi` the 90 % interval of the true share (Clopper & Pearson, 1934). `note` says what was counted.
    """

    inside: int
    total: int
    cells: int
    level: float
    p_two_sided: float
    p_covers_less: float
    lo: float
    hi: float
    note: str

    @property
    def share(self) -> float:
        """The share that was found."""
        return self.inside / self.total

    def holds(self, risk: float = 0.05) -> bool:
        """Whether nothing speaks against the claim that at least `level` are covered, at this risk of a false alarm."""
        return self.p_covers_less > risk

    def __str__(self) -> str:
        return (
            f"{self.inside} of {self.total} runs inside their {self.level:.0%} intervals: {self.share:.1%} "
            f"[{self.lo:.1%}, {self.hi:.1%}]; p = {self.p_two_sided:.3g} two-sided, {self.p_covers_less:.3g} for fewer"
            f"; {self.note}"
        )


def coverage(table: pd.DataFrame, measure: str | Mapping[str, str] | None = None, level: float = LEVEL) -> Coverage:
    """Test that `level` of the runs of `Accuracy.table` lie between `lo` and `hi`.

    Measures of one run move together (who drains late has high percentiles), so that ONE measure of each cell counts:
    `measure`, or that of the cell's class in a mapping, or without either the first of each cell, which is its
    makespan, of a stream its mean latency, of a fault its recovery. Repeats of a cell share its interval and its host's
    hour, and so are not quite independent either: where they move together the p-values are too small.

    Raises `UsageError` for a measure that is not there, or where nothing is left to count.
    """
    from scipy.stats import binomtest

    rows = table[table[["measured", "lo", "hi"]].notna().all(axis=1)]
    if measure is not None:
        chosen = rows["kind"].map(measure) if isinstance(measure, Mapping) else measure
        wanted = set(measure.values()) if isinstance(measure, Mapping) else {measure}
        known = sorted(set(table["measure"]))
        if unknown := sorted(wanted - set(known)):
            raise UsageError(f'coverage: there is no measure "{unknown[0]}" ({did_you_mean(unknown[0], known)})')
        rows = rows[rows["measure"] == chosen]
    one = rows.drop_duplicates("cell")
    if not len(one):
        raise UsageError("coverage: no cell has that measure and an interval (give another measure)")
    inside, total = int((one["inside"] * one["runs"]).round().sum()), int(one["runs"].sum())
    test = binomtest(inside, total, level)
    span = test.proportion_ci(0.90)
    names = ", ".join(dict.fromkeys(one["measure"]))
    note = f"one measure of each of {len(one)} cells ({names}): measures of one run are not independent"
    if total < LEAST:
        note += f"; {total} runs are few for such a test ({LEAST} are wanted)"
    less = binomtest(inside, total, level, alternative="less")
    return Coverage(
        inside, total, len(one), level, float(test.pvalue), float(less.pvalue), float(span.low), float(span.high), note
    )
