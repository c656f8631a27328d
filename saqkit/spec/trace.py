"""The attempts table: one row per execution of a job, the same for real and simulated runs, and what follows from it.

Times are float64 seconds since the run's first event (negative before it).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import pandas as pd
from numpy.typing import NDArray

from saqkit.errors import RunError
from saqkit.spec.lifecycle import OUTCOMES

ATTEMPTS: dict[str, str] = {
    "run": "str",
    "replication": "int32",
    "event": "str",
    "event_at": "float64",
    "job": "str",
    "job_type": "str",
    "queue": "str",
    "parent": "str",
    "priority": "int8",
    "tenant": "str",
    "attempt": "int16",
    "crashes": "int16",
    "users": "int32",
    "users_done": "int32",
    "users_failed": "int32",
    "queued_at": "float64",
    "ready_at": "float64",
    "taken_at": "float64",
    "started_at": "float64",
    "finished_at": "float64",
    "outcome": "category",
    "worker": "str",
    "host": "str",
    "cpu_s": "float64",
    "provider_s": "float64",
    "database_s": "float64",
    "error": "str",
}
"""Columns of the attempts table and their dtypes."""

STEPS: dict[str, str] = {
    "job": "str",
    "attempt": "int16",
    "user": "int64",
    "step": "str",
    "waited_s": "float64",
    "took_s": "float64",
}
"""Columns of the steps table (`step` is cpu, provider or database; `user` is 0 for a step of the whole job)."""

MEASURES = (
    "makespan_s",
    "throughput_users_per_s",
    "latency_mean_s",
    "latency_p50_s",
    "latency_p95_s",
    "latency_p99_s",
    "wait_p50_s",
    "wait_p95_s",
    "wait_p99_s",
    "attempts",
    "retries",
    "dead",
    "users_done",
    "users_failed",
)
"""The measures of a run, in the order in which they are shown."""


def attempts_frame(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pd.DataFrame:
    """An attempts table from row dicts or from a dict of columns; missing columns get 0, "" or NaN."""
    frame = _typed(rows, {name: dtype for name, dtype in ATTEMPTS.items() if dtype != "category"})
    given = rows.get("outcome") if isinstance(rows, Mapping) else [row.get("outcome") for row in rows]
    if isinstance(given, pd.Categorical) and list(given.categories) == list(OUTCOMES):
        frame["outcome"] = given
        return frame[list(ATTEMPTS)]
    outcomes = list(given) if given is not None else [None] * len(frame)
    if unknown := {outcome for outcome in outcomes if not pd.isna(outcome)}.difference(OUTCOMES):
        raise RunError(f'attempts: there is no outcome "{min(map(str, unknown))}" (known: {", ".join(OUTCOMES)})')
    frame["outcome"] = pd.Categorical(outcomes, categories=list(OUTCOMES))
    return frame[list(ATTEMPTS)]


def steps_frame(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any]) -> pd.DataFrame:
    """A steps table from row dicts or from a dict of columns."""
    return _typed(rows, STEPS)


def _typed(rows: Sequence[Mapping[str, Any]] | Mapping[str, Any], dtypes: Mapping[str, str]) -> pd.DataFrame:
    frame = pd.DataFrame(dict(rows) if isinstance(rows, Mapping) else list(rows))
    for name, dtype in dtypes.items():
        if name not in frame:
            frame[name] = "" if dtype == "str" else np.nan if dtype == "float64" else 0
        frame[name] = frame[name].astype(dtype)  # type: ignore[call-overload]  # the stubs know no dtype by a variable
    return frame[list(dtypes)]


def makespan_s(attempts: pd.DataFrame) -> float:
    """Last finish minus first event, in seconds."""
    return float(attempts["finished_at"].max() - attempts["event_at"].min()) if len(attempts) else 0.0


def weighted_quantiles(values: NDArray[np.float64], weights: NDArray[Any], q: Sequence[float]) -> list[float]:
    """The smallest value at or below which a share q of the weight lies (the inverse of the weighted distribution)."""
    keep = weights > 0
    values, weights = values[keep], weights[keep]
    if not len(values):
        return [float("nan")] * len(q)
    order = np.argsort(values, kind="stable")
    cumulated = np.cumsum(weights[order])
    places = np.searchsorted(cumulated, np.asarray(q) * cumulated[-1] * (1 - 1e-12), side="left")
    return [float(x) for x in values[order][np.minimum(places, len(values) - 1)]]


def measures(attempts: pd.DataFrame | Mapping[str, Any]) -> dict[str, float]:
    """The measures of one run, by their names in `MEASURES`, from its attempts table or columns of such a table.

    wait = started - ready, over attempts; latency of a user = finish of the attempt that served them - creation of
    their event, percentiles over users; throughput = users done / makespan. Counts are whole numbers.
    """
    names = ("event_at", "ready_at", "started_at", "finished_at")
    of_time = {name: np.asarray(attempts[name], float) for name in names}
    users = np.asarray(attempts["users_done"], float)
    served, wait = users > 0, of_time["started_at"] - of_time["ready_at"]
    latency, users = (of_time["finished_at"] - of_time["event_at"])[served], users[served]
    p50, p95, p99 = weighted_quantiles(latency, users, (0.5, 0.95, 0.99))
    w50, w95, w99 = weighted_quantiles(wait[~np.isnan(wait)], np.ones(int((~np.isnan(wait)).sum())), (0.5, 0.95, 0.99))
    done = float(users.sum())
    span = float(of_time["finished_at"].max() - of_time["event_at"].min()) if len(served) else 0.0
    outcome = pd.Categorical(attempts["outcome"], categories=list(OUTCOMES))
    values = {
        "makespan_s": span,
        "throughput_users_per_s": done / span if span > 0 else float("nan"),
        "latency_mean_s": float((latency * users).sum() / done) if done else float("nan"),
        "latency_p50_s": p50,
        "latency_p95_s": p95,
        "latency_p99_s": p99,
        "wait_p50_s": w50,
        "wait_p95_s": w95,
        "wait_p99_s": w99,
        "attempts": len(served),
        "retries": int((outcome == "retry").sum()),
        "dead": int((outcome == "dead").sum()),
        "users_done": int(done),
        "users_failed": int(np.sum(attempts["users_failed"])),
    }
    return {name: values[name] for name in MEASURES}


def check(attempts: pd.DataFrame, source: str = "attempts") -> None:
    """Raise `RunError` unless `attempts` has the columns, and times in order, of an attempts table."""
    if missing := [name for name in ATTEMPTS if name not in attempts.columns]:
        raise RunError(f"{source}: column {missing[0]} is missing (an attempts table has {', '.join(ATTEMPTS)})")
    backwards = attempts["finished_at"] < attempts["taken_at"] - 0.005
    if backwards.any():
        raise RunError(f"{source}: row {int(np.argmax(backwards.to_numpy()))} finishes before it was taken")
