"""Makes `another_queue.csv`: an hour of a job queue that is not ours, as its own log would tell it.

`python data/another_queue.py` simulates two worker processes of four slots and three kinds of tasks, seeded, on a host
where nothing but the tasks takes time, and writes the log: one row per execution, times in UTC to the millisecond.
"""

from __future__ import annotations

import tomllib
from pathlib import Path
from typing import Any

import pandas as pd

import saqkit
import sim
from saqkit.spec.workload import Poisson, Workload
from sim.fit.profile import Estimate, Profile

TASKS = """
name = "another-queue"
entry = [
    { job_type = "thumbnail", share = 0.55 },
    { job_type = "invoice", share = 0.4 },
    { job_type = "export", share = 0.05 },
]

[queues.celery]
concurrency = 4

[job_types.thumbnail]
queue = "celery"
per_user = { provider = "storage" }
[job_types.invoice]
queue = "celery"
retry = { max_attempts = 4, backoff = "fixed", delay_s = 30 }
per_user = { provider = "printer" }
[job_types.export]
queue = "celery"
per_user = { provider = "warehouse" }

[providers.storage]
latency = { kind = "gamma", mean_s = 5.5, cv = 0.6 }
timeout_s = 600
[providers.printer]
latency = { kind = "lognormal", mean_s = 4.0, cv = 0.7 }
temporary_share = 0.06
timeout_s = 600
[providers.warehouse]
timeout_s = 600
latency = { kind = "empirical", values_s = [18, 20, 21, 22, 24, 25, 26, 28, 110, 118, 125, 133, 140] }
"""
STATES = {"done": "SUCCESS", "retry": "RETRY", "dead": "FAILURE"}
BEGAN = pd.Timestamp("2026-03-02T09:00:00Z")


def main() -> None:
    nominal, nothing = Profile.nominal(), Estimate(value=0.0)
    zero: dict[str, Any] = {name: nothing for name, value in nominal.host if isinstance(value, Estimate)}
    zero |= {"cpu_scale": Estimate(value=1.0), "crowded": Estimate(value=1.0)}
    types = {
        name: job.model_copy(update={n: nothing for n, value in job if isinstance(value, Estimate)})
        for name, job in nominal.job_types.items()
    }
    free = nominal.model_copy(update={"host": nominal.host.model_copy(update=zero), "job_types": types})
    arriving = Workload(arrivals=Poisson(rate_per_s=0.8, duration_s=3600))
    topology = saqkit.Topology.parse(tomllib.loads(TASKS))
    attempts = sim.predict(topology, workload=arriving, workers=2, profile=free, replications=1, seed=5).attempts

    def stamps(column: str) -> pd.Series[str]:
        when = BEGAN + pd.to_timedelta(attempts[column], unit="s")
        return when.dt.strftime("%Y-%m-%dT%H:%M:%S.%f").str[:-3] + "Z"

    log = pd.DataFrame({
        "task_id": attempts["job"], "task": attempts["job_type"], "retries": attempts["attempt"] - 1,
        "state": attempts["outcome"].map(STATES), "sent": stamps("ready_at"), "started": stamps("started_at"),
        "ended": stamps("finished_at"), "worker": attempts["worker"],
    })  # fmt: skip
    log.sort_values(["ended", "task_id"]).to_csv(Path(__file__).with_suffix(".csv"), index=False)


if __name__ == "__main__":
    main()
