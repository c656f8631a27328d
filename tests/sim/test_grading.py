"""What is demanded of predictions, on made-up tables; and where the time of a run goes, on a made-up host."""

from __future__ import annotations

from typing import Any

import numpy as np
import pandas as pd
import pytest
from simulated_run import lab, simulated_run

from saqkit.errors import RunError
from saqkit.spec.trace import attempts_frame
from sim.explaining import time_spent, where_time_goes
from sim.fit.profile import Profile
from sim.grading import DEMANDS, grade, readable, wide
from sim.judging import KINDS, MEASURES

PLAIN = {"measured": 10.0, "spread": 0.01, "same_draw_spread": 0.01, "runs": 3, "calm": True, "busy": 0.3, "load": 0.5,
         "tick_s": 0.2, "error": 0.01, "yardstick_error": 0.02, "same_draw_error": -0.005, "naive_error": -0.4,
         "mmc_error": 0.3}  # fmt: skip


def table(*rows: dict[str, Any]) -> pd.DataFrame:
    return pd.DataFrame([PLAIN | {"kind": "io", "cell": f"{n}", "measure": "makespan_s"} | row
                         for n, row in enumerate(rows)])  # fmt: skip


def test_every_measure_that_is_judged_is_demanded_something_of() -> None:
    every = table(*[
        {"kind": kind, "measure": measure, "busy": busy, "load": busy}
        for kind in KINDS for measure in MEASURES[kind] for busy in (0.5, 0.95)
    ])  # fmt: skip
    asked = np.sum([demand.about(every) for demand in DEMANDS], axis=0)
    left = every[asked == 0]
    assert set(zip(left["kind"], left["measure"], strict=True)) == {("fault", "makespan_s")}
    assert len(grade(every)) == len(DEMANDS)


def test_mean_and_worst_are_held_against_what_is_allowed() -> None:
    low, high = {"error": -0.01, "same_draw_error": 0.001}, {"error": 0.049, "same_draw_error": -0.021}
    found = grade(table(low, high)).loc["loops and cores under 70 % busy: makespan, throughput"]
    assert found["expected mean"] == pytest.approx(2.95)
    assert found["expected worst"] == pytest.approx(4.9)
    assert (found["expected may mean"], found["expected may be"]) == (2.0, 5.0)
    assert found["expected verdict"] == "missed", "the worst is allowed, the mean is not"
    assert found["same_draw mean"] == pytest.approx(1.1)
    assert found["same_draw verdict"] == "missed", "the worst is not allowed"
    assert found["naive worst"] == pytest.approx(40)
    assert grade(table(low)).iloc[0]["expected verdict"] == "kept"


def test_saturated_cells_are_scored_with_the_yardstick() -> None:
    found = grade(table({"kind": "io", "busy": 0.8, "error": 0.2}, {"kind": "core", "busy": 0.99, "error": 0.2}))
    saturated = found.loc["loops or cores saturated, with the yardstick: makespan, throughput"]
    assert saturated["cells"] == 2
    assert saturated["expected worst"] == pytest.approx(2)
    assert found.loc["all bursts: makespan, throughput", "expected worst"] == pytest.approx(20)


def test_the_makespan_of_retries_is_scored_in_ticks_of_its_queue() -> None:
    found = grade(table({"kind": "retries", "error": 0.03, "same_draw_error": -0.01, "tick_s": 0.2}))
    row = found.loc["retries: makespan"]
    assert (row["unit"], row["expected verdict"], row["same_draw verdict"]) == ("ticks", "missed", "kept")
    assert row["expected worst"] == pytest.approx(1.5), "0.3 s"
    assert row["same_draw worst"] == pytest.approx(0.5)


