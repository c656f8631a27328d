"""How close are predictions to runs that calibration never saw? `python benchmarks/accuracy.py [--runs 3]`

Calibrated on 300 users, 1 worker x 5 slots, batches of 100; judged on 5,000 users, 2 workers x 20 slots, batches of 20,
without rate limit, with 0 and with 500 nominal µs of CPU per user: school-events (75 ms provider) and the laboratory
(20 ms). Predictions are made before anything is measured. About four minutes; leave the machine alone meanwhile.

Columns: `predicted`, the mean over simulated runs; `error`, of the median of the measured runs; `same_draw`, the median
error of predictions that were given each run's own draws (what is left is mechanism and host); `spread`, (max - min) /
median of the measured runs; `disturbed`, how many of them the kit itself distrusts.
"""

from __future__ import annotations

import argparse
import asyncio
from statistics import median

import pandas as pd

import saqkit
import sim
from saqkit.spec.overriding import override

LARGER = {"users": 5_000, "workers": 2, "concurrency": 20, "batch_size": 20}
MEASURES = ("makespan_s", "throughput_users_per_s", "latency_p95_s")


async def judge(name: str, runs: int) -> list[dict[str, object]]:
    """A row per CPU load and measure for one topology."""
    topology = override(saqkit.load(name), {"queues.notifications.rate_limit": "none"})
    small = await saqkit.measure(topology, users=300, workers=1, concurrency=5, batch_size=100, seed=1)
    profile = sim.calibrate(small)
    loads = {cpu_us: override(topology, {"job_types.notify.per_user.cpu_us": cpu_us}) for cpu_us in (0, 500)}
    forecasts = {cpu_us: sim.predict(t, profile=profile, **LARGER).to_dicts()[0] for cpu_us, t in loads.items()}
    measured: dict[int, list[saqkit.Run]] = {cpu_us: [] for cpu_us in loads}
    for seed in range(2, 2 + runs):  # interleaved: the host's speed drifts
        for cpu_us, described in loads.items():
            measured[cpu_us].append(await saqkit.measure(described, seed=seed, **LARGER))
    rows: list[dict[str, object]] = []
    for cpu_us, found in measured.items():
        compared = [sim.compare(run, profile).summary() for run in found]
        for measure in MEASURES:
            values = [run.measures()[measure] for run in found]
            middle, predicted = median(values), forecasts[cpu_us][measure]["mean"]
            rows.append(
                {
                    "topology": topology.name,
                    "cpu_us": cpu_us,
                    "measure": measure,
                    "measured": middle,
                    "predicted": predicted,
                    "error": f"{predicted / middle - 1:+.1%}",
                    "same_draw": f"{median(table.loc[measure, 'same_draw_error'] for table in compared):+.1%}",
                    "spread": f"{(max(values) - min(values)) / middle:.1%}",
                    "disturbed": f"{sum(bool(run.disturbed) for run in found)} of {runs}",
                }
            )
    return rows


def main() -> None:
    """Measure and print the table."""
    parser = argparse.ArgumentParser(description="Predictions against runs that calibration never saw.")
    parser.add_argument("--runs", type=int, default=3, help="measured runs of each configuration")
    runs = parser.parse_args().runs
    rows = [row for name in ("school-events", "data/lab.toml") for row in asyncio.run(judge(name, runs))]
    print(pd.DataFrame(rows).round(3).to_string(index=False))


if __name__ == "__main__":
    main()
