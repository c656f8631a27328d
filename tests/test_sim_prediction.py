"""`sim.predict`, `sim.compare` and their result objects."""

from __future__ import annotations

import json
from typing import Any

import matplotlib.pyplot as plt
import pytest
from hypothesis import given
from hypothesis import strategies as st
from matplotlib.axes import Axes
from simulated_run import lab, simulated_run

import sim
from saqkit.errors import DescriptionError, ProfileError, UsageError
from saqkit.spec import trace
from saqkit.spec.overriding import override
from sim.analysis.statistics import chance_below, enough, intervals

INTERVAL = ("lo", "mean_lo", "mean", "mean_hi", "hi")


def test_lists_give_every_combination_with_its_settings() -> None:
    prediction = sim.predict("school-events", users=[100, 300], workers=[1, 2], batch_size=[50, 100], replications=1)
    settings = [(d["users"], d["workers"], d["batch_size"]) for d in prediction.to_dicts()]
    assert settings == [(u, w, b) for u in (100, 300) for w in (1, 2) for b in (50, 100)]
    assert len(prediction.summary()) == len(prediction) == 8
    assert prediction.summary()[("makespan_s", "mean")].is_monotonic_increasing is False
    assert len(prediction.attempts) == sum(len(prediction.attempts_of(n)) for n in range(8))


def test_the_json_has_every_measure_with_ordered_intervals() -> None:
    topology = lab(providers__email__temporary_share=0.05)
    found = json.loads(json.dumps(sim.predict(topology, users=2_000, workers=2).to_dicts(), allow_nan=False))[0]
    assert list(trace.MEASURES) == [name for name in found if name in trace.MEASURES]
    for name in trace.MEASURES:
        assert set(found[name]) == set(INTERVAL)
        assert [found[name][k] for k in INTERVAL] == sorted(found[name][k] for k in INTERVAL), name
    assert found["bottleneck"] == "slots"
    assert list(found["utilisation"]) == ["slots", "loop", "cores", "broker", "database", "provider", "rate_limit"]
    assert all(0 <= share <= 1 for share in found["utilisation"].values())
    assert 5 <= found["replications"] <= 20


def test_replications_stop_when_the_mean_is_known_to_one_percent() -> None:
    # One batch of heavy-tailed sends varies by far more than 1 %; 200 batches of light ones do not.
    heavy = lab(providers__email__latency__cv=3.0)
    assert sim.predict(heavy, users=100).to_dicts()[0]["replications"] == 20
    prediction = sim.predict(lab(), users=20_000, workers=4)
    found = prediction.combinations[0].measures["makespan_s"]
    assert prediction.to_dicts()[0]["replications"] < 20
    assert found["mean_hi"] - found["mean"] <= 0.01 * found["mean"]


def test_same_draw_is_one_seed_without_noise() -> None:
    first, second = (
        sim.predict(lab(), users=500, seed=3, same_draw=True, replications=n).attempts_of(0) for n in (1, 2)
    )
    assert first.equals(second[second["replication"] == 0])
    assert not second[second["replication"] == 1]["finished_at"].equals(first["finished_at"])


@pytest.mark.parametrize(
    ("fields", "settings", "bottleneck"),
    [
        ({}, {"users": 5_000, "workers": 2}, "slots"),
        ({}, {"users": 500, "workers": 2, "concurrency": 50}, "provider"),
        ({"job_types.notify.per_user.cpu_us": 2_000}, {"users": 3_000, "workers": 1, "concurrency": 50}, "loop"),
        ({"job_types.notify.per_user.cpu_us": 2_000}, {"users": 8_000, "workers": 4, "concurrency": 20}, "cores"),
        ({"job_types.notify.per_user.cpu_us": 2_000}, {"users": 8_000, "workers": 2, "concurrency": 40}, "cores"),
        ({"queues.notifications.rate_limit.limit": 5}, {"users": 8_000, "workers": 2, "concurrency": 40}, "rate_limit"),
        (
            {"providers.email.latency.mean_s": 0.0002, "job_types.announce.fan_out.batch_size": 5},
            {"users": 3_000, "workers": 2, "concurrency": 40},
            "database",
        ),
    ],
)
def test_the_bottleneck_is_the_part_whose_relief_helps_most(
    fields: dict[str, Any], settings: dict[str, Any], bottleneck: str
) -> None:
    prediction = sim.predict(override(lab(), fields), replications=1, same_draw=True, **settings)
    assert prediction.to_dicts()[0]["bottleneck"] == bottleneck


@pytest.mark.parametrize(
    "wrong",
    [
        {},
        {"users": 10, "workload": None, "replications": 0},
        {"users": 0},
        {"users": 10, "workers": 0},
        {"users": 10, "concurrency": {"nowhere": 3}},
        {"users": 10, "batch_size": 0},
    ],
)
def test_what_cannot_be_predicted_is_refused(wrong: dict[str, Any]) -> None:
    with pytest.raises((UsageError, DescriptionError)):
        sim.predict(lab(), **wrong)


