"""The attempts table: its dtypes, and its measures against a naive computation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pandas as pd
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from saqkit.errors import RunError
from saqkit.spec.lifecycle import OUTCOMES
from saqkit.spec.trace import (
    ATTEMPTS,
    MEASURES,
    STEPS,
    attempts_frame,
    check,
    measures,
    steps_frame,
    weighted_quantiles,
)

TIME = st.floats(0, 1e4)


@st.composite
def rows(draw: st.DrawFn) -> list[dict[str, Any]]:
    """Attempts whose times follow each other."""
    made = []
    for n in range(draw(st.integers(1, 25))):
        event, *gaps = draw(st.lists(TIME, min_size=6, max_size=6))
        queued, ready, taken, started, finished = event + np.cumsum(gaps)
        users = draw(st.integers(0, 50))
        done = draw(st.integers(0, users))
        made.append(
            {
                "run": "r",
                "event": str(n),
                "event_at": event,
                "job": f"job:{n}",
                "attempt": 1,
                "users": users,
                "users_done": done,
                "users_failed": draw(st.integers(0, users - done)),
                "queued_at": queued,
                "ready_at": ready,
                "taken_at": taken,
                "started_at": started,
                "finished_at": finished,
                "outcome": draw(st.sampled_from(OUTCOMES)),
            }
        )
    return made


def inverse(values: list[float], q: float) -> float:
    """The smallest value that a share q of the values does not exceed, by counting."""
    return sorted(values)[max(math.ceil(q * len(values) - 1e-9) - 1, 0)]


@settings(max_examples=60)
@given(rows())
def test_measures_are_those_of_a_naive_computation(made: list[dict[str, Any]]) -> None:
    got = measures(attempts_frame(made))
    assert tuple(got) == MEASURES
    latencies = [row["finished_at"] - row["event_at"] for row in made for _ in range(row["users_done"])]
    waits = [row["started_at"] - row["ready_at"] for row in made]
    span = max(row["finished_at"] for row in made) - min(row["event_at"] for row in made)
    assert got["makespan_s"] == pytest.approx(span)
    assert got["users_done"] == len(latencies)
    assert got["users_failed"] == sum(row["users_failed"] for row in made)
    assert got["attempts"] == len(made)
    assert got["retries"] == sum(row["outcome"] == "retry" for row in made)
    assert got["dead"] == sum(row["outcome"] == "dead" for row in made)
    for name, q in (("p50", 0.5), ("p95", 0.95), ("p99", 0.99)):
        assert got[f"wait_{name}_s"] == pytest.approx(inverse(waits, q))
        if latencies:
            assert got[f"latency_{name}_s"] == pytest.approx(inverse(latencies, q))
        else:
            assert math.isnan(got[f"latency_{name}_s"])
    if latencies:
        assert got["latency_mean_s"] == pytest.approx(sum(latencies) / len(latencies))
        if span:
            assert got["throughput_users_per_s"] == pytest.approx(len(latencies) / span)


@given(st.lists(st.tuples(st.integers(-50, 50), st.integers(0, 20)), min_size=1, max_size=30), st.floats(0, 1))
def test_weighted_quantiles_are_those_of_the_repeated_values(pairs: list[tuple[int, int]], q: float) -> None:
    repeated = [float(value) for value, weight in pairs for _ in range(weight)]
    values, weights = (np.array(column, float) for column in zip(*pairs, strict=True))
    (got,) = weighted_quantiles(values, weights, [q])
    assert math.isnan(got) if not repeated else got == inverse(repeated, q)


def test_an_attempt_that_served_nobody_does_not_spoil_the_latency() -> None:
    made = [
        {"event_at": 0.0, "finished_at": 2.0, "users_done": 3, "outcome": "done"},
        {"event_at": math.nan, "finished_at": 1.0, "users_done": 0, "outcome": "done"},
    ]
    assert measures(attempts_frame(made))["latency_mean_s"] == 2.0


def test_tables_have_their_dtypes_from_rows_from_columns_and_from_nothing() -> None:
    row = {"run": "r", "event_at": 1, "attempt": 1, "outcome": "done", "users": 3}
    for given_ in ([row], {name: [value] for name, value in row.items()}, []):
        frame = attempts_frame(given_)  # type: ignore[arg-type]
        assert {name: str(dtype) for name, dtype in frame.dtypes.items()} == ATTEMPTS
        assert list(frame["outcome"].cat.categories) == list(OUTCOMES)
    step = {"job": "j", "attempt": 1, "user": 5, "step": "cpu", "waited_s": 0.0, "took_s": 0.1}
    for steps in (steps_frame([step]), steps_frame([])):
        assert {name: str(dtype) for name, dtype in steps.dtypes.items()} == STEPS
    assert measures(attempts_frame([]))["attempts"] == 0


def test_columns_without_outcomes_are_attempts_that_have_not_ended() -> None:
    assert attempts_frame({"run": ["r", "r"]})["outcome"].isna().all()


def test_an_outcome_that_does_not_exist_is_refused() -> None:
    with pytest.raises(RunError, match='there is no outcome "failed"'):
        attempts_frame([{"outcome": "failed"}])


def test_a_table_that_is_no_attempts_table_is_refused() -> None:
    frame = attempts_frame([{"taken_at": 2.0, "finished_at": 1.0, "outcome": "done"}])
    with pytest.raises(RunError, match="t: row 0 finishes before it was taken"):
        check(frame, "t")
    with pytest.raises(RunError, match="t: column users is missing"):
        check(pd.DataFrame(frame.drop(columns="users")), "t")
