"""Does a plan hold? `python benchmarks/plan_shown.py [--runs 3] [--scale 1]`: about eight minutes, on a quiet machine.

`saqkit plan` is asked for the smallest deployment of the laboratory that meets a target; real runs at the plan should
meet it, and with one worker (or, of a single worker, one group of slots) fewer miss it, each in at least 2 of 3 runs.
Two cases: a slow provider, where slots are lacking, and much CPU per user, where worker processes are. The profile is
from small runs of each case; the targets lie between what it predicts of two neighbouring deployments, so that no run
takes two minutes. Runs at the plan and below it alternate. Ends with status 1 if the plan does not hold.

`--scale 0.1`: a tenth of the users (and of the time), to try the script.
"""

from __future__ import annotations

import argparse
import asyncio
import json
import subprocess
import sys
import tempfile
from dataclasses import dataclass
from math import sqrt
from pathlib import Path
from typing import Any

import pandas as pd

import saqkit
import sim
from saqkit.spec.overriding import override
from saqkit.spec.topology import Topology
from sim.capacity.search import SLOTS

LAB = Path(__file__).parent.parent / "data" / "lab.toml"
APART = 1.25  # so much longer one of the neighbours has to take, for a target between them to tell them apart
Deployed = dict[str, Any]  # workers, concurrency, batch_size


@dataclass(frozen=True)
class Case:
    """What is planned for, and two neighbouring deployments between whose drains the target lies."""

    name: str
    users: int
    fields: dict[str, Any]
    smaller: Deployed
    larger: Deployed

    @property
    def topology(self) -> Topology:
        """The laboratory with this case's fields."""
        return override(saqkit.load(LAB), self.fields)


CASES = (
    Case(
        "slots: 75 ms a send",
        4_000,
        {"providers.email.latency.mean_s": 0.075, "job_types.announce.fan_out.batch_size": 20},
        {"workers": 1, "concurrency": 5},
        {"workers": 1, "concurrency": 10},
    ),
    Case(
        "workers: 4 ms of CPU a user",
        6_000,
        {
            "job_types.notify.per_user.cpu_us": 4_000,
            "job_types.announce.fan_out.batch_size": 20,
            "queues.notifications.concurrency": 20,
        },
        {"workers": 1, "concurrency": 20},
        {"workers": 2, "concurrency": 20},
    ),
)


async def shown(case: Case, runs: int, scale: float, folder: Path) -> tuple[list[dict[str, object]], bool]:
    """A row for the plan and one for a little less, and whether both did what was said."""
    users, topology = max(100, round(scale * case.users)), case.topology
    small = [await saqkit.measure(topology, users=300, **each, seed=1) for each in (case.smaller, case.larger)]
    profile = folder / "profile.json"
    sim.calibrate(small).save(profile)
    near = [
        sim.predict(topology, users=users, **each, profile=profile).combinations[0].measures["makespan_s"]["mean"]
        for each in (case.smaller, case.larger)
    ]
    if near[0] < APART * near[1]:
        print(f"{case.name}: {near[0]:.3g} s and {near[1]:.3g} s are too near each other here: leave the machine "
              "alone, and give it a core for each worker", file=sys.stderr)  # fmt: skip
        return [], False
    target_s = float(f"{sqrt(near[0] * near[1]):.3g}")
    plan = ask(case, users, f"drain<={target_s}s @ 0.9", profile)
    if not plan["feasible"]:
        print(f"{case.name}: {plan['reason']}", file=sys.stderr)
        return [], False
    settings: Deployed = {name: plan[name] for name in ("workers", "concurrency", "batch_size")}
    tried = {"the plan": settings, "one fewer": fewer(settings)}
    took: dict[str, list[float]] = {name: [] for name in tried}
    disturbed = dict.fromkeys(tried, 0)
    for seed in range(2, 2 + runs):
        for name, deployed in tried.items():
            run = await saqkit.measure(topology, users=users, **deployed, seed=seed)
            took[name].append(run.measures()["makespan_s"])
            disturbed[name] += bool(run.disturbed)
    rows: list[dict[str, object]] = []
    holds = True
    for name, deployed in tried.items():
        met = sum(seconds <= target_s for seconds in took[name])
        good = met if name == "the plan" else runs - met
        holds &= 3 * good >= 2 * runs
        expected = sim.predict(topology, users=users, **deployed, profile=profile).combinations[0]
        rows.append(
            {
                "case": case.name,
                "users": users,
                "target": f"{target_s:g} s",
                "deployment": f"{name}: {deployed['workers']} × {deployed['concurrency']}",
                "predicted": f"{expected.measures['makespan_s']['mean']:.3g} s",
                "measured": ", ".join(f"{seconds:.3g}" for seconds in took[name]) + " s",
                "meets it": f"{met} of {runs}",
                "as said": "yes" if 3 * good >= 2 * runs else "NO",
                "disturbed": f"{disturbed[name]} of {runs}",
            }
        )
    return rows, holds


def ask(case: Case, users: int, target: str, profile: Path) -> dict[str, Any]:
    """What `saqkit plan` answers."""
    sets = [word for path, value in case.fields.items() for word in ("--set", f"{path}={value}")]
    own = case.smaller["concurrency"]
    done = subprocess.run(
        [sys.executable, "-m", "saqkit.cli", "plan", str(LAB), "--users", str(users), "--target", target,
         "--profile", str(profile), "--set", f"deployment.concurrency={own}", "--max-workers", "4", *sets, "--json"],
        stdout=subprocess.PIPE, text=True, check=True,
    )  # fmt: skip
    found: dict[str, Any] = json.loads(done.stdout)
    return found


def fewer(settings: Deployed) -> Deployed:
    """One worker fewer, or of a single worker the next smaller group of slots that a plan knows."""
    if settings["workers"] > 1:
        return {**settings, "workers": settings["workers"] - 1}
    return {**settings, "concurrency": max([n for n in SLOTS if n < settings["concurrency"]], default=1)}


def main() -> int:
    """Plan, measure, print the table."""
    parser = argparse.ArgumentParser(description="Real runs at a plan, and with a little less.")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each deployment")
    parser.add_argument("--scale", type=float, default=1.0, help="share of the users, to try the script")
    given = parser.parse_args()
    rows: list[dict[str, object]] = []
    holds = True
    for case in CASES:
        with tempfile.TemporaryDirectory() as folder:
            found, held = asyncio.run(shown(case, given.runs, given.scale, Path(folder)))
        rows += found
        holds &= held
    print(pd.DataFrame(rows).to_string(index=False))
    print(f"the plans hold: {'yes' if holds else 'NO'}")
    return 0 if holds else 1


if __name__ == "__main__":
    sys.exit(main())
