"""`saqkit demo`: a small real run, a prediction written down, the larger real run, and how close they are."""

from __future__ import annotations

import asyncio
import os
import textwrap
import time
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sim
from saqkit.cli.demo_report import picture_of, report_of, table_of
from saqkit.cli.demonstrating_school import has_schools, school_day
from saqkit.cli.fitting_the_minute import arriving, fit_the_minute, users_to_fit
from saqkit.cli.output import table
from saqkit.errors import UsageError
from saqkit.firing import Progress
from saqkit.measuring import measure
from saqkit.spec.probing import Probe
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology
from sim.prediction import NEXT_SEED

SCREEN = (
    "makespan_s",
    "throughput_users_per_s",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p95_s",
    "wait_p95_s",
    "attempts",
    "users_done",
    "users_failed",
)


@dataclass(frozen=True, eq=False)
class DemoResult:
    """What the demonstration found: both runs, the prediction and when it was made, and where it is shown.

    `overrides` are the fields of the description that were changed so that it fits the minute, with the reason of each.
    """

    topology: Topology
    overrides: dict[str, str]
    calibration: Run
    profile: sim.Profile
    prediction: sim.Prediction
    predicted_at: datetime
    began_at: datetime
    run: Run
    comparison: sim.Comparison
    seconds: float
    picture: Path
    report: Path

    def to_dict(self) -> dict[str, Any]:
        """Plain JSON types: what was changed, measured, predicted and compared, and the paths of picture and report."""
        return {
            "topology": self.topology.name,
            "overrides": self.overrides,
            "calibration": _plain(self.calibration.measures()),
            "predicted_at": self.predicted_at.isoformat(timespec="milliseconds"),
            "began_at": self.began_at.isoformat(timespec="milliseconds"),
            "measured": _plain(self.run.measures()),
            "predicted": self.prediction.to_dicts()[0],
            "comparison": self.comparison.to_dict(),
            "disturbed": [*self.calibration.disturbed, *self.run.disturbed],
            "seconds": round(self.seconds, 1),
            "paths": {"picture": str(self.picture), "report": str(self.report)},
        }


async def demonstrate(
    topology: Topology,
    *,
    users: int = 1000,
    folder: Path,
    seed: int = 0,
    echo: Callable[[str], None],
    calibration_users: int | None = None,
    workers: int = 2,
    progress: Progress | None = None,
) -> DemoResult:
    """Tell the whole story with `echo`, a text at a time, and write a picture and a report into `folder`.

    A small real run (`calibration_users` on one worker process; by default up to 300) is fitted; the run of `users`
    users on `workers` processes is predicted and the prediction is echoed before that run begins; then it is carried
    out and compared. Both runs use private servers and other draws. Raises `UsageError` if `folder` cannot be written
    to.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: the picture and the report cannot be written there; give a folder that can be")
    start, few = time.monotonic(), calibration_users or users_to_fit(topology)
    shaped, slots, overrides = await fit_the_minute(topology, users, few, workers)
    echo(f"saqkit demo: {topology.title or topology.name}")
    if topology.story:
        echo(textwrap.fill(topology.story, 100))
    echo(f"Changed to fit the minute: {'; '.join(dict.fromkeys(overrides.values())) or 'nothing'}.")

    echo(f"\n1. A small real run: {few:,} users, 1 worker process")
    first = arriving(shaped, few)
    small = await measure(shaped, workload=first, workers=1, concurrency=slots, seed=seed + 1, progress=progress)
    echo(f"   {small!r}")
    profile = await asyncio.to_thread(sim.calibrate, small)
    echo(f"\n2. Fitted: {profile!r}")

    # The seed that `compare` predicts with: what is compared below is this very prediction.
    second = arriving(shaped, users)
    prediction = await asyncio.to_thread(
        lambda: sim.predict(
            shaped,
            workload=second,
            workers=workers,
            concurrency=slots,
            profile=profile,
            seed=seed + NEXT_SEED,
        )
    )
    cell, predicted_at = prediction.combinations[0], datetime.now(UTC)
    drain, rate = cell.measures["makespan_s"], cell.measures["throughput_users_per_s"]
    echo(f"\n3. Predicted before it happens: {users:,} users on {workers} worker processes")
    echo(
        f"   {drain['mean']:.2f} s to drain, 90 % of runs within [{drain['lo']:.2f}, {drain['hi']:.2f}] s; "
        f"{rate['mean']:.0f} users/s; bottleneck: {cell.bottlenecks[0]}"
    )

    echo(f"\n4. The real run: {users:,} users on {workers} worker processes")
    began_at = datetime.now(UTC)
    run = await measure(
        shaped,
        workload=second,
        workers=workers,
        concurrency=slots,
        seed=seed,
        probe=Probe.parse(small.probe),
        progress=progress,
    )
    echo(f"   {run!r}")
    echo(textwrap.indent(what_happened(run), "   "))
    comparison = await asyncio.to_thread(sim.compare, run, profile)
    echo(f"\n5. Side by side\n{table_of(comparison, SCREEN)}")
    for reason in caveats(small, comparison):
        echo(f"   Note: {reason}.")
    if has_schools(topology):
        echo("\n6. Marked, reported and recorded for real: two tenants, 1 worker process")
        reports = folder / f"saqkit-demo-{topology.name}-reports"
        echo(textwrap.indent(await school_day(topology, reports, began_at.date()), "   "))

    result = DemoResult(
        topology=shaped,
        overrides=overrides,
        calibration=small,
        profile=profile,
        prediction=prediction,
        predicted_at=predicted_at,
        began_at=began_at,
        run=run,
        comparison=comparison,
        seconds=time.monotonic() - start,
        picture=folder / f"saqkit-demo-{topology.name}.png",
        report=folder / f"saqkit-demo-{topology.name}.html",
    )
    picture = await asyncio.to_thread(picture_of, comparison)
    result.picture.write_bytes(picture)
    result.report.write_text(report_of(result, picture, caveats(small, comparison)), encoding="utf-8")
    echo(f"\nPicture: {result.picture}\nReport:  {result.report}\n{time.monotonic() - start:.0f} s in all.")
    return result


def what_happened(run: Run) -> str:
    """A row for each job type: how often it was executed, whom it served, what was tried again, and the waits."""
    rows: list[list[object]] = []
    for name, job in run.topology.job_types.items():
        done = run.attempts[run.attempts["job_type"] == name]
        if len(done):
            waits = (done["started_at"] - done["ready_at"]).quantile(0.95)
            outcomes = [int((done["outcome"] == one).sum()) for one in ("retry", "dead")]
            users = [int(done[column].sum()) for column in ("users_done", "users_failed")]
            rows.append([job.queue, name, len(done), *users, *outcomes, float(waits)])
    return table(["queue", "job type", "attempts", "users done", "failed", "retried", "dead", "wait p95 s"], rows)


def caveats(small: Run, comparison: sim.Comparison) -> list[str]:
    """What a reader should know before trusting the comparison."""
    notes = [f"the small run was disturbed: {reason}" for reason in small.disturbed]
    notes += [comparison.warning] if comparison.warning else []
    providers = comparison.run.topology.providers
    if providers and all(provider.kind == "simulated" for provider in providers.values()):
        notes.append("the provider is simulated: every message waited and failed as described, none left this machine")
    return notes


def _plain(measures: dict[str, float]) -> dict[str, float | None]:
    return {name: None if value != value else value for name, value in measures.items()}
