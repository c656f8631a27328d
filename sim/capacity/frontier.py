"""The frontier of cost against time: deployments that no cheaper one beats."""

from __future__ import annotations

from dataclasses import dataclass

import pandas as pd

from saqkit.spec import trace
from sim.analysis.statistics import chance_below
from sim.capacity.search import Choice, Search
from sim.prediction import predict
from sim.running.combination import Combination

COUNTS = (1, 2, 3, 4, 6, 8, 12, 16, 24, 32, 48, 64, 96, 128)
GAIN = 0.01  # a deployment that is faster by less than this is not worth a worker

COLUMNS = ("workers", "concurrency", "batch_size", "cost_per_hour", "cost_per_million_users", "time_s", "probability")


@dataclass(frozen=True)
class Evaluated:
    """One deployment after many simulated runs."""

    cell: Combination
    cost_per_hour: float
    probability: float
    time_s: float

    @property
    def cost_per_million_users(self) -> float:
        """What serving a million users costs while the workers are as busy as in these runs."""
        per_s = self.cell.measures["throughput_users_per_s"]["mean"]
        return self.cost_per_hour * 1e6 / (3600 * per_s) if per_s > 0 else float("nan")


def evaluate(search: Search, workers: int, choice: Choice, price: float, replications: int) -> Evaluated:
    """Replicated runs of one deployment, judged by the target."""
    scenario, aim = search.scenario(workers, choice), search.target
    cell = predict(
        scenario.topology,
        workload=search.workload,
        deployment=scenario.deployment,
        profile=search.profile,
        replications=replications,
        seed=search.seed,
    ).combinations[0]
    runs, means = cell.replications, cell.measures
    if cell.stream and cell.steady and aim.metric != "drain":
        runs, means = cell.stream.replications, cell.steady
    values = [found[aim.measure] for found in runs]
    grows = cell.stable is False  # what a run of this length shows says nothing of a longer one
    return Evaluated(
        cell,
        workers * scenario.deployment.hosts * price,
        0.0 if grows else chance_below(values, aim.bound_s, search.profile.residual),
        means[aim.measure]["mean"],
    )


def frontier(search: Search, most: int, price: float, replications: int) -> pd.DataFrame:
    """A row per deployment that is faster than every cheaper one, cheapest first; columns `COLUMNS`.

    `time_s` is the mean of the target's measure, `probability` that of one run's meeting the target. Numbers of workers
    are tried from one to `most`, each at its best slots and batch size, until more of them bring nothing.
    """
    found: list[tuple[int, Choice]] = []
    best_s, idle = float("inf"), 0
    for workers in sorted({n for n in COUNTS if n < most} | {most}):
        fastest = _fastest(search, workers, best_s)
        if fastest is None:
            idle += 1
            if found and idle == 2:
                break
            continue
        best_s, idle = fastest[0], 0
        found.append((workers, fastest[1]))
    rows: list[dict[str, object]] = []
    reached_s = float("inf")
    for workers, choice in found:
        here = evaluate(search, workers, choice, price, replications)
        if here.time_s < reached_s:
            reached_s = here.time_s
            settings = here.cell.settings
            values = (workers, settings["concurrency"], settings["batch_size"], here.cost_per_hour,
                      here.cost_per_million_users, here.time_s, here.probability)  # fmt: skip
            rows.append(dict(zip(COLUMNS, values, strict=True)))
    return pd.DataFrame(rows, columns=list(COLUMNS))


def _fastest(search: Search, workers: int, best_s: float) -> tuple[float, Choice] | None:
    """The fastest choice that beats `best_s` clearly: first the slots are chosen, then the batch size."""
    chosen: tuple[float, Choice] | None = None
    for slots in search.slots():
        best_s, chosen = _better(search, workers, (slots, None), best_s, chosen)
    slots = chosen[1][0] if chosen else None
    for batch in search.batches()[1:]:
        best_s, chosen = _better(search, workers, (slots, batch), best_s, chosen)
    return chosen


def _better(
    search: Search, workers: int, choice: Choice, best_s: float, chosen: tuple[float, Choice] | None
) -> tuple[float, tuple[float, Choice] | None]:
    if search.load(workers, choice) >= 1:
        return best_s, chosen
    scenario = search.scenario(workers, choice)
    deadline_s = best_s if search.stops and search.target.share == 1 and best_s < float("inf") else None
    outcome = scenario.run(deadline_s=deadline_s)
    if not outcome.drained:
        return best_s, chosen
    took_s = trace.measures(outcome.attempts())[search.target.measure]
    if took_s < best_s * (1 - GAIN):
        return took_s, (took_s, choice)
    return best_s, chosen