def test_values_that_repeats_do_not_show_are_judged_by_their_spread() -> None:
    rows = table({}, {"spread": 0.3, "error": 0.25}, {"spread": 0.12, "error": 0.2},
                 {"same_draw_spread": 0.11, "same_draw_error": 0.5})  # fmt: skip
    found = grade(rows).loc["all bursts: makespan, throughput"]
    assert (found["expected wide"], found["same_draw wide"]) == (2, 1)
    assert found["expected worst"] == pytest.approx(1)
    assert found["same_draw worst"] == pytest.approx(0.5)
    listed = wide(rows)
    assert list(listed["score"]) == ["expected", "expected", "same_draw"]
    assert list(listed["within"]) == [True, False, False]
    nothing = grade(rows[rows["spread"] > 0.1]).iloc[0]
    assert nothing["expected verdict"] == "-", "nothing is left to hold against the demand"


def test_values_of_disturbed_runs_alone_are_listed_and_not_counted() -> None:
    rows = table({}, {"calm": False, "error": 0.5, "same_draw_error": 0.5})
    found = grade(rows).loc["all bursts: makespan, throughput"]
    assert (found["expected wide"], found["same_draw wide"]) == (1, 1)
    assert found["expected worst"] == pytest.approx(1)
    assert list(wide(rows)["calm"]) == [False, False]


def test_what_was_not_measured_does_not_count() -> None:
    rows = table({"kind": "fault", "measure": "recovery_s", "measured": np.nan, "error": np.nan, "spread": np.nan},
                 {"kind": "fault", "measure": "recovery_s", "error": 0.1})  # fmt: skip
    found = grade(rows).loc["recovery from a kill or an outage"]
    assert found["values"] == 1
    assert found["expected verdict"] == "kept"
    assert found["same_draw verdict"] == "-", "nothing is demanded"
    assert wide(rows).empty


def test_people_read_means_and_worsts_beside_what_is_allowed() -> None:
    shown = readable(grade(table({}, {"kind": "fault", "measure": "recovery_s", "naive_error": np.nan})))
    first, last = shown.iloc[0], shown.loc["recovery from a kill or an outage"]
    assert (first["expected"], first["expected may be"], first["expected is"]) == ("1 / 1", "2 / 5", "kept")
    assert (first["same-draw"], first["same-draw is"]) == ("0.5 / 0.5", "kept")
    assert (last["expected may be"], last["same-draw may be"], last["same-draw is"]) == ("- / 15", "- / -", "-")
    assert last["users × time / slots"] == "- / -"


def test_the_parts_of_an_attempts_time_add_up_to_its_service() -> None:
    rows = [{"users": 10, "ready_at": 1.0, "started_at": 3.0, "finished_at": 8.0, "provider_s": 2.0, "database_s": 0.5,
             "cpu_s": 1.0}, {"users": 0, "ready_at": 0.0, "started_at": 9.0, "finished_at": 99.0}]  # fmt: skip
    found = time_spent(attempts_frame(rows))
    assert found.pop("fan_out") == 90.0
    assert found == {"wait": 2.0, "service": 5.0, "provider": 2.0, "database": 0.5, "loop": 2.5, "cpu": 1.0}
    with pytest.raises(RunError, match="no attempt served"):
        time_spent(attempts_frame(rows[1:]))


def test_a_host_that_is_as_its_profile_says_spends_its_time_as_simulated_and_a_slow_database_shows() -> None:
    profile = Profile.nominal()
    run = simulated_run(profile, lab(), users=300, workers=1, concurrency=1, seed=4)
    same = where_time_goes(run, profile)
    assert same["difference"].drop("cpu").abs().max() < 1e-9
    slow = profile.job_types["batch"].model_copy(update={"open_s": profile.job_types["batch"].open_s.model_copy(
        update={"value": 0.3})})  # fmt: skip
    other = where_time_goes(run, profile.model_copy(update={"job_types": profile.job_types | {"batch": slow}}))
    measured, difference = same["measured"].to_dict(), other["difference"].to_dict()
    assert difference["database"] == pytest.approx(0.3 / measured["service"], rel=0.05)
    assert difference["provider"] + difference["database"] + difference["loop"] == pytest.approx(difference["service"])
