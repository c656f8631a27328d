"""The second half of calibration: costs are changed until simulations of the runs show what the runs showed.

A regression on the runs' tables (the first half) cannot see that a transaction waited for another one, or that a step
was long because its loop was busy. A simulation with the run's own draws has the same queues, so what it misses in
processor time, steps, service and makespan is the costs' fault, and their prior doubt says how far each may move.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
import pandas as pd
from numpy.typing import NDArray
from scipy.optimize import least_squares

from saqkit.spec import trace
from sim.engine.outcome import Outcome
from sim.fit.observations import Observed, tick_phase_s
from sim.fit.profile import Estimate, Profile
from sim.running.scenario import Scenario

STEP = 0.08  # of the logarithm: large enough to be felt through timers that count in milliseconds
MOST_CALLS = 15
HOST: Mapping[str, float] = {
    "cold_s": 0.7,
    "queue_cpu_s": 0.7,
    "client_cpu_s": 0.3,
    "cpu_scale": 0.05,
    "handing_s": 0.7,
}
BATCH: Mapping[str, float] = {
    "job_cpu_s": 0.7,
    "user_cpu_s": 0.7,
    "open_s": 0.7,
    "open_user_s": 0.7,
    "flush_s": 0.7,
    "flush_user_s": 0.7,
    "page_s": 0.7,
}
FAN_OUT: Mapping[str, float] = {"job_cpu_s": 0.7, "page_cpu_s": 0.7, "batch_cpu_s": 0.7, "page_s": 0.7, "flush_s": 0.7}
"""The costs that may move, and the standard deviation of the logarithm of what is believed of each."""
NOISE: Mapping[str, float] = {
    "loop": 0.03,
    "threads": 0.03,
    "makespan": 0.015,
    "service": 0.03,
    "wait": 0.2,
    "database": 0.3,
}
"""How well each statistic of a run is known, as a share of it."""
SHORTEST_S = 2e-4
"""Added to both sides of a comparison of times, so that differences of microseconds count for nothing."""
IDLE_CPU = 0.008  # of a loop per second, whatever happens

Key = tuple[str, str]
"""(job type, or "" for the host; name of the cost)."""


def matched(profile: Profile, seen: Sequence[Observed]) -> Profile:
    """`profile` with the costs that make simulations of `seen` show what was seen, and their standard errors."""
    doubts = _doubts(profile)
    keys, widths = list(doubts), np.array(list(doubts.values()))
    shown = [_of_run(one) for one in seen]

    def misses(at: NDArray[np.float64]) -> NDArray[np.float64]:
        guess = _moved(profile, dict(zip(keys, at - 1, strict=True)))
        found = [_of_outcome(one, _simulated(one, guess)) for one in seen]
        off = [
            np.log((mine[name] + SHORTEST_S) / (real[name] + SHORTEST_S)) / NOISE[name.partition(" ")[0]]
            for mine, real in zip(found, shown, strict=True)
            for name in real
        ]
        return np.concatenate((off, (at - 1) / widths))

    # The steps are relative: logarithms are moved from 0 to 1.
    best = least_squares(misses, np.ones(len(keys)), diff_step=np.full(len(keys), STEP), max_nfev=MOST_CALLS)
    slope: NDArray[np.float64] = np.asarray(best.jac, float)
    errors = np.sqrt(np.diag(np.linalg.pinv(slope.T @ slope)))
    moves = dict(zip(keys, best.x - 1, strict=True))
    return _moved(profile, moves, dict(zip(keys, errors, strict=True)), sum(len(one.run.attempts) for one in seen))


def _doubts(profile: Profile) -> dict[Key, float]:
    found = {("", name): width for name, width in HOST.items()}
    for kind, costs in profile.job_types.items():
        found |= {(kind, name): width for name, width in (FAN_OUT if costs.fan_out else BATCH).items()}
    return found


def _moved(
    profile: Profile, moves: Mapping[Key, float], errors: Mapping[Key, float] | None = None, samples: int = 0
) -> Profile:
    """The profile with each cost multiplied by e to the power of its move."""

    def of(owner: str, part: object) -> dict[str, Estimate]:
        found = {}
        for (whose, name), move in moves.items():
            if whose == owner:
                value = getattr(part, name).value * float(np.exp(move))
                if errors is None:
                    found[name] = getattr(part, name).model_copy(update={"value": value})
                else:
                    found[name] = Estimate(
                        value=value, error=value * errors[whose, name], samples=samples, source="runs"
                    )
        return found

    types = {name: kind.model_copy(update=of(name, kind)) for name, kind in profile.job_types.items()}
    return profile.model_copy(update={"host": profile.host.model_copy(update=of("", profile.host)), "job_types": types})


def _simulated(one: Observed, profile: Profile) -> Outcome:
    """The run, with its own draws, at the speed that its own probe saw."""
    run, paced = one.run, profile.at(profile.speed_of(one.run))
    return Scenario(run.topology, run.deployment, run.workload, paced, run.seed, True, tick_phase_s(run)).run()


def _of_run(one: Observed) -> dict[str, float]:
    found = _of_attempts(one.run.attempts)
    loops = [float(worker["loop_cpu_s"]) for worker in one.run.workers if worker.get("loop_cpu_s") is not None]
    if loops and len(loops) == len(one.run.workers):
        up_s = sum(worker["stopped_at"] - worker["ready_at"] for worker in one.run.workers)
        found["loop"] = max(0.0, sum(loops) - IDLE_CPU * up_s)
        found["threads"] = sum(float(worker["cpu_s"]) for worker in one.run.workers) - sum(loops)
    return found


def _of_outcome(one: Observed, outcome: Outcome) -> dict[str, float]:
    run = one.run
    loops = len(run.deployment.processes(run.topology)) * run.deployment.hosts
    loop_s = outcome.utilisation["loop"] * loops * outcome.ended_at_s
    return _of_attempts(outcome.attempts()) | {"loop": loop_s, "threads": outcome.threads_s}


def _of_attempts(attempts: pd.DataFrame) -> dict[str, float]:
    found = {"makespan": trace.makespan_s(attempts)}
    for name, rows in attempts[attempts["outcome"].isin(["done", "retry"])].groupby("job_type", sort=False):
        found[f"service {name}"] = float((rows["finished_at"] - rows["started_at"]).mean())
        found[f"wait {name}"] = float((rows["started_at"] - rows["ready_at"]).mean())
        found[f"database {name}"] = float(rows["database_s"].mean())
    return found
