"""Pictures of predictions: what they draw is what was predicted, measured, or given to them."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import numpy as np
import pandas as pd
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import PathCollection
from matplotlib.colors import to_hex
from simulated_run import lab, simulated_run

import sim
from saqkit.errors import UsageError
from saqkit.spec.pictures import BLUE, LEVEL_COLOURS, ORANGE
from saqkit.spec.workload import Recorded, Workload
from sim import pictures
from sim.running.combination import Combination

MIXED = [
    {"job_type": "notify", "share": 0.5, "priority": "critical"},
    {"job_type": "notify", "share": 0.5, "priority": "low"},
]


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


@pytest.fixture(scope="module")
def cell() -> Combination:
    return sim.predict(lab(), users=600, workers=2, concurrency=2, replications=4).combinations[0]


def texts(ax: Axes) -> list[str]:
    return [text.get_text() for text in ax.texts]


def legend(ax: Axes) -> list[str]:
    found = ax.get_legend()
    return [] if found is None else [text.get_text() for text in found.get_texts()]


def test_the_drain_ends_with_all_users_done_and_the_target_is_a_line(cell: Combination) -> None:
    ax = pictures.drain_to_target(cell, 60.0, "drain<=60s")
    curve, target = ax.lines
    assert np.asarray(curve.get_ydata())[-1] == 600
    assert list(target.get_xdata()) == [60.0, 60.0]
    assert ax.get_xlim()[1] >= 60
    assert "target drain<=60s" in legend(ax)


def test_the_latency_distribution_passes_through_the_predicted_percentiles(cell: Combination) -> None:
    measured = simulated_run(sim.Profile.nominal(), lab(), 600, 2, 2, seed=9)
    ax = pictures.latency_distribution(cell, measured, target_s=50.0)
    predicted, marks, real, _, target = ax.lines
    assert (predicted.get_color(), real.get_color()) == (BLUE, ORANGE)
    for name, row, line in (("mean", cell.measures, predicted), ("run", None, real)):
        for share in (50, 95):
            key = f"latency_p{share}_s"
            expected = row[key][name] if row else measured.measures()[key]
            at = np.interp(share, np.asarray(line.get_ydata(), float), np.asarray(line.get_xdata(), float))
            assert at == pytest.approx(expected, rel=0.02)
    assert list(marks.get_ydata()) == [50.0, 95.0, 99.0]
    assert list(target.get_xdata()) == [50.0, 50.0]
    assert ax.get_xlim()[1] > 50
    assert [label.split(":")[0] for label in legend(ax)] == [
        "predicted, 90 % of runs",
        "predicted, mean",
        "measured",
        "target",
    ]
    assert "seconds" in ax.get_xlabel()


def test_the_queues_depth_has_a_line_per_level_that_occurs_and_names_its_peak() -> None:
    topology = lab(entry=MIXED, queues__notifications__concurrency=1)
    at_s = tuple(0.01 * n for n in range(60))
    prediction = sim.predict(topology, workload=Workload(arrivals=Recorded(at_s=at_s)), replications=3)
    attempts = prediction.attempts_of(0).query("replication == 0")
    ax = pictures.depth_by_priority(attempts)
    critical, low = ax.lines
    assert [line.get_color() for line in ax.lines] == [LEVEL_COLOURS[1], LEVEL_COLOURS[4]]
    last = attempts.query("priority == 4")["taken_at"].max()
    assert np.asarray(low.get_xdata())[-1] == last
    assert np.asarray(low.get_ydata())[-1] == np.asarray(critical.get_ydata())[-1] == 0
    highest = int(np.asarray(low.get_ydata()).max())
    assert f"low: peak of a run {highest}" in texts(ax)
    banded = pictures.depth_by_priority(prediction.combinations[0])
    assert len(banded.lines) == len(banded.collections) == 2
    assert banded.get_ylabel() == "jobs waiting"


def test_utilisation_has_a_bar_per_part_and_marks_the_bottleneck(cell: Combination) -> None:
    ax = pictures.utilisation(cell)
    parts = [label.get_text().replace(" ", "_") for label in ax.get_yticklabels()]
    bars = ax.containers[0].patches  # type: ignore[union-attr]
    assert {part: bar.get_width() for part, bar in zip(parts, bars, strict=True)} == pytest.approx(
        {part: 100 * share for part, share in cell.utilisation.items()}
    )
    marked = [part for part, bar in zip(parts, bars, strict=True) if to_hex(bar.get_facecolor()).upper() == ORANGE]
    assert marked == [cell.bottlenecks[0]]
    assert [text for text in texts(ax) if text.endswith("bottleneck")]


@pytest.fixture(scope="module")
def sweep() -> sim.Prediction:
    return sim.predict(lab(), users=400, workers=[1, 2], concurrency=[1, 2, 4], replications=1)


def test_the_capacity_map_has_a_cell_per_deployment_and_the_targets_contour(sweep: sim.Prediction) -> None:
    ax = pictures.capacity_map(sweep, "drain<=6s")
    shown = np.asarray(ax.collections[0].get_array(), float).reshape(2, 3)
    drain = {(c.settings["workers"], c.settings["concurrency"]): c.measures["makespan_s"]["mean"] for c in sweep}
    assert shown == pytest.approx(np.array([[drain[w, s] for s in (1, 2, 4)] for w in (1, 2)]))
    assert [label.get_text() for label in ax.get_xticklabels()] == ["1", "2", "4"]
    met = shown <= 6
    assert met.any()
    assert not met.all()
    edges = sum(met[:, 1:] != met[:, :-1]).sum() + (met[1:] != met[:-1]).sum()
    assert len(ax.lines) == edges
    for line in ax.lines:  # each piece has a cell that meets the target on one side, and one that does not on the other
        x, y = (np.asarray(data, float) for data in line.get_data())
        across = (0, 0.5) if x[0] == x[1] else (0.5, 0)
        sides = [met[round(y.mean() - sign * across[0]), round(x.mean() - sign * across[1])] for sign in (-1, 1)]
        assert sorted(sides) == [False, True]
    assert ax.get_title(loc="left").endswith("line: drain ≤ 6 s")


@pytest.mark.parametrize(("target", "said"), [("drain<=1h", "all meet"), ("p95<=1ms", "none meets")])
def test_a_map_without_a_contour_says_on_which_side_all_are(sweep: sim.Prediction, target: str, said: str) -> None:
    ax = pictures.capacity_map(sweep, target)
    assert not ax.lines
    assert said in ax.get_title(loc="left")


def test_a_map_of_more_than_workers_and_slots_is_refused(sweep: sim.Prediction) -> None:
    more = sim.predict(lab(), users=[50, 60], workers=[1, 2], replications=1)
    with pytest.raises(UsageError, match="users differ too"):
        pictures.capacity_map(more)
    twice = sim.Prediction([*sweep.combinations, sweep.combinations[0]])
    with pytest.raises(UsageError, match="a capacity map has workers and slots along its edges"):
        pictures.capacity_map(twice)


FRONTIER = pd.DataFrame(
    [(1, 20, 100, 0.5, 9.0, 90.0, 0.0), (2, 20, 50, 1.0, 9.5, 40.0, 0.2), (4, 50, 50, 2.0, 9.9, 10.0, 1.0)],
    columns=["workers", "concurrency", "batch_size", "cost_per_hour", "cost_per_million_users", "time_s",
             "probability"],
)  # fmt: skip


def test_the_frontier_has_a_labelled_point_per_deployment_and_marks_the_plan() -> None:
    ax = pictures.cost_frontier(FRONTIER, 60.0, "drain in seconds", workers=2)
    points, chosen = (np.asarray(c.get_offsets()) for c in ax.collections if isinstance(c, PathCollection))
    assert points.tolist() == [[0.5, 90.0], [1.0, 40.0], [2.0, 10.0]]
    assert chosen.tolist() == [[1.0, 40.0]]
    assert texts(ax) == ["1 × 20, batch 100", "2 × 20, batch 50", "4 × 50, batch 50", "target 60"]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("cost per hour", "drain in seconds")


def test_a_frontier_without_prices_counts_workers() -> None:
    ax = pictures.cost_frontier(FRONTIER.assign(cost_per_hour=0.0))
    assert np.asarray(ax.collections[0].get_offsets())[:, 0].tolist() == [1, 2, 4]
    assert ax.get_xlabel() == "worker processes"


ERRORS = pd.DataFrame({"class": ["slow", "slow", "fast", "fast"], "error": [0.01, -0.03, 0.002, float("nan")]})


def test_errors_stand_in_percent_by_class_with_mean_and_worst() -> None:
    ax = pictures.error_by_class(ERRORS)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["fast", "slow"]
    dots = [np.asarray(c.get_offsets())[:, 0].tolist() for c in ax.collections if isinstance(c, PathCollection)]
    assert dots == [pytest.approx([1.0, -3.0]), pytest.approx([0.2])]
    assert texts(ax) == ["mean 2.0 %, worst 3.0 %", "mean 0.2 %, worst 0.2 %"]
    assert ax.get_xlabel() == "error of the prediction, % of the measured value"


@pytest.mark.parametrize(
    ("table", "message"),
    [
        (ERRORS.rename(columns={"error": "errors"}), 'no column "error"'),
        (ERRORS[:0], "no error in it"),
    ],
)
def test_a_table_without_errors_is_refused(table: pd.DataFrame, message: str) -> None:
    with pytest.raises(UsageError, match=message):
        pictures.error_by_class(table)


def test_every_picture_is_drawn_on_the_axes_that_it_is_given(cell: Combination, sweep: sim.Prediction) -> None:
    drawn = [
        lambda ax: pictures.drain_band(cell, ax),
        lambda ax: pictures.latency_distribution(cell, ax=ax),
        lambda ax: pictures.depth_by_priority(cell, ax),
        lambda ax: pictures.utilisation(cell, ax),
        lambda ax: pictures.capacity_map(sweep, ax=ax),
        lambda ax: pictures.cost_frontier(FRONTIER, ax=ax),
        lambda ax: pictures.error_by_class(ERRORS, ax),
    ]
    for draw in drawn:
        ax = plt.figure().add_subplot()
        assert draw(ax) is ax


def test_nothing_written_in_a_picture_of_six_by_four_inches_hides_something_else(
    cell: Combination, sweep: sim.Prediction
) -> None:
    many = pd.DataFrame({"class": [f"class {n}" for n in range(9)] * 4, "error": np.linspace(-0.2, 0.2, 36)})
    for ax in (
        pictures.utilisation(cell),
        pictures.capacity_map(sweep, "drain<=6s"),
        pictures.cost_frontier(FRONTIER, 60.0, workers=2),
        pictures.error_by_class(many),
    ):
        figure = ax.get_figure()
        assert figure is not None
        assert figure.get_size_inches().tolist() == [6, 4]  # type: ignore[union-attr]
        figure.canvas.draw()
        boxes = [text.get_window_extent() for text in ax.texts]
        hidden = [(a, b) for n, a in enumerate(boxes) for b in boxes[:n] if a.overlaps(b)]
        assert hidden == []
        assert all(box.x0 >= 0 and box.x1 <= figure.bbox.x1 + 1 for box in boxes)