def test_an_unknown_topology_is_refused_with_the_nearest_name() -> None:
    with pytest.raises(DescriptionError, match="school-events"):
        sim.predict("school-event", users=10)


def test_a_prediction_shows_itself_the_same_every_time() -> None:
    shown = {repr(sim.predict(lab(), users=[300, 600], replications=5)) for _ in range(2)}
    assert len(shown) == 1
    text = shown.pop()
    assert "users 300, workers 1, concurrency 5, batch_size 100: " in text
    assert "<table" in sim.predict(lab(), users=300, replications=2)._repr_html_()


def test_pictures_are_drawn_on_axes() -> None:
    prediction = sim.predict(lab(), users=[300, 600], workers=[1, 2], replications=2)
    assert isinstance(prediction.plot(), Axes)
    ax = plt.figure().add_subplot()
    assert sim.predict(lab(), users=300, replications=3).plot(ax) is ax
    assert ax.get_xlabel().startswith("seconds")
    plt.close("all")


def test_a_comparison_lays_measured_and_predicted_side_by_side() -> None:
    truth, topology = sim.Profile.nominal(), lab()
    run = simulated_run(truth, topology, 3_000, 2, 5, seed=77)
    comparison = sim.compare(run, truth)
    table = comparison.summary()
    assert list(table.index) == list(trace.MEASURES)
    # The model is the truth here: with the run's own draws nothing is left.
    assert (table["same_draw_error"].abs() < 1e-9).all()
    assert abs(table.loc["makespan_s", "error"]) < 0.1
    found = comparison.to_dict()
    assert found["in_sample"] is False
    assert set(found["makespan_s"]) >= {"measured", "predicted", "lo", "hi", "error", "inside"}
    error = found["makespan_s"]["predicted"] / found["makespan_s"]["measured"] - 1
    assert found["makespan_s"]["error"] == pytest.approx(error)
    json.dumps(found, allow_nan=False)
    upper, lower = comparison.plot()
    assert upper.get_ylabel() == "users done"
    assert lower.get_ylabel() == "jobs waiting"
    plt.close("all")


def test_a_run_that_the_profile_was_fitted_on_is_marked() -> None:
    run = simulated_run(sim.Profile.nominal(), lab(), 300, 1, 5, seed=1)
    comparison = sim.compare(run, sim.calibrate(run), replications=5)
    assert comparison.in_sample
    assert "fitted on this very run" in repr(comparison)
    assert comparison.to_dict()["in_sample"] is True


def test_a_run_of_another_host_is_warned_of() -> None:
    run = simulated_run(sim.Profile.nominal(), lab(), 300, 1, 5, seed=1)
    elsewhere = simulated_run(sim.Profile.nominal(), lab(), 300, 1, 5, seed=2, probe={**run.probe, "host": "elsewhere"})
    assert "elsewhere" in sim.compare(elsewhere, sim.calibrate(run), replications=5).warning


def test_a_profile_that_is_no_file_is_refused() -> None:
    with pytest.raises(ProfileError, match=r"nowhere\.json"):
        sim.predict(lab(), users=10, profile="nowhere.json")


@given(st.lists(st.floats(0, 1e6), min_size=1, max_size=30), st.floats(0, 0.5))
def test_intervals_are_ordered_and_a_run_varies_more_than_a_mean(values: list[float], residual: float) -> None:
    found = intervals(values, residual)
    ordered = [found[k] for k in INTERVAL]
    assert ordered == sorted(ordered)
    assert found["hi"] - found["mean"] >= found["mean_hi"] - found["mean"]


def test_nine_in_ten_further_runs_fall_inside_the_prediction_interval() -> None:
    import numpy as np

    noise = np.random.default_rng(1)
    inside = means = 0
    for _ in range(2_000):
        sample = noise.normal(100, 5, 9)
        found = intervals(list(sample[:8]))
        inside += found["lo"] <= sample[8] <= found["hi"]
        means += found["mean_lo"] <= 100 <= found["mean_hi"]
    assert 0.88 < inside / 2_000 < 0.92
    assert 0.88 < means / 2_000 < 0.92


def test_a_probability_agrees_with_the_interval() -> None:
    values = [9.0, 10.0, 11.0, 10.5, 9.5]
    found = intervals(values)
    assert chance_below(values, found["hi"]) == pytest.approx(0.95)
    assert chance_below(values, found["mean"]) == pytest.approx(0.5)
    assert chance_below([5.0, 5.0], 5.0) == 1.0
    assert not enough(values[:4])
    assert enough([10.0] * 5)
