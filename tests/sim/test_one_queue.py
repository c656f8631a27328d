"""A team that knows only how long its jobs take: percentiles in, waits out."""

from __future__ import annotations

import re
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
import pytest

import saqkit
import sim
from saqkit.errors import DescriptionError
from saqkit.spec.backoff import Retry
from saqkit.spec.distributions import Constant, Exponential, Percentiles
from saqkit.spec.draws import Stream, uniforms
from saqkit.spec.topology import RateLimit, Topology
from saqkit.spec.workload import Profile, Workload

TASKS = Percentiles(p50_s=0.91, p75_s=5.1, p90_s=17.9, p95_s=22.6, p99_s=51, max_s=716)
HOURS = (2.06,) * 3 + (11.0,) + (2.06,) * 5 + (6.0,) * 3 + (22.0, 10.0, 6.0) + (2.06,) * 9


def attempts(topology: Topology, **how: Any) -> pd.DataFrame:
    return sim.predict(topology, **{"replications": 1, "same_draw": True, **how}).attempts


def waits(rows: pd.DataFrame) -> pd.Series[float]:
    return rows["started_at"] - rows["ready_at"]


def test_a_day_of_tasks_takes_the_times_of_their_percentiles_and_waits_where_the_day_is_full() -> None:
    day = Workload(arrivals=Profile(users_per_day=3_500, hourly=HOURS))
    rows = attempts(saqkit.one_queue(TASKS), workload=day, workers=3, concurrency=1, seed=1)
    assert abs(len(rows) - 3_500) < 4 * 3_500**0.5
    assert set(rows["outcome"]) == {"done"}
    took = (rows["finished_at"] - rows["started_at"]).to_numpy()
    drawn = TASKS.quantiles(uniforms(1, Stream.LATENCY, rows["event"].astype(int).to_numpy(), 1, 1))
    assert np.abs(took - drawn).max() < 0.02  # the queue's own costs are some milliseconds
    # In the fullest hour three workers are 40 % busy, else nearly idle.
    hour = ((rows["ready_at"] + next(iter(day.arrivals.times(1)))[0]) // 3600).astype(int)
    by_hour = waits(rows).groupby(hour).mean()
    assert by_hour.idxmax() == 12
    assert by_hour[12] > 10 * by_hour.drop(12).mean()
    two = waits(attempts(saqkit.one_queue(TASKS), workload=day, workers=2, concurrency=1, seed=1))
    four = waits(attempts(saqkit.one_queue(TASKS), workload=day, workers=4, concurrency=1, seed=1))
    assert two.mean() > waits(rows).mean() > four.mean()


def test_the_longest_job_is_not_cut_off() -> None:
    rows = attempts(saqkit.one_queue(Constant(mean_s=86_400.0)), users=2, concurrency=1)
    assert list(rows["outcome"]) == ["done", "done"]
    assert rows["finished_at"].max() == pytest.approx(2 * 86_400, rel=1e-4)
    cut = attempts(saqkit.one_queue(Constant(mean_s=50.0), timeout_s=10), users=2, concurrency=1)
    assert list(cut["outcome"]) == ["dead", "dead"]


def test_failures_are_repeated_as_often_as_is_said_and_limits_hold() -> None:
    once = attempts(saqkit.one_queue(Exponential(mean_s=0.1), failing=0.3), users=1_000, concurrency=20)
    assert dict(once["outcome"].value_counts())["dead"] == pytest.approx(300, abs=60)
    retry = Retry(max_attempts=3, backoff="fixed", delay_s=1.0)
    thrice = attempts(saqkit.one_queue(Exponential(mean_s=0.1), failing=0.3, retry=retry), users=1_000, concurrency=20)
    assert len(thrice) == pytest.approx(1_000 * (1 + 0.3 + 0.09), abs=80)
    limited = saqkit.one_queue(Constant(mean_s=0.01), name="calls", rate_limit=RateLimit(limit=10, period_s=1.0))
    rows = attempts(limited, users=50, concurrency=10)
    assert rows["finished_at"].max() > 4
    assert set(rows["queue"]) == {"calls"}


def test_what_is_wrong_is_said() -> None:
    with pytest.raises(DescriptionError, match="temporary_share: should be less than or equal to 1"):
        saqkit.one_queue(TASKS, failing=2)
    with pytest.raises(DescriptionError, match="is no name"):
        saqkit.one_queue(TASKS, name="my jobs")


def test_the_page_about_it_says_what_is_so() -> None:
    page = (Path(__file__).parent.parent.parent / "docs" / "known_times.md").read_text(encoding="utf-8")
    code = re.search(r"```python\n(.*?)```", page, re.DOTALL)
    assert code
    fewer = code[1].replace("3_500", "350").replace(").summary()", ", replications=1).summary()")
    names: dict[str, Any] = {}
    exec(fewer.replace("sim.predict", "found = sim.predict"), names)
    assert len(names["found"]) == 3
    assert len(names["hours"]) == 24
    assert sum(names["hours"]) == pytest.approx(22 + 11 + 10 + 4 * 6 + 35)
    assert names["times"] == TASKS
    assert f"({TASKS.mean_s:.2f} s here)" in page
    with pytest.raises(DescriptionError) as caught:
        Percentiles(**{**TASKS.to_dict(), "mean_s": 1})
    least, most = re.findall(r"([\d.]+) s", str(caught.value))
    assert f"{float(least):.1f} s to {float(most):.1f} s here" in page
