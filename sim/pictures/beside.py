"""What a rule of the queue does, in the model and in a real run side by side: who goes when."""

from __future__ import annotations

from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

import pandas as pd

from saqkit.spec.pictures import Grouping, jobs_over_time

if TYPE_CHECKING:
    from matplotlib.axes import Axes


def model_beside_run(
    attempts: Mapping[str, tuple[pd.DataFrame, pd.DataFrame]], by: Grouping = "tenant"
) -> list[tuple[Axes, Axes]]:
    """Draw `jobs_over_time` twice for each rule: the attempts tables of the model (left) and of a run (right).

    `attempts`: both tables by the title of their row. All rows share the axis of time; returns the pairs of Axes.
    """
    import matplotlib.pyplot as plt

    found: Any
    _, found = plt.subplots(
        len(attempts), 2, figsize=(8.2, 0.6 + 1.75 * len(attempts)), sharex=True, squeeze=False, layout="constrained"
    )
    for pair, (title, tables) in zip(found, attempts.items(), strict=True):
        for ax, where, table in zip(pair, ("model", "real run"), tables, strict=True):
            jobs_over_time(table, by, ax)
            ax.set_title(f"{title} · {where}", loc="left", fontsize="medium")
            ax.spines[["top", "right"]].set_visible(False)
            ax.grid(axis="x", linewidth=0.5, alpha=0.4)
            ax.set_axisbelow(True)
            ax.label_outer()
    end_s = max(float(table["finished_at"].max()) for pair in attempts.values() for table in pair)
    found[0, 0].set_xlim(0, 1.01 * end_s)
    return [(left, right) for left, right in found]
