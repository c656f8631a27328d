"""Draws the pictures of `docs/priorities_and_limits.md`: `make pictures`, or this script with a folder to write to.

Left the model, right the real runs of `data/runs/rules`, which `data/rules.py` records.
"""

from __future__ import annotations

import sys
from pathlib import Path

import matplotlib.pyplot as plt
import pandas as pd

import saqkit
import sim
from saqkit.spec.pictures import Grouping
from sim.pictures import model_beside_run

HERE = Path(__file__).parent
DATA = HERE.parent.parent / "data"
DPI = 110

# file: what rows are grouped by, and the title and the recorded run of each row
PICTURES: dict[str, tuple[Grouping, dict[str, str]]] = {
    "levels": ("priority", {"strict": "strict", "weights 2 : 1": "weighted"}),
    "fairness": ("tenant", {"first in, first out": "first-in-first-out", "tenants take turns": "turns"}),
    "tenant_limit": ("tenant", {"no limit": "first-in-first-out", "3 in 1.5 s of each tenant": "tenant-limit"}),
    "running_limit": ("tenant", {"no limit": "first-in-first-out", "1 at once of each tenant": "running-limit"}),
}


def modelled_and_measured(name: str) -> tuple[pd.DataFrame, pd.DataFrame]:
    """The attempts of the model, playing what a recorded run describes, and those of the run."""
    run = saqkit.Run.load(DATA / "runs" / "rules" / f"{name}.parquet")
    prediction = sim.predict(
        run.topology,
        workload=run.workload,
        deployment=run.deployment,
        seed=run.seed,
        same_draw=True,
        profile=DATA / "profile-quickstart.json",
        replications=1,
    )
    return prediction.attempts, run.attempts


def draw(folder: Path) -> None:
    """Write each of `PICTURES` as a PNG file."""
    plt.switch_backend("agg")
    for name, (by, rows) in PICTURES.items():
        model_beside_run({title: modelled_and_measured(run) for title, run in rows.items()}, by)
        plt.savefig(folder / f"{name}.png", dpi=DPI, metadata={"Software": None}, pil_kwargs={"optimize": True})
        plt.close("all")


if __name__ == "__main__":
    draw(Path(sys.argv[1]) if len(sys.argv) > 1 else HERE)
