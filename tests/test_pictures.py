"""The drain curve and the step curves that it is made of."""

from __future__ import annotations

import matplotlib.pyplot as plt
import numpy as np

from saqkit.spec.pictures import at_times, drain_curve, jobs_waiting, users_done
from saqkit.spec.trace import attempts_frame

FRAME = attempts_frame(
    {
        "event_at": [0.0, 0.0, 0.0],
        "users_done": [100, 0, 50],
        "queued_at": [1.0, 1.0, 2.0],
        "ready_at": [1.0, 1.0, 2.0],
        "taken_at": [1.0, 3.0, 4.0],
        "started_at": [1.0, 3.0, 4.0],
        "finished_at": [5.0, 6.0, 7.0],
        "outcome": ["done", "retry", "done"],
    }
)


def test_users_done_steps_up_as_attempts_end() -> None:
    times, users = users_done(FRAME)
    assert times.tolist() == [0.0, 5.0, 7.0]
    assert users.tolist() == [0.0, 100.0, 150.0]


def test_jobs_waiting_are_those_that_could_be_taken_and_were_not() -> None:
    curve = jobs_waiting(FRAME)
    assert at_times(curve, np.array([0.5, 1.5, 2.5, 3.5, 9.0])).tolist() == [0.0, 1.0, 2.0, 1.0, 0.0]


def test_a_drain_curve_is_drawn_on_the_axes_it_is_given() -> None:
    ax = plt.figure().add_subplot()
    assert drain_curve(FRAME, ax=ax, label="mine") is ax
    assert ax.get_xlabel() == "seconds since the first event"
    legend = ax.get_legend()
    assert legend is not None
    assert [text.get_text() for text in legend.get_texts()] == ["mine: users done", "mine: jobs waiting"]
    assert drain_curve(FRAME).get_ylabel() == "users done"
    assert drain_curve(FRAME[:0]).get_ylabel() == "users done"
    plt.close("all")
