"""`saqkit demo`: a small real run, a prediction written down, the larger real run, and how close they are."""

from __future__ import annotations

import asyncio
import os
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import sim
from saqkit.cli.demo_report import picture_of, report_of, table_of
from saqkit.errors import UsageError
from saqkit.firing import Progress
from saqkit.measuring import measure
from saqkit.spec.overriding import override
from saqkit.spec.probing import Probe
from saqkit.spec.runs import Run
from saqkit.spec.topology import Topology
from sim.prediction import NEXT_SEED

RUNS_S = 30.0
"""What both real runs together may take on a nominal host, so that all fits a minute with the probe and start-up."""
JOBS = 50
"""Users are cut into about so many jobs, so that the picture shows a curve and the slots have several turns each."""
LONGEST_DELAY_S = 1.0
MOST_SLOTS = 80
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
    calibration_users: int = 300,
    workers: int = 2,
    progress: Progress | None = None,
) -> DemoResult:
    """Tell the whole story with `echo`, a text at a time, and write a picture and a report into `folder`.

    A small real run (`calibration_users` on one worker process) is fitted; the run of `users` users on `workers`
    processes is predicted and the prediction is echoed before that run begins; then it is carried out and compared.
    Both runs use private servers and other draws. Raises `UsageError` if `folder` cannot be written to.
    """
    if not folder.is_dir() or not os.access(folder, os.W_OK):
        raise UsageError(f"{folder}: the picture and the report cannot be written there; give a folder that can be")
    start = time.monotonic()
    shaped, slots, overrides = fit_the_minute(topology, users, calibration_users, workers)
    echo(f"saqkit demo: {topology.title or topology.name}")
    echo(f"Changed to fit the minute: {'; '.join(overrides.values()) or 'nothing'}.")

    echo(f"\n1. A small real run: {calibration_users:,} users, 1 worker process")
    small = await measure(
        shaped, users=calibration_users, workers=1, concurrency=slots, seed=seed + 1, progress=progress
    )
    echo(f"   {small!r}")
    profile = await asyncio.to_thread(sim.calibrate, small)
    echo(f"\n2. Fitted: {profile!r}")

    # The seed that `compare` predicts with: what is compared below is this very prediction.
    prediction = await asyncio.to_thread(
        lambda: sim.predict(
            shaped, users=users, workers=workers, concurrency=slots, profile=profile, seed=seed + NEXT_SEED
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
        users=users,
        workers=workers,
        concurrency=slots,
        seed=seed,
        probe=Probe.parse(small.probe),
        progress=progress,
    )
    echo(f"   {run!r}")
    comparison = await asyncio.to_thread(sim.compare, run, profile)
    echo(f"\n5. Side by side\n{table_of(comparison, SCREEN)}")
    for reason in caveats(small, comparison):
        echo(f"   Note: {reason}.")

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


def fit_the_minute(
    topology: Topology, users: int, calibration_users: int, workers: int
) -> tuple[Topology, int | None, dict[str, str]]:
    """The topology changed so that both runs end within `RUNS_S` on a nominal host, the slots (None: its own), and
    what was changed, by path, with the reason.

    Batches become smaller, always. Only while that is not enough, and only where it helps: no retry waits longer than a
    second, then rate limits are lifted, then every queue gets more slots.
    """
    changes: dict[str, str] = {}
    batch = max(1, users // JOBS)
    for name, job in topology.job_types.items():
        if job.fan_out and job.fan_out.batch_size > batch:
            path = f"job_types.{name}.fan_out.batch_size"
            topology = override(topology, {path: batch})
            changes[path] = (
                f"batches of {batch} users instead of {job.fan_out.batch_size:,}, so that there are about {JOBS} jobs"
            )

    def takes_s(shaped: Topology, slots: int | None = None) -> float:
        runs = ((calibration_users, 1), (users, workers))
        return sum(
            sim.predict(shaped, users=n, workers=w, concurrency=slots, replications=1)
            .combinations[0]
            .measures["makespan_s"]["mean"]
            for n, w in runs
        )

    took_s = takes_s(topology)
    for path, value, reason in _shortcuts(topology):
        if took_s > RUNS_S and (shorter_s := takes_s(shaped := override(topology, {path: value}))) < 0.95 * took_s:
            topology, took_s, changes[path] = shaped, shorter_s, reason
    slots, own = None, max(queue.concurrency for queue in topology.queues.values())
    while took_s > RUNS_S and (more := 2 * (slots or own)) <= MOST_SLOTS:
        slots, took_s = more, takes_s(topology, more)
        changes["concurrency"] = f"{slots} slots in each worker process instead of {own}"
    return topology, slots, changes


def _shortcuts(topology: Topology) -> Iterator[tuple[str, Any, str]]:
    """(path, value, reason) of what may make a run shorter without changing what it does, the mildest first."""
    for name, job in topology.job_types.items():
        if (longest := max(job.retry.schedule(), default=0.0)) > LONGEST_DELAY_S:
            reason = f"retries of {name} wait {LONGEST_DELAY_S:g} s at most instead of {longest:g} s"
            yield f"job_types.{name}.retry.cap_s", LONGEST_DELAY_S, reason
    for name, queue in topology.queues.items():
        if limit := queue.rate_limit:
            reason = f"no rate limit on {name} instead of {limit.limit} {limit.unit} in {limit.period_s:g} s"
            yield f"queues.{name}.rate_limit", "none", reason


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
