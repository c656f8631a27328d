"""The runs of `data/runs/rules`: real queues went by the rules as the model does, letter by letter."""

from __future__ import annotations

import runpy
from pathlib import Path
from typing import Any

import pandas as pd
import pytest
from soundness import most_at_once, no_window_exceeds

import saqkit
import sim

DATA = Path(__file__).parent.parent / "data"
RUNS = DATA / "runs" / "rules"
SCRIPT: dict[str, Any] = runpy.run_path(str(DATA / "rules.py"))


def recorded(name: str) -> saqkit.Run:
    return saqkit.Run.load(RUNS / f"{name}.parquet")


def modelled(run: saqkit.Run) -> pd.DataFrame:
    return sim.predict(
        run.topology, workload=run.workload, deployment=run.deployment, seed=run.seed, same_draw=True,
        profile=DATA / "profile-quickstart.json", replications=1,
    ).attempts  # fmt: skip


def completed(attempts: pd.DataFrame) -> list[str]:
    """Jobs in the order in which they ended, by the names that both engines know."""
    return [str(job).replace(":", "-") for job in attempts.sort_values("finished_at")["job"]]


def test_every_rule_is_recorded_and_nothing_else() -> None:
    assert {path.stem for path in RUNS.iterdir()} == set(SCRIPT["RULES"])


@pytest.mark.parametrize("name", SCRIPT["RULES"])
def test_a_run_is_the_described_one_and_ended_in_the_order_of_the_model(name: str) -> None:
    run = recorded(name)
    assert (run.topology, run.workload) == SCRIPT["described"](name)
    assert run.attempts["outcome"].tolist() == ["done"] * 18
    model = modelled(run)
    assert completed(model) == completed(run.attempts)
    ends = [table.sort_values("finished_at")["finished_at"].to_numpy() for table in (model, run.attempts)]
    assert ends[0] == pytest.approx(ends[1], abs=0.1)


@pytest.mark.parametrize(
    ("name", "without"),
    [("weighted", "strict"), *((name, "first-in-first-out") for name in ("turns", "tenant-limit", "running-limit"))],
)
def test_each_rule_makes_a_difference(name: str, without: str) -> None:
    assert completed(recorded(name).attempts) != completed(recorded(without).attempts)


def test_no_limit_is_exceeded_and_without_one_there_is_more() -> None:
    free, rate, one = (recorded(name) for name in ("first-in-first-out", "tenant-limit", "running-limit"))
    limit = rate.topology.queues["post"].tenant_rate_limit
    assert limit is not None
    for _, part in rate.attempts.groupby("tenant"):
        no_window_exceeds(part, limit)
    big = free.attempts[free.attempts["tenant"] == "big"]
    with pytest.raises(AssertionError):
        no_window_exceeds(big, limit)
    assert [most_at_once(part) for _, part in one.attempts.groupby("tenant")] == [1, 1]
    assert most_at_once(one.attempts) == 2 <= most_at_once(big)


def test_the_small_tenant_comes_later_and_is_done_before_the_big_one_where_it_is_protected() -> None:
    last = {
        name: recorded(name).attempts.groupby("tenant")["finished_at"].max()
        for name in ("first-in-first-out", "turns", "tenant-limit", "running-limit")
    }
    assert last["first-in-first-out"]["small"] > last["first-in-first-out"]["big"]
    assert [name for name, ends in last.items() if ends["small"] > 0.8 * ends["big"]] == ["first-in-first-out"]
