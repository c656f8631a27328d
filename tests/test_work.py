"""The fixed work: so many turns, whatever they take."""

from __future__ import annotations

import sys
import time
from types import FrameType
from typing import Any

import pytest

from saqkit.app.work import burn
from saqkit.spec.probing import TURNS_PER_US


def turns(nominal_us: float) -> int:
    """How often the body of the loop runs, counted by tracing its lines."""
    lines: dict[int, int] = {}

    def trace(frame: FrameType, event: str, _: Any) -> Any:
        if frame.f_code is not burn.__code__:
            return None
        if event == "line":
            lines[frame.f_lineno] = lines.get(frame.f_lineno, 0) + 1
        return trace

    before = sys.gettrace()
    sys.settrace(trace)
    try:
        burn(nominal_us)
    finally:
        sys.settrace(before)
    return lines.get(max(lines), 0) if len(lines) > 2 else 0


@pytest.mark.parametrize("nominal_us", [0.0, 0.001, 0.5, 1.0, 2.5, 100.0])
def test_the_work_is_a_fixed_number_of_turns(nominal_us: float) -> None:
    assert turns(nominal_us) == round(nominal_us * TURNS_PER_US)


def test_no_work_returns_at_once() -> None:
    start = time.perf_counter()
    for _ in range(1_000):
        burn(0)
    assert time.perf_counter() - start < 0.5


def test_ten_times_the_work_takes_about_ten_times_as_long() -> None:
    def cpu_s(nominal_us: float) -> float:
        times = []
        for _ in range(7):
            start = time.thread_time()
            burn(nominal_us)
            times.append(time.thread_time() - start)
        return min(times)

    assert 5 < cpu_s(20_000) / cpu_s(2_000) < 20
