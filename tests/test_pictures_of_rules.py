"""Pictures of who goes when: what they draw is in the attempts, and those of the documentation can be drawn again."""

from __future__ import annotations

import re
import runpy
import sys
from collections.abc import Iterator
from pathlib import Path

import matplotlib.image
import matplotlib.pyplot as plt
import pytest
from matplotlib.axes import Axes
from matplotlib.collections import LineCollection
from matplotlib.colors import to_hex
from matplotlib.patches import Rectangle

from saqkit.errors import UsageError
from saqkit.spec.pictures import GROUP_COLOURS, LEVEL_COLOURS, jobs_over_time
from saqkit.spec.trace import attempts_frame
from sim.pictures import model_beside_run

DOCS = Path(__file__).parent.parent / "docs"

# c comes last, is critical, and goes before b, which fails once.
FRAME = attempts_frame(
    {
        "job": ["a", "c", "b", "b"],
        "priority": [4, 1, 4, 4],
        "tenant": ["x", "y", "x", "x"],
        "attempt": [1, 1, 1, 2],
        "queued_at": [0.0, 0.2, 0.1, 0.1],
        "ready_at": [0.0, 0.2, 0.1, 4.0],
        "taken_at": [0.0, 1.0, 2.0, 4.0],
        "started_at": [0.0, 1.0, 2.0, 4.0],
        "finished_at": [1.0, 2.0, 3.0, 4.5],
        "outcome": ["done", "done", "retry", "done"],
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


def names(ax: Axes) -> list[tuple[float, str]]:
    return [(float(at), label.get_text()) for at, label in zip(ax.get_yticks(), ax.get_yticklabels(), strict=True)]


def test_jobs_are_grouped_by_tenant_in_order_of_arrival_with_a_bar_per_attempt() -> None:
    ax = jobs_over_time(FRAME)
    blue, yellow = (colour.upper() for colour in GROUP_COLOURS[:2])
    assert bars(ax) == [(blue, 0.0, 1.0, 0), (blue, 2.0, 3.0, 1), (blue, 4.0, 4.5, 1), (yellow, 1.0, 2.0, 2)]
    assert names(ax) == [(0.5, "x"), (2.0, "y")]
    assert (ax.get_xlabel(), ax.get_ylabel()) == ("seconds since the first event", "jobs, by tenant")


def test_jobs_are_grouped_by_level_in_its_colour_and_lines_are_waits() -> None:
    ax = jobs_over_time(FRAME, by="priority")
    assert [colour for colour, *_ in bars(ax)] == [LEVEL_COLOURS[4]] * 3 + [LEVEL_COLOURS[1]]
    assert names(ax) == [(0.5, "low"), (2.0, "critical")]
    lines = [part for part in ax.collections if isinstance(part, LineCollection)]
    waits = [[tuple(map(float, point)) for point in s] for part in lines for s in part.get_segments()]
    assert [wait for wait in waits if wait[0] != wait[1]] == [[(0.1, 1.0), (2.0, 1.0)], [(0.2, 2.0), (1.0, 2.0)]]


def test_jobs_that_never_began_have_no_row() -> None:
    frame = FRAME.copy()
    frame.loc[frame["job"] == "c", ["taken_at", "started_at", "finished_at"]] = float("nan")
    assert names(jobs_over_time(frame)) == [(0.5, "x")]
    assert names(jobs_over_time(FRAME[:0])) == []


def test_jobs_can_only_be_grouped_by_tenant_or_level() -> None:
    with pytest.raises(UsageError, match=r'^by="queue": either "tenant" or "priority"$'):
        jobs_over_time(FRAME, by="queue")  # type: ignore[arg-type]


def test_model_and_run_are_drawn_on_one_axis_of_time_that_holds_both() -> None:
    later = FRAME.assign(finished_at=FRAME["finished_at"] + 5)
    axes = model_beside_run({"off": (FRAME, FRAME), "on": (FRAME, later)})
    titles = [[ax.get_title(loc="left") for ax in pair] for pair in axes]
    assert titles == [["off · model", "off · real run"], ["on · model", "on · real run"]]
    assert [bars(ax) == bars(axes[0][0]) for pair in axes for ax in pair] == [True, True, True, False]
    assert [ax.get_xlim()[1] for pair in axes for ax in pair] == [pytest.approx(1.01 * 9.5)] * 4


def test_the_pictures_of_the_documentation_are_drawn_anew_by_their_script(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    page = DOCS.joinpath("priorities_and_limits.md").read_text(encoding="utf-8")
    shown = re.findall(r"^!\[[^\]]+\]\(pictures/(\w+\.png)\)$", page, re.MULTILINE)
    monkeypatch.setattr(sys, "argv", ["priorities_and_limits.py", str(tmp_path)])
    runpy.run_path(str(DOCS / "pictures" / "priorities_and_limits.py"), run_name="__main__")
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(shown)
    assert len(shown) == 4
    for name in shown:
        drawn, stored = (matplotlib.image.imread(folder / name) for folder in (tmp_path, DOCS / "pictures"))
        assert drawn.shape == stored.shape == (451, 902, 4)
        colours = {to_hex(tuple(pixel)).upper() for pixel in stored[::2, ::2, :3].reshape(-1, 3).tolist()}
        expected = {LEVEL_COLOURS[1], LEVEL_COLOURS[4]} if name == "levels.png" else {*GROUP_COLOURS[:2]}
        assert {colour.upper() for colour in expected} <= colours
