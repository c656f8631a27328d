"""Pictures of single jobs: their timeline, who waits by priority, and what a rate limit lets through."""

from __future__ import annotations

from collections.abc import Iterator

import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from saqkit.spec.pictures import LEVEL_COLOURS, OUTCOME_COLOURS, taken_per_period, timeline, waiting_by_priority
from saqkit.spec.trace import attempts_frame

# b waits for the slot that a holds, fails, is delayed to second 4, and dies; c is critical and goes before b.
FRAME = attempts_frame(
    {
        "job": ["a", "c", "b", "b"],
        "priority": [4, 1, 4, 4],
        "attempt": [1, 1, 1, 2],
        "queued_at": [0.0, 0.2, 0.1, 0.1],
        "ready_at": [0.0, 0.2, 0.1, 4.0],
        "taken_at": [0.0, 1.0, 2.0, 4.0],
        "started_at": [0.0, 1.0, 2.0, 4.0],
        "finished_at": [1.0, 2.0, 3.0, 4.5],
        "outcome": ["done", "done", "retry", "dead"],
    }
)


@pytest.fixture(autouse=True)
def closed_figures() -> Iterator[None]:
    yield
    plt.close("all")


def bars(ax: Axes) -> list[tuple[str, float, float, int]]:
    """(colour, from, to, row) of each bar."""
    found = [patch for patch in ax.patches if isinstance(patch, Rectangle)]
    return [
        (to_hex(b.get_facecolor()).upper(), b.get_x(), b.get_x() + b.get_width(), round(b.get_y() + b.get_height() / 2))
        for b in found
    ]


def test_a_timeline_has_a_row_per_job_and_a_bar_per_attempt_in_the_colour_of_its_outcome() -> None:
    ax = timeline(FRAME)
    assert [label.get_text() for label in ax.get_yticklabels()] == ["a", "b", "c"]
    assert sorted(bars(ax), key=lambda bar: bar[1]) == [
        (OUTCOME_COLOURS["done"], 0.0, 1.0, 0),
        (OUTCOME_COLOURS["done"], 1.0, 2.0, 2),
        (OUTCOME_COLOURS["retry"], 2.0, 3.0, 1),
        (OUTCOME_COLOURS["dead"], 4.0, 4.5, 1),
    ]


def test_a_timeline_tells_waiting_from_being_delayed() -> None:
    ax = timeline(FRAME)
    lines = {
        str(part.get_label()): [[tuple(map(float, p)) for p in s] for s in part.get_segments()]
        for part in ax.collections
    }
    assert sorted(lines["waiting"]) == [[(0.1, 1.0), (2.0, 1.0)], [(0.2, 2.0), (1.0, 2.0)]]
    assert lines["delayed"] == [[(3.0, 1.0), (4.0, 1.0)]]


def test_who_waits_is_drawn_by_priority_and_only_for_levels_that_occur() -> None:
    ax = waiting_by_priority(FRAME)
    assert [line.get_label() for line in ax.lines] == ["critical", "low"]
    assert [line.get_color() for line in ax.lines] == [LEVEL_COLOURS[1], LEVEL_COLOURS[4]]
    assert max(ax.lines[0].get_ydata()) == 1


def test_jobs_taken_are_counted_per_period_and_the_limit_is_a_line() -> None:
    ax = taken_per_period(FRAME, period_s=2.0, limit=3)
    assert [(patch.get_x(), patch.get_height()) for patch in ax.patches if isinstance(patch, Rectangle)] == [
        (0.0, 2.0),
        (2.0, 1.0),
        (4.0, 1.0),
    ]
    assert list(ax.lines[0].get_ydata()) == [3, 3]
